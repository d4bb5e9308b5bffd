// Gradients of the vector kind. Inside a chunk pairs of different tokens are gathered apart from a
// token's pair with itself, which does not decay: dlog_decay is made of them as a difference, and
// where decays are strong the other would drown it.
#include "src/kernels/cuda/state_gradients.cuh"
#include "src/kernels/cuda/state_pairs.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct LaneShared {
  LaneTiles<T> tiles;
  Tile<T> dscores;         // scale p, for products
  Tile<float> products;    // p = dout v^T
  Tile<float> dq, dk;      // of pairs of different tokens; dq with what enters
  Tile<float> enters;      // q o dq of what enters
  Tile<float> difference;  // q o dq - k o dk of pairs of different tokens; before that the decays
                           // of the tokens
};

/// scale (decay o dout S^T) for 64 rows of the state, to dq and to `enters` times q.
template <class T>
__device__ void read_entering(const Shard& s, const GradientArgs<T>& a, const ChunkOf& chunk,
                              const View<const float>& state, int k0, LaneShared<T>& shared) {
  const View<const T> dout = a.dout.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  TileSum<T> sum;
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.tiles.q, dout, 0, v0);
    load_tile(shared.tiles.k, state, k0, v0);
    tiles_ready();
    add_product<false, true>(sum, shared.tiles.q, shared.tiles.k);
  }
  for_each(sum, [&](int r, int d, float value) {
    const float row = a.scale * shared.tiles.decays.enter(r, d) * value;
    shared.dq.at(r, d) = row;
    shared.enters.at(r, d) = q.value(r, k0 + d) * row;
  });
}

/// Pairs of tokens in different blocks. What is subtracted in `difference` is the very product that
/// is added at the pair's other token, roundings included.
template <class T>
__device__ void add_before(LaneShared<T>& shared) {
  LaneTiles<T>& tiles = shared.tiles;
  const int own = TileSum<T>::block();
  TileSum<T> queries;
  queries.template add<false, false>(shared.dscores.data, shared.dscores.kStep,
                                     tiles.k_start.row(tiles.first_of(own)), tiles.k_start.kStep,
                                     own * kBlock);
  for_each(queries, [&](int r, int d, float value) {
    const double start = tiles.decays.place[r / kBlock * kBlock][d];
    shared.dq.at(r, d) += decay_between(tiles.decays.place[r + 1][d], start) * value;
    shared.difference.at(r, d) = to_float(tiles.q_start.at(r, d)) * value;
    shared.dk.at(r, d) = 0;
  });
  for (int block = own + 1; block < kBlocks; ++block) {
    TileSum<T> keys;
    keys.template add<true, false>(shared.dscores.row(block * kBlock), shared.dscores.kStep,
                                   tiles.q_start.row(block * kBlock), tiles.q_start.kStep, kBlock);
    for_each(keys, [&](int j, int d, float value) {
      shared.dk.at(j, d) += tiles.to_start(block, j, d) * value;
      shared.difference.at(j, d) -=
          to_float(tiles.k_start.at(tiles.first_of(block) + j, d)) * value;
    });
  }
}

/// Pairs of different tokens of one block: a thread a block and row of the state.
template <class T>
__device__ void add_inside(float scale, LaneShared<T>& shared) {
  const LaneTiles<T>& tiles = shared.tiles;
  const int d = threadIdx.x % kTile, begin = static_cast<int>(threadIdx.x) / kTile * kBlock;
  float key[kBlock], dkey[kBlock] = {}, difference[kBlock] = {};
  float decay[kBlock];  // from token j to token r
#pragma unroll
  for (int j = 0; j < kBlock; ++j) {
    key[j] = to_float(tiles.k.at(begin + j, d));
    decay[j] = 1;
  }
#pragma unroll
  for (int r = 1; r < kBlock; ++r) {
    const float query = to_float(tiles.q.at(begin + r, d));
    const float step = tiles.decays.pair(begin + r, begin + r - 1, d);
    float dquery = 0;
#pragma unroll
    for (int j = 0; j < r; ++j) {
      decay[j] *= step;
      const float decayed = scale * shared.products.at(begin + r, begin + j) * decay[j];
      const float term = decayed * key[j];
      dquery += term;
      dkey[j] = fmaf(decayed, query, dkey[j]);
      const float both = term * query;
      difference[r] += both;
      difference[j] -= both;
    }
    shared.dq.at(begin + r, d) += dquery;
  }
#pragma unroll
  for (int j = 0; j < kBlock; ++j) {
    shared.dk.at(begin + j, d) += dkey[j];
    shared.difference.at(begin + j, d) += difference[j];
  }
}

/// dq, dk and dlog_decay of 64 rows of the state, the pairs of a token with itself included.
template <class T>
__device__ void store_gradients(const Shard& s, const GradientArgs<T>& a, const ChunkOf& chunk,
                                int k0, const LaneShared<T>& shared) {
  const View<float> dq = a.dq.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<float> dk = a.dk.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int t = i / kTile, d = i % kTile;
    if (!dq.has(t, k0 + d)) continue;
    const float dscore = a.scale * shared.products.at(t, t);
    dq.at(t, k0 + d) = fmaf(dscore, to_float(shared.tiles.k.at(t, d)), shared.dq.at(t, d));
    dk.at(t, k0 + d) = fmaf(dscore, to_float(shared.tiles.q.at(t, d)), shared.dk.at(t, d));
  }
  const int lane = threadIdx.x;
  if (a.dlog_decay == nullptr || lane >= kTile || k0 + lane >= s.key_dim) return;
  double pairs = 0, enters = 0;
  for (int t = chunk.count - 1; t >= 0; --t) {
    pairs += shared.difference.at(t, lane);
    enters += shared.enters.at(t, lane);
    // No pair crosses: what is left is rounding.
    if (t == 0 || shared.tiles.decays.resets(t, lane)) pairs = 0;
    a.dlog(chunk, t)[k0 + lane] = static_cast<float>(pairs + enters);
  }
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_lanes(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
                ChunkMatrices<const float> entering) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LaneShared<T>*>(memory);
  LaneTiles<T>& tiles = shared.tiles;
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const auto rows = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const View<const float> state = entering.view(s, chunk.head(s), chunk.index);
  TileSum<T> products;
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(tiles.q, rows(a.dout), 0, v0);
    load_tile(tiles.k, rows(a.v), 0, v0);
    tiles_ready();
    add_product<false, true>(products, tiles.q, tiles.k);
  }
  for_each(products, [&](int r, int j, float value) {
    shared.products.at(r, j) = value;
    shared.dscores.at(r, j) = from_float<T>(a.scale * value);
  });
  TileSum<T> before;
  InsideScores inside;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    tiles.decays.load(s, chunk, k0);
    read_entering(s, a, chunk, state, k0, shared);
    __syncthreads();
    load_tile(tiles.q, rows(a.q), 0, k0);
    load_tile(tiles.k, rows(a.k), 0, k0);
    tiles_ready();
    tiles.decay_to_starts(shared.difference);
    __syncthreads();
    tiles.add_scores_before(before);
    inside.add(tiles, shared.difference);
    __syncthreads();
    add_before(shared);
    __syncthreads();
    add_inside(a.scale, shared);
    __syncthreads();
    store_gradients(s, a, chunk, k0, shared);
  }
  __syncthreads();
  inside.join_parts(shared.difference.data);
  store_scores(before, inside, a.scale, tiles.q);
  const View<float> dv = rows(a.dv);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(tiles.k, rows(a.dout), 0, v0);
    tiles_ready();
    TileSum<T> sum;
    add_product<true, false>(sum, tiles.q, tiles.k);
    store_to(dv, v0, sum);
  }
}

template <class T>
struct LeavingShared {
  LaneDecays decays;
  Tile<T> keys, values, costate;
  Tile<float> written;   // k o dk of what leaves
  float passing[kTile];  // <S, D>
};

/// <S, D> of the rows from k0 on.
template <class T>
__device__ void load_passing(const View<const float>& state, const View<const T>& costate, int k0,
                             LeavingShared<T>& shared) {
  const int row = k0 + static_cast<int>(threadIdx.x) / 4;
  float sum = 0;
  if (row < state.rows) {
#pragma unroll 8
    for (int v = threadIdx.x % 4; v < state.columns; v += 4) {
      sum = fmaf(state.at(row, v), to_float(costate.at(row, v)), sum);
    }
  }
  sum = warp_reduce<4>(sum, cuda::Sum{});
  if (threadIdx.x % 4 == 0) shared.passing[row - k0] = sum;
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    add_leaving(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
                ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LeavingShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), range.first, range.count);
  const auto rows = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const View<const T> k = rows(a.k);
  const View<float> dk = rows(a.dk), dv = rows(a.dv);
  const View<const float> state = entering.view(s, chunk.head(s), chunk.index);
  const View<const T> costate = leaving.view(s, chunk.head(s), chunk.index - range.first);
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    shared.decays.load(s, chunk, k0);
    load_tile(shared.keys, k, 0, k0, [&](int t, int d) { return shared.decays.leave(t, d); });
    TileSum<T> read;
    for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
      tiles_ready();
      load_tile(shared.costate, costate, k0, v0);
      load_tile(shared.values, rows(a.v), 0, v0);
      tiles_ready();
      add_product<false, true>(read, shared.values, shared.costate);
      TileSum<T> sum;
      add_product<false, false>(sum, shared.keys, shared.costate);
      add_to(dv, v0, sum);
    }
    TileSum<T> keys;
    for_places<TileSum<T>>([&](int i, int c, int t, int d) { keys.at[i][c] = k.value(t, k0 + d); });
    for_places<TileSum<T>>([&](int i, int c, int t, int d) {
      read.at[i][c] *= shared.decays.leave(t, d);
      shared.written.at(t, d) = keys.at[i][c] * read.at[i][c];
    });
    add_to(dk, k0, read);
    if (a.dlog_decay == nullptr) continue;
    load_passing(state, costate, k0, shared);
    __syncthreads();
    const int lane = threadIdx.x;
    if (lane < kTile) {
      double sum = static_cast<double>(shared.decays.through(lane)) * shared.passing[lane];
      for (int t = 0; t < kTile; ++t) {
        const float own = shared.written.at(t, lane);
        shared.written.at(t, lane) = static_cast<float>(sum);
        sum += own;
      }
    }
    __syncthreads();
    TileSum<T> sums;
    for_places<TileSum<T>>(
        [&](int i, int c, int t, int d) { sums.at[i][c] = shared.written.at(t, d); });
    add_to(View<float>{a.dlog(chunk, 0), a.decay_token, chunk.count, s.key_dim, false}, k0, sums);
  }
}

}  // namespace

template <class T>
void local_lane_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                          ChunkMatrices<const float> entering, Stream& stream) {
  launch(local_lanes<T>, heads * s.chunks, sizeof(LaneShared<T>), stream, s, args, entering);
}

template <class T>
void leaving_lane_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                            ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                            CarryRange range, Stream& stream) {
  launch(add_leaving<T>, heads * range.count, sizeof(LeavingShared<T>), stream, s, args, entering,
         leaving, range);
}

template void local_lane_gradients(const Shard&, int64_t, const GradientArgs<float>&,
                                   ChunkMatrices<const float>, Stream&);
template void local_lane_gradients(const Shard&, int64_t, const GradientArgs<bf16>&,
                                   ChunkMatrices<const float>, Stream&);

template void leaving_lane_gradients(const Shard&, int64_t, const GradientArgs<float>&,
                                     ChunkMatrices<const float>, ChunkMatrices<const float>,
                                     CarryRange, Stream&);
template void leaving_lane_gradients(const Shard&, int64_t, const GradientArgs<bf16>&,
                                     ChunkMatrices<const float>, ChunkMatrices<const bf16>,
                                     CarryRange, Stream&);

}  // namespace weft::cuda::state
