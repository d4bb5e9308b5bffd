// What the gradient of the state that leaves a chunk adds to those of its tokens, of the vector
// kind in bf16: a block carries it through a segment, from the last chunk to the first.
#include "src/kernels/cuda/state_lane_run.cuh"

namespace weft::cuda::state {
namespace {

template <int K, int V, int Warps>
struct LeavingShared {
  struct Stage {
    Panel<K> q, k;
    Panel<V> v, dout;
  };
  Stage stages[2];
  Tile<bf16, K, V> costate;
  Tile<float, kTile, K> rows;  // the decays of the keys to the chunk's end, then k o dk
  typename LaneRun<K, Warps * kWarp>::Products products;
  float passing[WarpSum<K, V, Warps>::kAcross][K];  // <S, D>, by rows
};

/// Adds to dk, in segments of a row, and leaves k o dk in `rows`. `read` is D v.
template <int K, int V, int Warps>
__device__ void add_keys(const View<float>& dk, const Panel<K>& decayed,
                         WarpSum<kTile, K, Warps>& read, LeavingShared<K, V, Warps>& shared) {
  WarpSum<kTile, K, Warps> total;
  total.load_from(dk);
  read.for_rows([&](int i, int half, int t) {
#pragma unroll
    for (int c = 0; c < read.kColumns; ++c) {
      float *row = &shared.rows.at(t, read.column(c)), own[2];
      load<2>(&decayed.at(t, read.column(c)), own);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = read.at[i][c][2 * half + e];
        float& sum = total.at[i][c][2 * half + e];
        sum = fmaf(row[e], value, sum);
        row[e] = own[e] * value;
      }
    }
  });
  total.store_to(dk);
}

/// Adds to the gradients of the decays what is written before a token and leaves, and what passes
/// through. A thread a row of the state and half of the tokens.
template <int K, int V, int Warps>
__device__ void add_decays(const View<float>& dlog, const LeavingShared<K, V, Warps>& shared) {
  constexpr int kParts = Warps * kWarp / K, kTokens = kTile / kParts;
  const int lane = static_cast<int>(threadIdx.x) % K;
  const int begin = static_cast<int>(threadIdx.x) / K * kTokens;
  if (lane >= dlog.columns) return;
  float through = LaneRun<K, Warps * kWarp>::through(shared.products, lane), passing = 0;
  for (const auto& part : shared.passing) passing += part[lane];
  double sum = static_cast<double>(through) * passing;
  for (int t = 0; t < begin; ++t) sum += shared.rows.at(t, lane);
#pragma unroll
  for (int from = 0; from < kTokens; from += 8) {
    float total[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) total[i] = dlog.value(begin + from + i, lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int t = begin + from + i;
      if (dlog.has(t, lane)) dlog.at(t, lane) = static_cast<float>(total[i] + sum);
      sum += shared.rows.at(t, lane);
    }
  }
}

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    add_leaving(const __grid_constant__ Segmented g, const __grid_constant__ LaneLeavingArgs a) {
  constexpr int kOfBlock = Warps * kWarp;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LeavingShared<K, V, Warps>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const auto fetch = [&](int n) {
    if (n >= 0) {
      auto& stage = shared.stages[n % 2];
      load_panel<kOfBlock>(stage.q, g.rows(a.q, at, n));
      load_panel<kOfBlock>(stage.k, g.rows(a.k, at, n));
      load_panel<kOfBlock>(stage.v, g.rows(a.v, at, n));
      load_panel<kOfBlock>(stage.dout, g.rows(a.dout, at, n));
    }
    close_copies();
  };
  LaneRun<K, kOfBlock> leave;
  fetch(at.count - 1);
  if (at.count > 0) leave.fetch(g.s, at, at.count - 1);
  WarpSum<K, V, Warps> costate;
  costate.load_from(g.state(at));
  for (int n = at.count - 1; n >= 0; --n) {
    auto& [q, k, v, dout] = shared.stages[n % 2];
    costate.round_to(shared.costate);
    await_copies<0>();
    __syncthreads();  // the chunk and the costate are there, nobody reads the chunk before any more
    fetch(n - 1);
    leave.exponentiate();
    auto enter = leave;
    enter.template run<false>(shared.products);
    leave.template run<true>(shared.products);
    __syncthreads();
    enter.template apply<false>(a.scale, shared.products, q);
    leave.template apply<true>(1.0f, shared.products, k, [&](int t, int d, float one, float two) {
      store<2>(&shared.rows.at(t, d), {one, two});
    });
    if (n > 0) leave.fetch(g.s, at, n - 1);
    costate.sum_products(&shared.passing[0][0], a.entering.view(g.s, at.bh, at.first + n));
    __syncthreads();
    WarpSum<kTile, V, Warps> dv;
    dv.load_from(g.rows(a.dv, at, n));
    dv.template add<false, false>(k, shared.costate);
    dv.store_to(g.rows(a.dv, at, n));
    WarpSum<kTile, K, Warps> read;
    read.template add<false, true>(v, shared.costate);
    add_keys(g.rows(a.dk, at, n), k, read, shared);
    __syncthreads();  // k o dk is there, nobody reads the costate any more
    add_decays(g.rows(a.dlog_decay, at, n), shared);
    costate.for_rows([&](int r, int half, int lane) {
      costate.scale_row(r, half, leave.through(shared.products, lane));
    });
    costate.template add<true, false>(q, dout);
  }
  if (a.dh0 != nullptr && at.index == 0) costate.store_to(g.end(a.dh0, at));
}

}  // namespace

void add_lane_leaving(const Segmented& g, const LaneLeavingArgs& args, Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    static_assert(sizeof(LeavingShared<k, v, kWarps>) <= 227 * 1024, "of a block on Hopper");
    launch_warps<kWarps>(add_leaving<k, v, kWarps>, g.heads * g.segments,
                         sizeof(LeavingShared<k, v, kWarps>), stream, g, args);
  });
}

}  // namespace weft::cuda::state
