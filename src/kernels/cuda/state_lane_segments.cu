// The state of the vector kind in bf16, carried through segments side by side: what a chunk adds is
// computed on the way and never leaves the registers.
#include "src/kernels/cuda/state_lane_run.cuh"

namespace weft::cuda::state {
namespace {

template <int K, int V, int Warps>
struct LaneSharedMemory {
  struct Stage {
    Panel<K> x;
    Panel<V> y;
  };
  Stage stages[2];
  typename LaneRun<K, Warps * kWarp>::Products products;
};

template <bool Leaving, int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    carry_segments(const __grid_constant__ Segmented g, const __grid_constant__ LaneCarry a) {
  constexpr int kOfBlock = Warps * kWarp;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LaneSharedMemory<K, V, Warps>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const auto chunk_at = [&](int i) { return Leaving ? i : at.count - 1 - i; };
  const auto fetch = [&](int i) {
    if (i < at.count) {
      const int n = chunk_at(i);
      load_panel<kOfBlock>(shared.stages[i % 2].x, g.rows(a.products.x, at, n));
      load_panel<kOfBlock>(shared.stages[i % 2].y, g.rows(a.products.y, at, n));
    }
    close_copies();
  };
  LaneRun<K, kOfBlock> run;
  fetch(0);
  if (at.count > 0) run.fetch(g.s, at, chunk_at(0));
  WarpSum<K, V, Warps> state;
  state.load_from(g.state(at));
  for (int i = 0; i < at.count; ++i) {
    const int n = chunk_at(i);
    auto& [x, y] = shared.stages[i % 2];
    await_copies<0>();
    __syncthreads();  // and nobody reads the chunk before it any more
    fetch(i + 1);
    run.exponentiate();
    run.template run<Leaving>(shared.products);
    __syncthreads();
    run.template apply<Leaving>(a.products.alpha, shared.products, x);
    if (i + 1 < at.count) run.fetch(g.s, at, chunk_at(i + 1));
    __syncthreads();
    if (a.before.data != nullptr) {
      state.store_to(a.before.view(g.s, at.bh, at.first + n));
    }
    state.for_rows([&](int r, int half, int lane) {
      state.scale_row(r, half, run.through(shared.products, lane));
    });
    state.template add<true, false>(x, y);
  }
  if (a.end != nullptr) state.store_to(g.sum(a.end, blockIdx.x));
}

}  // namespace

void carry_lanes(const Segmented& g, const LaneCarry& args, Stream& stream) {
  constexpr int kWarps = 16;
  const auto carry = [&](auto leaving) {
    with_widths(g.s, [&](auto k, auto v) {
      launch_warps<kWarps>(carry_segments<leaving, k, v, kWarps>, g.heads * g.segments,
                           sizeof(LaneSharedMemory<k, v, kWarps>), stream, g, args);
    });
  };
  args.products.leaving ? carry(std::true_type{}) : carry(std::false_type{});
}

}  // namespace weft::cuda::state
