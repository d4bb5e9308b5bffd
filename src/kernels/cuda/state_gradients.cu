#include "src/kernels/cuda/state_gradients.cuh"

namespace weft::cuda::state {
namespace {

/// Blocks that an SM holds, by their shared memory.
template <class T>
constexpr int kBlocksOf = sizeof(T) == sizeof(float) ? 1 : 2;

template <class T>
struct LocalShared {
  TokenDecays decays;
  RowTiles<T, 2> q, k, dout;
  union {
    RowTiles<T, 2> v;
    Tile<float> pairs;  // s o p, once v is used up
  };
  Tiles<T, 2> states;       // of 64 rows of the entering state
  Tile<T> scores, dscores;  // s, and the gradient of q k^T
  float crossing[kTile];
  float row_sums[TileSum<T>::kParts][kTile];
};

/// The rows of a chunk and the state that enters it.
template <class T>
struct LocalChunk {
  View<const T> q, k, v, dout;
  View<const float> state;
};

/// s and dscores of a chunk, and what crosses its tokens inside it.
template <class T>
__device__ void load_scores(const Shard& s, const GradientArgs<T>& a, const LocalChunk<T>& rows,
                            LocalShared<T>& shared) {
  TileSum<T> products, scores;
  for (int i = 0; i < tiles_of(s.value_dim); ++i) {
    const Tile<T>& dout = shared.dout.get(rows.dout, i);
    add_product<false, true>(products, dout, shared.v.get(rows.v, i));
  }
  for (int i = 0; i < tiles_of(s.key_dim); ++i) {
    const Tile<T>& q = shared.q.get(rows.q, i);
    add_product<false, true>(scores, q, shared.k.get(rows.k, i));
  }
  __syncthreads();  // nobody reads v any more
#pragma unroll
  for (int i = 0; i < TileSum<T>::kRows; ++i) {
#pragma unroll
    for (int c = 0; c < TileSum<T>::kColumns; ++c) {
      const int r = scores.row(i), j = scores.column(c);
      const float decay = j <= r ? a.scale * shared.decays.pair(r, j) : 0.0f;
      const float score = decay * scores.at[i][c], product = products.at[i][c];
      shared.scores.at(r, j) = from_float<T>(score);
      shared.dscores.at(r, j) = from_float<T>(decay * product);
      shared.pairs.at(r, j) = j < r ? score * product : 0.0f;
    }
  }
  __syncthreads();
  if (a.dlog_decay != nullptr) sum_crossing_pairs(shared.pairs, shared.crossing);
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOf<T>)
    local(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
          ChunkMatrices<const float> entering) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LocalShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const auto view = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const LocalChunk<T> rows{view(a.q), view(a.k), view(a.v), view(a.dout),
                           entering.view(s, chunk.head(s), chunk.index)};
  const View<float> dq = view(a.dq), dk = view(a.dk), dv = view(a.dv);
  const int key_tiles = tiles_of(s.key_dim), value_tiles = tiles_of(s.value_dim);
  const auto load_state = [&](int k0) {
    return [&, k0](int i, Tile<T>& tile) { load_tile(tile, rows.state, k0, i * kTile); };
  };
  shared.dout.load(rows.dout);
  shared.v.load(rows.v);
  shared.q.load(rows.q);
  shared.k.load(rows.k);
  shared.states.load(value_tiles, load_state(0));
  shared.decays.load(s, chunk);
  tiles_ready();
  load_scores(s, a, rows, shared);
  for (int i = 0; i < value_tiles; ++i) {
    TileSum<T> sum;
    add_product<true, false>(sum, shared.scores, shared.dout.get(rows.dout, i));
    store_to(dv, i * kTile, sum);
  }
  float read[TileSum<T>::kRows] = {};  // q . dq of what enters
  for (int n = 0; n < key_tiles; ++n) {
    const int k0 = n * kTile;
    TileSum<T> from_state, inside, written;
    for (int i = 0; i < value_tiles; ++i) {
      const Tile<T>& dout = shared.dout.get(rows.dout, i);
      add_product<false, true>(from_state, dout, shared.states.get(value_tiles, i, load_state(k0)));
    }
    if (n + 1 < key_tiles) {
      __syncthreads();
      shared.states.load(value_tiles, load_state(k0 + kTile));
    }
    add_product<false, false>(inside, shared.dscores, shared.k.get(rows.k, n));
    const Tile<T>& q = shared.q.get(rows.q, n);
    for_places<TileSum<T>>([&](int i, int c, int r, int d) {
      const float row = a.scale * shared.decays.enter(r) * from_state.at[i][c];
      read[i] = fmaf(to_float(q.at(r, d)), row, read[i]);
      inside.at[i][c] += row;
    });
    store_to(dq, k0, inside);
    add_product<true, false>(written, shared.dscores, q);
    store_to(dk, k0, written);
    tiles_ready();
  }
  if (a.dlog_decay == nullptr) return;
  TileSum<T>::sum_rows(read, &shared.row_sums[0][0]);
  __syncthreads();
  sums_from(
      [&](int t) {
        double sum = 0;
        for (const auto& part : shared.row_sums) sum += part[t];
        return sum;
      },
      [&](int t, double sum) {
        if (t < chunk.count) *a.dlog(chunk, t) = static_cast<float>(shared.crossing[t] + sum);
      });
}

template <class T>
struct LeavingShared {
  TokenDecays decays;
  RowTiles<T, 2> keys, values;
  Tiles<T, 4> costates;
  float row_sums[TileSum<T>::kParts][kTile];  // k . dk of what leaves
  float passing[kThreads / kWarp];            // <S, D>, by warps
};

/// Adds <S, D> of a tile to `total`. What is read of S is on its way while `multiply` runs.
template <class T, class F>
__device__ void add_passing(const View<const float>& state, int k0, int v0, const Tile<T>& costate,
                            float& total, F&& multiply) {
  Pack<float, 4> read[kTile * kTile / 4 / kThreads];
  for_packs<float, kTile, kTile>([&](int n, int k, int v) {
#pragma unroll
    for (int j = 0; j < 4; ++j) read[n].value[j] = 0;
    if (state.packs && state.has(k0 + k, v0 + v)) {
      read[n] = load_pack<4>(&state.at(k0 + k, v0 + v));
    } else if (!state.packs) {
#pragma unroll
      for (int j = 0; j < 4; ++j) read[n].value[j] = state.value(k0 + k, v0 + v + j);
    }
  });
  multiply();
  for_packs<float, kTile, kTile>([&](int n, int k, int v) {
    float own[4];
    load<4>(&costate.at(k, v), own);
#pragma unroll
    for (int j = 0; j < 4; ++j) total = fmaf(read[n].value[j], own[j], total);
  });
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOf<T>)
    add_leaving(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
                ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LeavingShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), range.first, range.count);
  const auto view = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const View<const T> k = view(a.k), v = view(a.v);
  const View<float> dk = view(a.dk), dv = view(a.dv);
  const View<const float> state = entering.view(s, chunk.head(s), chunk.index);
  const View<const T> costate = leaving.view(s, chunk.head(s), chunk.index - range.first);
  const int key_tiles = tiles_of(s.key_dim), value_tiles = tiles_of(s.value_dim);
  const auto load_costate = [&](int i, Tile<T>& tile) {
    load_tile(tile, costate, i / value_tiles * kTile, i % value_tiles * kTile);
  };
  const auto costate_at = [&](int n, int i) -> const Tile<T>& {
    return shared.costates.get(key_tiles * value_tiles, n * value_tiles + i, load_costate);
  };
  shared.keys.load(k);
  shared.costates.load(key_tiles * value_tiles, load_costate);
  shared.values.load(v);
  shared.decays.load(s, chunk);
  tiles_ready();
  for (int i = 0; i < value_tiles; ++i) {
    TileSum<T> sum, total;
    read_from(dv, i * kTile, total);
    for (int n = 0; n < key_tiles; ++n) {
      const Tile<T>& keys = shared.keys.get(k, n);
      add_product<false, false>(sum, keys, costate_at(n, i));
    }
    for_places<TileSum<T>>(
        [&](int r, int c, int t, int) { total.at[r][c] += shared.decays.leave(t) * sum.at[r][c]; });
    store_to(dv, i * kTile, total);
  }
  float written[TileSum<T>::kRows] = {}, passing = 0;
  for (int n = 0; n < key_tiles; ++n) {
    TileSum<T> read, total;
    read_from(dk, n * kTile, total);
    for (int i = 0; i < value_tiles; ++i) {
      const Tile<T>& values = shared.values.get(v, i);
      const Tile<T>& back = costate_at(n, i);
      const auto multiply = [&] { add_product<false, true>(read, values, back); };
      if (a.dlog_decay != nullptr) {
        add_passing(state, n * kTile, i * kTile, back, passing, multiply);
      } else {
        multiply();
      }
    }
    const Tile<T>& keys = shared.keys.get(k, n);
    for_places<TileSum<T>>([&](int r, int c, int t, int d) {
      const float row = shared.decays.leave(t) * read.at[r][c];
      written[r] = fmaf(to_float(keys.at(t, d)), row, written[r]);
      total.at[r][c] += row;
    });
    store_to(dk, n * kTile, total);
  }
  if (a.dlog_decay == nullptr) return;
  TileSum<T>::sum_rows(written, &shared.row_sums[0][0]);
  passing = warp_reduce(passing, cuda::Sum{});
  if (threadIdx.x % kWarp == 0) shared.passing[threadIdx.x / kWarp] = passing;
  __syncthreads();
  double through = 0;
  for (const float part : shared.passing) through += part;
  through *= shared.decays.through();
  sums_before(
      [&](int t) {
        double sum = 0;
        for (const auto& part : shared.row_sums) sum += part[t];
        return sum;
      },
      [&](int t, double sum) {
        if (t >= chunk.count) return;
        float* out = a.dlog(chunk, t);
        *out = static_cast<float>(*out + through + sum);
      });
}

}  // namespace

template <class T>
void local_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                     ChunkMatrices<const float> entering, Stream& stream) {
  if (s.lanes > 1) return local_lane_gradients(s, heads, args, entering, stream);
  launch(local<T>, heads * s.chunks, sizeof(LocalShared<T>), stream, s, args, entering);
}

template <class T>
void leaving_gradients(const Shard& s, int64_t heads, const GradientArgs<T>& args,
                       ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                       CarryRange range, Stream& stream) {
  if (s.lanes > 1) return leaving_lane_gradients(s, heads, args, entering, leaving, range, stream);
  launch(add_leaving<T>, heads * range.count, sizeof(LeavingShared<T>), stream, s, args, entering,
         leaving, range);
}

template void local_gradients(const Shard&, int64_t, const GradientArgs<float>&,
                              ChunkMatrices<const float>, Stream&);
template void local_gradients(const Shard&, int64_t, const GradientArgs<bf16>&,
                              ChunkMatrices<const float>, Stream&);
template void leaving_gradients(const Shard&, int64_t, const GradientArgs<float>&,
                                ChunkMatrices<const float>, ChunkMatrices<const float>, CarryRange,
                                Stream&);
template void leaving_gradients(const Shard&, int64_t, const GradientArgs<bf16>&,
                                ChunkMatrices<const float>, ChunkMatrices<const bf16>, CarryRange,
                                Stream&);

}  // namespace weft::cuda::state
