// What the tokens of the vector kind read of the states that enter their chunks, in bf16: as
// state_segment_outputs.cu, but for the pairs inside a chunk, which are there already.
#include "src/kernels/cuda/state_lane_run.cuh"

namespace weft::cuda::state {
namespace {

template <int K, int V, int Warps>
struct LaneOutputShared {
  struct Stage {
    Panel<K> q, k;
    Panel<V> v;
  };
  Stage stages[2];
  Tile<bf16, K, V> states[2];  // of this chunk and, while others still read that, of the next
  typename LaneRun<K, Warps * kWarp>::Products products;
};

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    add_read(const __grid_constant__ Segmented g, const __grid_constant__ SegmentOutputArgs a) {
  constexpr int kOfBlock = Warps * kWarp;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LaneOutputShared<K, V, Warps>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const auto fetch = [&](int n) {
    if (n < at.count) {
      auto& stage = shared.stages[n % 2];
      load_panel<kOfBlock>(stage.q, g.rows(a.q, at, n));
      load_panel<kOfBlock>(stage.k, g.rows(a.k, at, n));
      load_panel<kOfBlock>(stage.v, g.rows(a.v, at, n));
    }
    close_copies();
  };
  LaneRun<K, kOfBlock> leave;
  fetch(0);
  if (at.count > 0) leave.fetch(g.s, at, 0);
  WarpSum<K, V, Warps> state;
  state.load_from(g.state(at));
  for (int n = 0; n < at.count; ++n) {
    auto& [q, k, v] = shared.stages[n % 2];
    const Tile<bf16, K, V>& entering = shared.states[n % 2];
    state.round_to(shared.states[n % 2]);
    await_copies<0>();
    __syncthreads();  // the chunk and the state are there, nobody reads the chunk before it any
                      // more
    fetch(n + 1);
    leave.exponentiate();
    auto enter = leave;
    enter.template run<false>(shared.products);
    leave.template run<true>(shared.products);
    WarpSum<kTile, V, Warps> out;
    out.load_from(g.rows(a.out, at, n));
    __syncthreads();
    enter.template apply<false>(a.scale, shared.products, q);
    leave.template apply<true>(1.0f, shared.products, k);
    if (n + 1 < at.count) leave.fetch(g.s, at, n + 1);
    __syncthreads();
    out.template add<false, false>(q, entering);
    out.store_to(g.rows(a.out, at, n));
    state.for_rows([&](int r, int half, int lane) {
      state.scale_row(r, half, leave.through(shared.products, lane));
    });
    state.template add<true, false>(k, v);
  }
  if (a.hT != nullptr && at.index == g.segments - 1) state.store_to(g.end(a.hT, at));
}

}  // namespace

void add_lane_outputs(const Segmented& g, const SegmentOutputArgs& args, Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    launch_warps<kWarps>(add_read<k, v, kWarps>, g.heads * g.segments,
                         sizeof(LaneOutputShared<k, v, kWarps>), stream, g, args);
  });
}

}  // namespace weft::cuda::state
