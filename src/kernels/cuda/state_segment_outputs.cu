// Outputs of the kinds with one decay a token in bf16: a block carries the state through a segment
// and reads from it on the way, so that no chunk's state goes through memory.
#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {
namespace {

template <int K, int V>
struct OutputShared {
  struct Stage {
    ChunkPlaces places;
    Panel<K> q, k;
    Panel<V> v;
  };
  Stage stages[2];
  Tile<bf16, K, V> state;
  Tile<bf16> scores;
  float leave[kTile];
};

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    outputs(const __grid_constant__ Segmented g, const __grid_constant__ SegmentOutputArgs a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<OutputShared<K, V>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const auto fetch = [&](int n) {
    if (n < at.count) {
      auto& stage = shared.stages[n % 2];
      g.load(stage.places, at, n);
      load_panel<Warps * kWarp>(stage.q, g.rows(a.q, at, n));
      load_panel<Warps * kWarp>(stage.k, g.rows(a.k, at, n));
      load_panel<Warps * kWarp>(stage.v, g.rows(a.v, at, n));
    }
    close_copies();
  };
  fetch(0);
  WarpSum<K, V, Warps> state;
  state.load_from(g.state(at));
  for (int n = 0; n < at.count; ++n) {
    state.round_to(shared.state);
    await_copies<0>();
    __syncthreads();  // the chunk and the state are there, nobody reads the chunk before it any
                      // more
    fetch(n + 1);
    const auto& [places, q, k, v] = shared.stages[n % 2];
    if (threadIdx.x < kTile) shared.leave[threadIdx.x] = places.leave(threadIdx.x);
    using Scores = WarpSum<kTile, kTile, Warps>;
    Scores scores;
    scores.template add<false, true>(q, k);
    for_pair_decays<Scores>(places, a.scale, [&](int i, int half, int c, int e, float decay) {
      scores.at[i][c][2 * half + e] *= decay;
    });
    scores.round_to(shared.scores);
    WarpSum<kTile, V, Warps> out;
    out.template add<false, false>(q, shared.state);
    out.for_rows(
        [&](int i, int half, int r) { out.scale_row(i, half, a.scale * places.enter(r)); });
    __syncthreads();  // the scores are there, nobody reads the state any more
    out.template add<false, false>(shared.scores, v);
    out.store_to(g.rows(a.out, at, n));
    state *= places.through();
    state.add_scaled(k, v, [&](int t) { return shared.leave[t]; });
  }
  if (a.hT != nullptr && at.index == g.segments - 1) state.store_to(g.end(a.hT, at));
}

}  // namespace

void segment_outputs(const Segmented& g, const SegmentOutputArgs& args, Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    launch_warps<kWarps>(outputs<k, v, kWarps>, g.heads * g.segments, sizeof(OutputShared<k, v>),
                         stream, g, args);
  });
}

}  // namespace weft::cuda::state
