// Forward in bf16 on Hopper's matrix units, under any intervals. A warpgroup owns 64 queries and
// walks the keys in order, the scores of the next step under way while this step's values are added
// (Shah et al., "FlashAttention-3", arXiv 2407.08608): the same bits on every run.
#include "src/kernels/cuda/attention_warpgroups.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

constexpr int kKeys = 128;  // of a step

/// Consumers, slots of the rings of k and v, registers of a thread. Three consumers where their
/// sums leave room: one computes exponentials while another's products are made.
template <int D>
struct Shape;
template <>
struct Shape<128> {
  static constexpr int kConsumers = 2, kSlots = 2, kRegisters = 240, kProducerRegisters = 24;
};
template <>
struct Shape<64> {
  static constexpr int kConsumers = 3, kSlots = 3, kRegisters = 160, kProducerRegisters = 32;
};

template <int D>
struct ForwardTiles {
  static constexpr int kQueries = Shape<D>::kConsumers * kGroupRows, kSlots = Shape<D>::kSlots;
  EngineTile<D, kQueries> q;
  EngineTile<D, kKeys> k[kSlots], v[kSlots];
  SlotBarriers<kSlots> keys, values;
  PhaseBarrier queries;
  int2 seen[(Shape<D>::kConsumers + 1) * kGroupWarps];
};

struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <int D>
__global__ void __launch_bounds__((Shape<D>::kConsumers + 1) * kWarpgroup, 1)
    forward(const __grid_constant__ BlockView block, const __grid_constant__ ForwardMaps maps,
            TokenRows out, RowNumbers lse) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardTiles<D>*>(memory);
  constexpr int kConsumers = Shape<D>::kConsumers, kSlots = Shape<D>::kSlots;
  constexpr int kQueries = kConsumers * kGroupRows;
  // The last queries of all heads first: under a causal mask they have the most to do.
  const int tiles = static_cast<int>(gridDim.x) / block.heads;
  const int begin = (tiles - 1 - static_cast<int>(blockIdx.x) / block.heads) * kQueries;
  const int h = static_cast<int>(blockIdx.x) % block.heads, b = blockIdx.y, g = h / block.group;
  int2 visible[2] = {};
  Seen seen;
  if (warpgroup() < kConsumers) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visible[half] = block.interval(b, begin + own_row() + 8 * half);
      seen.add(visible[half]);
    }
    seen.share();
  }
  if (threadIdx.x == kConsumers * kWarpgroup) {
    shared.queries.init(1);
    shared.keys.init(kConsumers * kGroupWarps);
    shared.values.init(kConsumers * kGroupWarps);
    publish_barriers();
    shared.queries.arrive_and_expect(shared.q.kBytes);
    shared.q.fetch(maps.q, shared.queries, b, h, begin);
  }
  const int2 keys = seen_by_block(seen, shared.seen);  // and all threads meet
  const int steps = keys.x < keys.y ? (keys.y - keys.x + kKeys - 1) / kKeys : 0;
  if (warpgroup() == kConsumers) {
    give_up_registers<Shape<D>::kProducerRegisters>();
    if (threadIdx.x != kConsumers * kWarpgroup) return;
    RingPlace<kSlots> place;
    for (int step = 0; step < steps; ++step, place.advance()) {
      const int key = keys.x + step * kKeys, slot = place.slot;
      shared.keys.claim(place, shared.k[slot].kBytes);
      shared.k[slot].fetch(maps.k, shared.keys.full[slot], b, g, key);
      shared.values.claim(place, shared.v[slot].kBytes);
      shared.v[slot].fetch(maps.v, shared.values.full[slot], b, g, key);
    }
    return;
  }
  take_registers<Shape<D>::kRegisters>();
  shared.queries.wait(0);  // also with nothing to do: a block may not end before its copies
  if (steps == 0) return;
  const float scale = block.scale * kLog2E;
  RowSums<D> result;
  RowSums<kKeys> score(Undefined{});
  RowSoftmax softmax;
  float correction[2];
  // Scores of a step become exponentials.
  const auto absorb = [&](int step) {
    const int key = keys.x + step * kKeys;
    if (!seen.all(key, key + kKeys)) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = key + 8 * n + own_column() + e % 2;
          const int2 own = visible[e / 2];
          if (column < own.x || column >= own.y) score.at[n][e] = -INFINITY;
        }
      }
    }
    correction[0] = softmax.absorb(0, score, scale);
    correction[1] = softmax.absorb(1, score, scale);
  };
  const int row = warpgroup() * kGroupRows;
  RingPlace<kSlots> k_place, v_place;
  shared.keys.full[0].wait(0);
  begin_scores(score, shared.q, row, shared.k[0]);
  await_products<0>();
  settle(score.at);
  shared.keys.release(0);
  k_place.advance();
  absorb(0);
  for (int step = 1; step < steps; ++step) {
    LeftRows<kKeys> weights(score);
    shared.keys.full[k_place.slot].wait(k_place.parity);
    begin_scores(score, shared.q, row, shared.k[k_place.slot]);
    shared.values.full[v_place.slot].wait(v_place.parity);
    begin_product(result, weights, shared.v[v_place.slot]);
    await_products<1>();
    settle(score.at);
    shared.keys.release(k_place.slot);
    k_place.advance();
    absorb(step);
    await_products<0>();
    settle(result.at);
    shared.values.release(v_place.slot);
    v_place.advance();
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) result.at[n][e] *= correction[e / 2];
    }
  }
  const LeftRows<kKeys> weights(score);
  shared.values.full[v_place.slot].wait(v_place.parity);
  begin_product(result, weights, shared.v[v_place.slot]);
  await_products<0>();
  settle(result.at);
  meet_consumers<kConsumers>();  // nobody reads the tiles any more
  merge_output(stage_in<D, kConsumers * kGroupWarps>(shared), result, softmax, block, out, lse, b,
               h, begin);
}

}  // namespace

bool has_warpgroups() {
  int device = 0, major = 0;
  WEFT_CALL(cudaGetDevice(&device));
  WEFT_CALL(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;  // code for sm_90a runs nowhere else
}

void attention_forward_on_warpgroups(const AttentionForwardArgs& args, Stream& stream) {
  const AttentionBlock& block = args.block;
  with_tile_width(block.q.dim(3), [&](auto width) {
    constexpr int D = decltype(width)::value;
    using Tiles = ForwardTiles<D>;
    const ForwardMaps maps{engine_map(block.q, Tiles::kQueries), engine_map(block.k, kKeys),
                           engine_map(block.v, kKeys)};
    const dim3 grid(grid_of(ceil_div(block.q.dim(1), Tiles::kQueries) * block.q.dim(2)),
                    grid_of(block.q.dim(0)));
    launch_warpgroups<Shape<D>::kConsumers>(forward<D>, grid, sizeof(Tiles), stream, view_of(block),
                                            maps, TokenRows::of(args.out),
                                            RowNumbers::of(args.lse));
  });
}

}  // namespace weft::cuda
