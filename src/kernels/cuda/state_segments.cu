#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {
namespace {

/// A warp a chunk.
__global__ void __launch_bounds__(kThreads)
    place_chunks(const __grid_constant__ Shard s, int64_t heads, ChunkPlaces* places,
                 ChunkLogs logs) {
  const int64_t i = thread_index() / kWarp;
  if (i >= heads * s.chunks) return;
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(i), 0, s.chunks);
  TokenDecays::for_tokens(s, chunk, [&](int t, double after, double end) {
    const float near = static_cast<float>(after);
    places[i].after[t] = {near, static_cast<float>(after - near)};
    if (t == kTile - 1) logs.data[i] = end <= -kReset ? -INFINITY : end;
  });
}

/// A thread a segment and lane.
__global__ void __launch_bounds__(kThreads)
    sum_logs_of_segments(const __grid_constant__ Segmented g, ChunkLogs logs, ChunkLogs out) {
  const int64_t i = thread_index();
  if (i >= g.heads * g.segments * g.s.lanes) return;
  const int lane = static_cast<int>(i % g.s.lanes);
  const Segmented::At at = g.at(static_cast<int>(i / g.s.lanes));
  double sum = 0;
#pragma unroll 8
  for (int n = 0; n < at.count; ++n) sum += logs.at(g.s, at.bh, at.first + n, lane);
  out.data[i] = sum;
}

void sum_logs(const Segmented& g, const Scratch& scratch, Stream& stream) {
  launch(sum_logs_of_segments, ceil_div(g.heads * g.segments * g.s.lanes, kThreads), 0, stream, g,
         ChunkLogs{scratch.logs}, ChunkLogs{scratch.segment_logs});
}

template <int K, int V>
struct SumShared {
  static constexpr int kStages = 3;  // chunks that are here or on their way
  struct Stage {
    ChunkPlaces places;
    Panel<K> x;
    Panel<V> y;
  };
  Stage stages[kStages];
};

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    sum_segment(const __grid_constant__ Segmented g, const __grid_constant__ ChunkProducts<bf16> a,
                bool backwards, float* out) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Shared = SumShared<K, V>;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const auto chunk_at = [&](int i) { return backwards ? at.count - 1 - i : i; };
  const auto fetch = [&](int i) {
    if (i < at.count) {
      const int n = chunk_at(i);
      auto& stage = shared.stages[i % Shared::kStages];
      g.load(stage.places, at, n);
      load_panel<Warps * kWarp>(stage.x, g.rows(a.x, at, n));
      load_panel<Warps * kWarp>(stage.y, g.rows(a.y, at, n));
    }
    close_copies();
  };
  WarpSum<K, V, Warps> state;
#pragma unroll
  for (int i = 0; i + 1 < Shared::kStages; ++i) fetch(i);
  for (int i = 0; i < at.count; ++i) {
    await_copies<Shared::kStages - 2>();
    __syncthreads();  // and nobody reads the chunk before it any more
    fetch(i + Shared::kStages - 1);
    const auto& stage = shared.stages[i % Shared::kStages];
    state *= stage.places.through();
    state.add_scaled(stage.x, stage.y, [&](int t) {
      return a.alpha * (a.leaving ? stage.places.leave(t) : stage.places.enter(t));
    });
  }
  state.store_to(g.sum(out, blockIdx.x));
}

}  // namespace

void place_tokens(const Segmented& g, const Scratch& scratch, Stream& stream) {
  launch(place_chunks, ceil_div(g.heads * g.s.chunks * kWarp, kThreads), 0, stream, g.s, g.heads,
         reinterpret_cast<ChunkPlaces*>(scratch.places), ChunkLogs{scratch.logs});
  sum_logs(g, scratch, stream);
}

void sum_lane_logs(const Segmented& g, const Scratch& scratch, Stream& stream) {
  chunk_logs(g.s, g.heads, ChunkLogs{scratch.logs}, stream);
  sum_logs(g, scratch, stream);
}

void sum_segments(const Segmented& g, const ChunkProducts<bf16>& products, float* out,
                  Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    launch_warps<kWarps>(sum_segment<k, v, kWarps>, g.heads * g.segments, sizeof(SumShared<k, v>),
                         stream, g, products, !products.leaving, out);
  });
}

}  // namespace weft::cuda::state
