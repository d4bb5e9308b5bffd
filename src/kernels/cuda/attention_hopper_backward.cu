// Backward in bf16 on Hopper's matrix units from the final log-sum-exp, as two kernels: one owns
// queries and walks keys (dq), one owns keys and walks queries (dk, dv). Seven products instead of
// five, but every sum has one owner and a fixed order: no atomics, the same bits on every run.
#include "src/kernels/cuda/attention_scratch.hpp"
#include "src/kernels/cuda/attention_warpgroups.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

// Both kernels are two consumers and a producer of one shape: 128 owned rows, 64 walked at a time.
constexpr int kConsumers = 2, kConsumerRegisters = 240, kProducerRegisters = 24;
constexpr int kThreads = (kConsumers + 1) * kWarpgroup, kProducer = kConsumers * kWarpgroup;
constexpr int kOwnedRows = kConsumers * kGroupRows, kWalked = 64, kSlots = 4;

// ---- dq

template <int D>
struct QueryTiles {
  EngineTile<D, kOwnedRows> q, dout;
  struct Slot {
    EngineTile<D, kWalked> k, v;
  } slots[kSlots];
  SlotBarriers<kSlots> barriers;
  PhaseBarrier owned;
  int2 seen[kThreads / kWarp];
};

struct QueryMaps {
  CUtensorMap q, dout, k, v;
};

/// Scores of the lane's two rows and of keys from `key` on become P.
__device__ void make_probabilities(RowSums<kWalked>& score, const QueryRow (&rows)[2], float scale,
                                   int key, bool all_seen) {
#pragma unroll
  for (int n = 0; n < kWalked / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      score.at[n][e] = power_of_two(fmaf(score.at[n][e], scale, -rows[e / 2].lse));
    }
  }
  if (all_seen) return;
#pragma unroll
  for (int n = 0; n < kWalked / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!rows[e / 2].sees(key + 8 * n + own_column() + e % 2)) score.at[n][e] = 0;
    }
  }
}

/// dq of 128 queries of one head.
template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    query_gradient(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a,
                   const __grid_constant__ QueryMaps maps) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<QueryTiles<D>*>(memory);
  // The last queries of all heads first: under a causal mask they have the most to do.
  const int tiles = static_cast<int>(gridDim.x) / block.heads;
  const int begin = (tiles - 1 - static_cast<int>(blockIdx.x) / block.heads) * kOwnedRows;
  const int h = static_cast<int>(blockIdx.x) % block.heads, b = blockIdx.y, g = h / block.group;
  if (threadIdx.x == kProducer) {
    shared.owned.init(1);
    shared.barriers.init(kConsumers * kGroupWarps);
    publish_barriers();
    shared.owned.arrive_and_expect(shared.q.kBytes + shared.dout.kBytes);
    shared.q.fetch(maps.q, shared.owned, b, h, begin);
    shared.dout.fetch(maps.dout, shared.owned, b, h, begin);
  }
  QueryRow rows[2] = {};
  Seen seen;
  if (threadIdx.x < kProducer) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows[half] = QueryRow::of(block, a, b, h, begin + own_row() + 8 * half);
      seen.add(rows[half].keys);
    }
    seen.share();
  }
  const int2 keys = seen_by_block(seen, shared.seen);  // all threads meet
  const int steps = keys.x < keys.y ? (keys.y - keys.x + kWalked - 1) / kWalked : 0;
  RingPlace<kSlots> place;
  if (threadIdx.x >= kProducer) {
    give_up_registers<kProducerRegisters>();
    if (threadIdx.x != kProducer) return;
    for (int step = 0; step < steps; ++step, place.advance()) {
      auto& slot = shared.slots[place.slot];
      auto& full = shared.barriers.full[place.slot];
      shared.barriers.claim(place, slot.k.kBytes + slot.v.kBytes);
      slot.k.fetch(maps.k, full, b, g, keys.x + step * kWalked);
      slot.v.fetch(maps.v, full, b, g, keys.x + step * kWalked);
    }
    return;
  }
  take_registers<kConsumerRegisters>();
  shared.owned.wait(0);  // also with nothing to do: a block may not end before its copies
  if (steps == 0) return;
  const float scale = block.scale * kLog2E;
  const int row = warpgroup() * kGroupRows;
  RowSums<D> dq;
  int open = -1;  // slot of the step before, which its last product may still read
  int step = 0;
  do {  // at least once, which the compiler must know: sums in products are not to be moved
    const auto& slot = shared.slots[place.slot];
    shared.barriers.full[place.slot].wait(place.parity);
    RowSums<kWalked> score(Undefined{}), dp(Undefined{});
    begin_scores(score, shared.q, row, slot.k);
    begin_scores(dp, shared.dout, row, slot.v);
    await_products<1>();
    settle(score.at);
    if (open >= 0) shared.barriers.release(open);
    open = place.slot;
    const int key = keys.x + step * kWalked;
    make_probabilities(score, rows, scale, key, seen.all(key, key + kWalked));
    await_products<0>();
    settle(dp.at);
#pragma unroll
    for (int n = 0; n < kWalked / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        dp.at[n][e] = score.at[n][e] * (dp.at[n][e] - rows[e / 2].delta);
      }
    }
    begin_product(dq, LeftRows<kWalked>(dp), slot.k);
    place.advance();
  } while (++step < steps);
  await_products<0>();
  settle(dq.at);
  meet_consumers<kConsumers>();  // nobody reads the tiles any more
  RowStage<D>& stage = stage_in<D, kConsumers * kGroupWarps>(shared);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    stage.put(dq, half, block.scale, begin + own_row() + 8 * half < block.queries ? 1 : -1);
  }
  stage.merge(a.dq, b, begin + warp_row(), h, block.dim);
}

template <int D>
void launch_query_gradient(const AttentionBackwardArgs& args, const Gradients& a, Stream& stream) {
  const AttentionBlock& block = args.block;
  const dim3 grid(grid_of(ceil_div(block.q.dim(1), kOwnedRows) * block.q.dim(2)),
                  grid_of(block.q.dim(0)));
  const QueryMaps maps{engine_map(block.q, kOwnedRows), engine_map(args.dout, kOwnedRows),
                       engine_map(block.k, kWalked), engine_map(block.v, kWalked)};
  launch_warpgroups<kConsumers>(query_gradient<D>, grid, sizeof(QueryTiles<D>), stream,
                                view_of(block), a, maps);
}

// ---- dk and dv

/// What the key kernel reads of the queries of a step. In one piece, and copied as a tensor is:
/// racecheck takes the other copies of the engine for writes of the thread that starts them.
struct alignas(128) StepQueries {
  struct Row {
    float lse;  // in units of log2; +inf where a query saw nothing, so that P is 0
    float delta;
  };
  Row rows[kWalked];
  int2 keys[kWalked];  // the interval of each
  int4 seen;           // every key that some query sees lies in [x, y), every query sees [z, w)
};

/// Of every sequence, head and tile of queries, the last tile filled up with queries whose P is 0;
/// and at last an end, whose seen.x is negative.
struct QueryTable {
  StepQueries* records;  // [B, H, tiles], and the end
  int heads, tiles;

  __host__ __device__ int64_t at(int64_t b, int64_t h, int64_t tile) const {
    return (b * heads + h) * tiles + tile;
  }
};

/// A block a tile, head and sequence, a thread a query.
__global__ void __launch_bounds__(kWalked)
    fill_table(QueryTable table, const __grid_constant__ BlockView block, RowNumbers lse,
               RowNumbers delta) {
  __shared__ int4 each[kWalked / kWarp];
  const int row = static_cast<int>(threadIdx.x), tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
  const int t = tile * kWalked + row;
  const bool there = t < block.queries;
  const float own_lse = there ? lse.at(b, h, t) : -INFINITY;
  const bool blind = own_lse == -INFINITY;
  StepQueries& record = table.records[table.at(b, h, tile)];
  record.rows[row] = {blind ? INFINITY : own_lse * kLog2E, blind ? 0.0f : delta.at(b, h, t)};
  const int2 keys = block.interval(b, t);
  record.keys[row] = keys;
  Seen seen;
  if (there) seen.add(keys);
  seen.share();
  if (lane() == 0) each[row / kWarp] = {seen.low, seen.high, seen.all_low, seen.all_high};
  __syncthreads();
  if (row > 0) return;
  int4 total = each[0];
  for (int w = 1; w < kWalked / kWarp; ++w) {
    total = {min(total.x, each[w].x), max(total.y, each[w].y), max(total.z, each[w].z),
             min(total.w, each[w].w)};
  }
  record.seen = total;
  if (tile == 0 && h == 0 && b == 0) {
    table.records[table.at(gridDim.z, 0, 0)].seen = {-1, 0, 0, 0};
  }
}

template <int D>
struct KeyTiles {
  EngineTile<D, kOwnedRows> k, v;
  struct Slot {
    EngineTile<D, kWalked> q, dout;
    StepQueries queries;
  } slots[kSlots];
  SlotBarriers<kSlots> barriers;
  PhaseBarrier owned;
};

struct KeyMaps {
  CUtensorMap k, v, q, dout, table;
};

/// The producer's first warp: the tiles of queries that see any of the keys [begin, end), in order,
/// of each the heads of the group; and the table's end.
template <int D>
__device__ void produce_queries(KeyTiles<D>& shared, const BlockView& block, const KeyMaps& maps,
                                const QueryTable& table, int begin, int end, int g, int b) {
  const bool copies = lane() == 0;
  RingPlace<kSlots> place;
  const auto fetch_record = [&](int64_t record) {
    copy_box(&shared.slots[place.slot].queries, maps.table, shared.barriers.full[place.slot], 0, 0,
             static_cast<int>(record), 0);
  };
  for (int first = 0; first < table.tiles; first += kWarp) {
    const int mine = first + lane();
    int4 seen{};
    if (mine < table.tiles) seen = table.records[table.at(b, g * block.group, mine)].seen;
    unsigned left = __ballot_sync(0xFFFFFFFFu, sees({seen.x, seen.y}, begin, end));
#pragma unroll 1
    for (; copies && left != 0; left &= left - 1) {
      const int tile = first + __ffs(left) - 1;
#pragma unroll 1
      for (int h = g * block.group; h < (g + 1) * block.group; ++h, place.advance()) {
        auto& slot = shared.slots[place.slot];
        auto& full = shared.barriers.full[place.slot];
        shared.barriers.claim(place, slot.q.kBytes + slot.dout.kBytes + sizeof(slot.queries));
        slot.q.fetch(maps.q, full, b, h, tile * kWalked);
        slot.dout.fetch(maps.dout, full, b, h, tile * kWalked);
        fetch_record(table.at(b, h, tile));
      }
    }
  }
  if (!copies) return;
  shared.barriers.claim(place, sizeof(StepQueries));
  fetch_record(table.at(gridDim.y, 0, 0));
}

/// Scores of the lane's keys `key` and key + 8 and the slot's queries become P.
__device__ void make_probabilities(RowSums<kWalked>& score, const StepQueries& queries, float scale,
                                   int key, bool all_see) {
#pragma unroll
  for (int n = 0; n < kWalked / 8; ++n) {
    const float4 rows = *reinterpret_cast<const float4*>(&queries.rows[8 * n + own_column()]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lse = e % 2 == 0 ? rows.x : rows.z;
      score.at[n][e] = power_of_two(fmaf(score.at[n][e], scale, -lse));
    }
  }
  if (all_see) return;
#pragma unroll
  for (int n = 0; n < kWalked / 8; ++n) {
    const int4 keys = *reinterpret_cast<const int4*>(&queries.keys[8 * n + own_column()]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int own = key + 8 * (e / 2);
      const int from = e % 2 == 0 ? keys.x : keys.z, to = e % 2 == 0 ? keys.y : keys.w;
      if (own < from || own >= to) score.at[n][e] = 0;
    }
  }
}

/// dP becomes the gradient of the scores.
__device__ void make_score_gradients(RowSums<kWalked>& dp, const RowSums<kWalked>& p,
                                     const StepQueries& queries) {
#pragma unroll
  for (int n = 0; n < kWalked / 8; ++n) {
    const float4 rows = *reinterpret_cast<const float4*>(&queries.rows[8 * n + own_column()]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float delta = e % 2 == 0 ? rows.y : rows.w;
      dp.at[n][e] = p.at[n][e] * (dp.at[n][e] - delta);
    }
  }
}

/// dk and dv of 128 keys of one kv head.
template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    key_gradients(const __grid_constant__ BlockView block, const __grid_constant__ Gradients a,
                  const __grid_constant__ KeyMaps maps, const __grid_constant__ QueryTable table) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<KeyTiles<D>*>(memory);
  // The first keys of all heads first: under a causal mask they have the most to do.
  const int kv_heads = block.heads / block.group;
  const int begin = static_cast<int>(blockIdx.x) / kv_heads * kOwnedRows;
  const int g = static_cast<int>(blockIdx.x) % kv_heads, b = blockIdx.y;
  if (threadIdx.x == kProducer) {
    shared.owned.init(1);
    shared.barriers.init(kConsumers * kGroupWarps);
    publish_barriers();
    shared.owned.arrive_and_expect(shared.k.kBytes + shared.v.kBytes);
    shared.k.fetch(maps.k, shared.owned, b, g, begin);
    shared.v.fetch(maps.v, shared.owned, b, g, begin);
  }
  __syncthreads();
  if (threadIdx.x >= kProducer) {
    give_up_registers<kProducerRegisters>();
    if (threadIdx.x >= kProducer + kWarp) return;
    produce_queries(shared, block, maps, table, begin, min(begin + kOwnedRows, block.keys), g, b);
    return;
  }
  take_registers<kConsumerRegisters>();
  const float scale = block.scale * kLog2E;
  const int row = warpgroup() * kGroupRows, key = begin + row;
  RowSums<D> dk, dv;
  RingPlace<kSlots> place;
  int open = -1;         // slot of the step before, which its last product may still read
  shared.owned.wait(0);  // also with nothing to do: a block may not end before its copies
  shared.barriers.full[0].wait(0);
  int4 seen = shared.slots[0].queries.seen;
  if (seen.x < 0) return;
  do {  // at least once, which the compiler must know: sums in products are not to be moved
    const auto& slot = shared.slots[place.slot];
    RowSums<kWalked> score(Undefined{}), dp(Undefined{});  // [64 keys, 64 queries]
    begin_scores(score, shared.k, row, slot.q);
    begin_scores(dp, shared.v, row, slot.dout);
    await_products<1>();
    settle(score.at);
    if (open >= 0) shared.barriers.release(open);
    open = place.slot;
    make_probabilities(score, slot.queries, scale, begin + own_row(),
                       seen.z <= key && key + kGroupRows <= seen.w);
    const LeftRows<kWalked> p(score);
    begin_product(dv, p, slot.dout);
    await_products<1>();
    settle(dp.at);
    make_score_gradients(dp, score, slot.queries);
    begin_product(dk, LeftRows<kWalked>(dp), slot.q);
    await_products<1>();  // dv's: the registers of p are the next step's
    place.advance();
    shared.barriers.full[place.slot].wait(place.parity);
    seen = shared.slots[place.slot].queries.seen;
  } while (seen.x >= 0);
  await_products<0>();
  settle(dk.at);
  settle(dv.at);
  meet_consumers<kConsumers>();  // nobody reads the tiles any more
  RowStage<D>& stage = stage_in<D, kConsumers * kGroupWarps>(shared);
  const auto add = [&](const RowSums<D>& sums, float factor, const TokenRows& target) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      stage.put(sums, half, factor, begin + own_row() + 8 * half < block.keys ? 1 : -1);
    }
    stage.merge(target, b, begin + warp_row(), g, block.dim);
  };
  add(dk, block.scale, a.dk);
  add(dv, 1, a.dv);
}

template <int D>
void launch_key_gradients(const AttentionBackwardArgs& args, const Gradients& a, Stream& stream) {
  const AttentionBlock& block = args.block;
  const BlockView view = view_of(block);
  const int64_t batch = block.q.dim(0), heads = block.q.dim(2), kv_heads = block.k.dim(2);
  const AttentionScratch scratch(
      args.scratch.data, {batch, block.q.dim(1), block.k.dim(1), heads, kv_heads, block.q.dim(3)});
  const int64_t tiles = ceil_div(block.q.dim(1), kWalked), records = batch * heads * tiles + 1;
  const int64_t bytes = records * static_cast<int64_t>(sizeof(StepQueries));
  WEFT_CHECK(bytes <= scratch.workspace_bytes && records <= INT32_MAX, records, " records in ",
             scratch.workspace_bytes, " bytes");
  const QueryTable table{reinterpret_cast<StepQueries*>(scratch.workspace), static_cast<int>(heads),
                         static_cast<int>(tiles)};
  fill_table<<<dim3(grid_of(tiles), grid_of(heads), grid_of(batch)), kWalked, 0, native(stream)>>>(
      table, view, a.lse, a.delta);
  WEFT_CALL(cudaGetLastError());
  const dim3 grid(grid_of(ceil_div(block.k.dim(1), kOwnedRows) * kv_heads), grid_of(batch));
  const KeyMaps maps{engine_map(block.k, kOwnedRows), engine_map(block.v, kOwnedRows),
                     engine_map(block.q, kWalked), engine_map(args.dout, kWalked),
                     record_map(table.records, records, sizeof(StepQueries))};
  launch_warpgroups<kConsumers>(key_gradients<D>, grid, sizeof(KeyTiles<D>), stream, view, a, maps,
                                table);
}

}  // namespace

void attention_backward_on_warpgroups(const AttentionBackwardArgs& args, Stream& stream) {
  const Gradients a = Gradients::of(args);
  with_tile_width(args.block.q.dim(3), [&](auto width) {
    launch_query_gradient<width>(args, a, stream);
    launch_key_gradients<width>(args, a, stream);
  });
}

}  // namespace weft::cuda
