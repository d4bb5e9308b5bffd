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
  Tile<T> dscores;                            // scale dout v^T, for products
  Tile<float, kTile, kBlock> dscores_inside;  // of the pairs inside blocks
  Tile<float> difference;  // q o dq - k o dk of pairs of different tokens, and q o dq of what
                           // enters; before that the decays of the tokens
  float enters[TileSum<T>::kColumnParts][kTile];  // q o dq of what enters, sums over tokens
  double behind[kBlocks][kTile];  // sums of `difference` over a block up to its first reset
};

/// The decays for 64 rows of the state, and scale (decay o dout S^T).
template <class T>
__device__ TileSum<T> read_entering(const Shard& s, const GradientArgs<T>& a, const ChunkOf& chunk,
                                    const View<const float>& state, int k0, LaneTiles<T>& tiles) {
  const LaneDecays::Logs logs = LaneDecays::fetch(s, chunk, k0);
  const View<const T> dout = a.dout.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  TileSum<T> sum;
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(tiles.q, dout, 0, v0);
    load_tile(tiles.k, state, k0, v0);
    tiles_ready();
    add_product<false, true>(sum, tiles.q, tiles.k);
  }
  tiles.decays.load(logs);  // behind the barriers of the loop, and with some behind it
  for_places<TileSum<T>>([&](int i, int c, int r, int d) {
    sum.at[i][c] *= a.scale * tiles.decays.template enter<T>(r, d);
  });
  return sum;
}

/// Pairs of tokens in different blocks. What is subtracted in `difference` is the very product that
/// is added at the pair's other token, roundings included. `entered` is dq of what enters, and with
/// these pairs goes to the spare tile; dk goes to `dk`. Fills `difference` and `enters`.
template <class T>
__device__ void add_before(TileSum<T>& entered, const View<float>& dk, int k0,
                           LaneShared<T>& shared) {
  LaneTiles<T>& tiles = shared.tiles;
  const int own = TileSum<T>::block();
  TileSum<T> difference;
  {
    TileSum<T> queries, enters;
    queries.template add<false, false>(shared.dscores.data, shared.dscores.kStep,
                                       tiles.k_start.row(tiles.first_of(own)), tiles.k_start.kStep,
                                       own * kBlock);
    for_places<TileSum<T>>([&](int i, int c, int r, int d) {
      const double start = tiles.decays.place[own * kBlock][d];
      const float value = queries.at[i][c];
      enters.at[i][c] = to_float(tiles.q.at(r, d)) * entered.at[i][c];
      entered.at[i][c] += decay_between<T>(tiles.decays.place[r + 1][d], start) * value;
      difference.at[i][c] = to_float(tiles.q_start.at(r, d)) * value;
    });
    enters.sum_columns(shared.enters[0]);
    for_places<TileSum<T>>(
        [&](int i, int c, int r, int d) { shared.difference.at(r, d) = enters.at[i][c]; });
  }
  TileSum<T> dkeys;
  for (int block = own + 1; block < kBlocks; ++block) {
    TileSum<T> keys;
    keys.template add<true, false>(shared.dscores.row(block * kBlock), shared.dscores.kStep,
                                   tiles.q_start.row(block * kBlock), tiles.q_start.kStep, kBlock);
    for_places<TileSum<T>>([&](int i, int c, int j, int d) {
      const float value = keys.at[i][c];
      dkeys.at[i][c] += tiles.to_start(block, j, d) * value;
      difference.at[i][c] -= to_float(tiles.k_start.at(tiles.first_of(block) + j, d)) * value;
    });
  }
  store_to(dk, k0, dkeys);
  for_places<TileSum<T>>(
      [&](int i, int c, int r, int d) { shared.difference.at(r, d) += difference.at[i][c]; });
  __syncthreads();
  Tile<float>& dq = tiles.spare();
  for_places<TileSum<T>>([&](int i, int c, int r, int d) { dq.at(r, d) = entered.at[i][c]; });
}

/// What a thread gathers of the pairs whose earlier token is one of kKeys from `first` on.
struct InsideGradients {
  static constexpr int kKeys = 8;
  float key[kKeys], dkey[kKeys] = {}, difference[kKeys] = {};
  float decay[kKeys];  // from the token to token r

  /// The pairs of token r with the first Count of them, all of which are earlier.
  template <int Count, class T>
  __device__ void add(LaneShared<T>& shared, int first, int r, int d) {
    float dscore[kKeys];
#pragma unroll
    for (int j = 0; j < Count; j += 4) {
      float quad[4];
      load<4>(&shared.dscores_inside.at(r, first % kBlock + j), quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) dscore[j + i] = quad[i];
    }
    const float query = to_float(shared.tiles.q.at(r, d));
    const float step = shared.tiles.decays.template pair<T>(r, r - 1, d);
    float dquery = shared.tiles.spare().at(r, d), added = shared.difference.at(r, d);
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      decay[j] *= step;
      const float decayed = dscore[j] * decay[j];
      const float both = decayed * key[j] * query;
      dquery = fmaf(decayed, key[j], dquery);
      dkey[j] = fmaf(decayed, query, dkey[j]);
      added += both;
      difference[j] -= both;
    }
    shared.tiles.spare().at(r, d) = dquery;
    shared.difference.at(r, d) = added;
  }
};

/// Calls f with the constants from First to Last - 1.
template <int First, int Last, class F>
__device__ void for_constants(F&& f) {
  if constexpr (First < Last) {
    f(std::integral_constant<int, First>{});
    for_constants<First + 1, Last>(f);
  }
}

/// Pairs inside blocks, those of a token with itself included, to dq in the spare tile, dk and
/// `difference`: a thread a block and row of the state, with some of the earlier tokens at a time.
/// Loops stay loops: unrolled, the code does not fit into the cache of instructions.
template <class T>
__device__ void add_inside(const View<float>& dk, int k0, LaneShared<T>& shared) {
  constexpr int kKeys = InsideGradients::kKeys;
  LaneTiles<T>& tiles = shared.tiles;
  const int d = threadIdx.x % kTile, begin = static_cast<int>(threadIdx.x) / kTile * kBlock;
#pragma unroll 1
  for (int first = begin; first < begin + kBlock; first += kKeys) {
    InsideGradients of;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      of.key[j] = to_float(tiles.k.at(first + j, d));
      of.decay[j] = 1;
    }
    for_constants<1, kKeys>([&](auto r) { of.template add<r()>(shared, first, first + r(), d); });
#pragma unroll 1
    for (int r = first + kKeys; r < begin + kBlock; ++r) {
      of.template add<kKeys>(shared, first, r, d);
    }
    float before[kKeys];
#pragma unroll
    for (int j = 0; j < kKeys; ++j) before[j] = dk.value(first + j, k0 + d);
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const int t = first + j;
      const float itself = shared.dscores_inside.at(t, t % kBlock);
      tiles.spare().at(t, d) = fmaf(itself, of.key[j], tiles.spare().at(t, d));
      shared.difference.at(t, d) += of.difference[j];
      if (dk.has(t, k0 + d)) {
        dk.at(t, k0 + d) = fmaf(itself, to_float(tiles.q.at(t, d)), before[j] + of.dkey[j]);
      }
    }
  }
}

/// dq of 64 rows of the state.
template <class T>
__device__ void store_queries(const View<float>& dq, int k0, LaneTiles<T>& tiles) {
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int t = i / kTile, d = i % kTile;
    if (dq.has(t, k0 + d)) dq.at(t, k0 + d) = tiles.spare().at(t, d);
  }
}

/// dlog_decay of 64 rows of the state, but for what leaves: `difference` summed from behind, in
/// blocks of tokens side by side.
template <class T>
__device__ void store_decays(const Shard& s, const GradientArgs<T>& a, const ChunkOf& chunk, int k0,
                             LaneShared<T>& shared) {
  const int d = threadIdx.x % kTile, block = static_cast<int>(threadIdx.x) / kTile;
  const int begin = block * kBlock, end = begin + kBlock;
  const LaneDecays& decays = shared.tiles.decays;
  double sum = 0;
  // Nothing crosses a reset: what is left behind it is rounding.
  const auto add = [&](int t) {
    sum = decays.resets(t, t + 1, d) ? 0.0 : sum + shared.difference.at(t, d);
  };
#pragma unroll 4
  for (int t = end - 1; t >= begin; --t) add(t);
  shared.behind[block][d] = sum;
  __syncthreads();
  sum = 0;
  for (int later = kBlocks - 1; later > block; --later) {
    const int first = later * kBlock;
    sum = shared.behind[later][d] + (decays.resets(first, first + kBlock, d) ? 0.0 : sum);
  }
  if (k0 + d >= s.key_dim) return;
#pragma unroll 4
  for (int t = end - 1; t >= begin; --t) {
    add(t);
    if (t > 0 && t < chunk.count) a.dlog(chunk, t)[k0 + d] = static_cast<float>(sum);
  }
  if (block > 0) return;
  double enters = 0;  // no pair crosses the first token
  for (const auto& part : shared.enters) enters += part[d];
  a.dlog(chunk, 0)[k0 + d] = static_cast<float>(enters);
}

template <class T>
inline constexpr int kLaneBlocks = sizeof(T) == 2 ? 2 : 1;  // of a multiprocessor

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, kLaneBlocks<T>)
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
    const float dscore = a.scale * value;
    if (r / kBlock == j / kBlock) shared.dscores_inside.at(r, j % kBlock) = dscore;
    shared.dscores.at(r, j) = from_float<T>(dscore);
  });
  TileSum<T> before;
  InsideScores inside;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    TileSum<T> entered = read_entering(s, a, chunk, state, k0, tiles);
    load_tile(tiles.q, rows(a.q), 0, k0);
    load_tile(tiles.k, rows(a.k), 0, k0);
    tiles_ready();
    tiles.decay_to_starts(shared.difference);
    __syncthreads();
    tiles.add_scores_before(before);
    inside.add(tiles, shared.difference);
    __syncthreads();
    add_before(entered, rows(a.dk), k0, shared);
    __syncthreads();
    add_inside(rows(a.dk), k0, shared);
    __syncthreads();
    store_queries(rows(a.dq), k0, tiles);
    if (a.dlog_decay != nullptr) store_decays(s, a, chunk, k0, shared);
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
