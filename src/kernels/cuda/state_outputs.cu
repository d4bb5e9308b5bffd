#include "src/kernels/cuda/state_outputs.cuh"

#include "src/kernels/cuda/state_pairs.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct TokenShared {
  TokenDecays decays;
  RowTiles<T, 2> q, k, v;
  Tile<T> scores;
};

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    local_tokens(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<TokenShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = a.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> v = a.v.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  shared.q.load(q);
  shared.k.load(k);
  shared.v.load(v);
  shared.decays.load(s, chunk);
  tiles_ready();
  TileSum<T> products;
  for (int i = 0; i < tiles_of(s.key_dim); ++i) {
    const Tile<T>& queries = shared.q.get(q, i);
    add_product<false, true>(products, queries, shared.k.get(k, i));
  }
  for_each(products, [&](int r, int j, float value) {
    const float score = j <= r ? a.scale * value * shared.decays.pair(r, j) : 0.0f;
    shared.scores.at(r, j) = from_float<T>(score);
  });
  __syncthreads();
  for (int i = 0; i < tiles_of(s.value_dim); ++i) {
    TileSum<T> sum;
    add_product<false, false>(sum, shared.scores, shared.v.get(v, i));
    store_to(out, i * kTile, sum);
  }
}

template <class T>
struct LaneShared {
  LaneTiles<T> tiles;
  Tile<float> steps;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    local_lanes(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& [shared, steps] = *reinterpret_cast<LaneShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = a.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  TileSum<T> before;
  InsideScores inside;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.q, q, 0, k0);
    load_tile(shared.k, k, 0, k0);
    shared.decays.load(s, chunk, k0);
    tiles_ready();
    shared.decay_to_starts(steps);
    tiles_ready();
    shared.add_scores_before(before);
    inside.add(shared, steps);
  }
  __syncthreads();
  inside.join_parts(steps.data);
  store_scores(before, inside, a.scale, shared.q);
  const View<const T> v = a.v.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.k, v, 0, v0);
    tiles_ready();
    TileSum<T> sum;
    add_product<false, false>(sum, shared.q, shared.k);
    store_to(out, v0, sum);
  }
}

template <class T>
struct EnteringTokensShared {
  TokenDecays decays;
  RowTiles<T, 2> q;
  Tiles<T, 2> states;  // of 64 columns
};

/// A block a chunk and 64 columns.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    read_entering_tokens(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a,
                         ChunkMatrices<const T> states, CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<EnteringTokensShared<T>*>(memory);
  const int tiles = tiles_of(s.value_dim), key_tiles = tiles_of(s.key_dim);
  const int v0 = static_cast<int>(blockIdx.x) % tiles * kTile;
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x) / tiles, range.first, range.count);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> state = states.view(s, chunk.head(s), chunk.index - range.first);
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const auto load_state = [&](int i, Tile<T>& tile) { load_tile(tile, state, i * kTile, v0); };
  shared.q.load(q);
  shared.states.load(key_tiles, load_state);
  TileSum<T> sum, total;
  read_from(out, v0, total);
  shared.decays.load(s, chunk);
  tiles_ready();
  for (int i = 0; i < key_tiles; ++i) {
    const Tile<T>& queries = shared.q.get(q, i);
    add_product<false, false>(sum, queries, shared.states.get(key_tiles, i, load_state));
  }
  for_places<TileSum<T>>([&](int i, int c, int t, int) {
    total.at[i][c] = fmaf(a.scale * shared.decays.enter(t), sum.at[i][c], total.at[i][c]);
  });
  store_to(out, v0, total);
}

constexpr int kLaneColumns = 2;  // tiles of them that a block has, so that it decays q once

template <class T>
struct EnteringLanesShared {
  LaneDecays decays;
  Tile<T> q, states[kLaneColumns];
};

/// A block a chunk and kLaneColumns * 64 columns.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    read_entering_lanes(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a,
                        ChunkMatrices<const T> states, CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<EnteringLanesShared<T>*>(memory);
  const int parts = (tiles_of(s.value_dim) + kLaneColumns - 1) / kLaneColumns;
  const int v0 = static_cast<int>(blockIdx.x) % parts * kLaneColumns * kTile;
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x) / parts, range.first, range.count);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> state = states.view(s, chunk.head(s), chunk.index - range.first);
  TileSum<T> sums[kLaneColumns];
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      load_tile(shared.states[i], state, k0, v0 + i * kTile);
    }
    shared.decays.load(s, chunk, k0);
    load_tile(shared.q, q, 0, k0,
              [&](int t, int d) { return a.scale * shared.decays.enter(t, d); });
    tiles_ready();
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      add_product<false, false>(sums[i], shared.q, shared.states[i]);
    }
  }
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) add_to(out, v0 + i * kTile, sums[i]);
}

}  // namespace

template <class T>
void local_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args, Stream& stream) {
  if (s.lanes > 1) {
    launch(local_lanes<T>, heads * s.chunks, sizeof(LaneShared<T>), stream, s, args);
  } else {
    launch(local_tokens<T>, heads * s.chunks, sizeof(TokenShared<T>), stream, s, args);
  }
}

template <class T>
void entering_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args,
                      ChunkMatrices<const T> states, CarryRange range, Stream& stream) {
  const int64_t chunks = heads * range.count, tiles = tiles_of(s.value_dim);
  if (s.lanes > 1) {
    launch(read_entering_lanes<T>, chunks * ceil_div(tiles, kLaneColumns),
           sizeof(EnteringLanesShared<T>), stream, s, args, states, range);
  } else {
    launch(read_entering_tokens<T>, chunks * tiles, sizeof(EnteringTokensShared<T>), stream, s,
           args, states, range);
  }
}

template void local_outputs(const Shard&, int64_t, const OutputArgs<float>&, Stream&);
template void local_outputs(const Shard&, int64_t, const OutputArgs<bf16>&, Stream&);
template void entering_outputs(const Shard&, int64_t, const OutputArgs<float>&,
                               ChunkMatrices<const float>, CarryRange, Stream&);
template void entering_outputs(const Shard&, int64_t, const OutputArgs<bf16>&,
                               ChunkMatrices<const bf16>, CarryRange, Stream&);

}  // namespace weft::cuda::state
