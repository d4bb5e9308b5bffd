#include "src/kernels/cuda/state_gradients.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct LocalShared {
  TokenDecays decays;
  Tile<T> a, b;
  Tile<T> scores, dscores;  // s, and the gradient of q k^T
  Tile<float> pairs;        // s o p
  float crossing[kTile];
  float row_sums[TileSum<T>::kParts][kTile];
};

/// s and dscores of a chunk, and what crosses its tokens inside it.
template <class T>
__device__ void load_scores(const Shard& s, const GradientArgs<T>& a, const ChunkOf& chunk,
                            LocalShared<T>& shared) {
  const auto rows = [&](const Rows<const T>& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  TileSum<T> products, scores;
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.a, rows(a.dout), 0, v0);
    load_tile(shared.b, rows(a.v), 0, v0);
    tiles_ready();
    add_product<false, true>(products, shared.a, shared.b);
  }
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, rows(a.q), 0, k0);
    load_tile(shared.b, rows(a.k), 0, k0);
    tiles_ready();
    add_product<false, true>(scores, shared.a, shared.b);
  }
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
__global__ void __launch_bounds__(kThreads, 2)
    local(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
          ChunkMatrices<const float> entering) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LocalShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const auto rows = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  shared.decays.load(s, chunk);
  load_scores(s, a, chunk, shared);
  const View<const T> q = rows(a.q);
  const View<float> dq = rows(a.dq), dk = rows(a.dk), dv = rows(a.dv);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.a, rows(a.dout), 0, v0);
    tiles_ready();
    TileSum<T> sum;
    add_product<true, false>(sum, shared.scores, shared.a);
    store_to(dv, v0, sum);
  }
  const View<const float> state = entering.view(s, chunk.head(s), chunk.index);
  float read[TileSum<T>::kRows] = {};  // q . dq of what enters
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    TileSum<T> from_state, inside;
    for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
      __syncthreads();
      load_tile(shared.a, rows(a.dout), 0, v0);
      load_tile(shared.b, state, k0, v0);
      tiles_ready();
      add_product<false, true>(from_state, shared.a, shared.b);
    }
    __syncthreads();
    load_tile(shared.a, q, 0, k0);
    load_tile(shared.b, rows(a.k), 0, k0);
    tiles_ready();
    add_product<false, false>(inside, shared.dscores, shared.b);
#pragma unroll
    for (int i = 0; i < TileSum<T>::kRows; ++i) {
#pragma unroll
      for (int c = 0; c < TileSum<T>::kColumns; ++c) {
        const int r = inside.row(i), d = inside.column(c);
        const float row = a.scale * shared.decays.enter(r) * from_state.at[i][c];
        read[i] = fmaf(to_float(shared.a.at(r, d)), row, read[i]);
        if (dq.has(r, k0 + d)) dq.at(r, k0 + d) = inside.at[i][c] + row;
      }
    }
    TileSum<T> written;
    add_product<true, false>(written, shared.dscores, shared.a);
    store_to(dk, k0, written);
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

template <class T, class Decays>
struct LeavingShared {
  Decays decays;
  Tile<T> keys, values, costate;
  Tile<float> written;                        // k o dk of what leaves, by lanes
  float row_sums[TileSum<T>::kParts][kTile];  // its sums
  float passing[kTile];                       // <S, D>: by lanes, or by warps
};

/// <S, D> of the rows from k0 on: each for lanes, otherwise added to a thread's `total`.
template <class T, class Decays>
__device__ void load_passing(const View<const float>& state, const View<const T>& costate, int k0,
                             LeavingShared<T, Decays>& shared, float& total) {
  const int row = k0 + static_cast<int>(threadIdx.x) / 4;
  float sum = 0;
  if (row < state.rows) {
#pragma unroll 8
    for (int v = threadIdx.x % 4; v < state.columns; v += 4) {
      sum = fmaf(state.at(row, v), to_float(costate.at(row, v)), sum);
    }
  }
  if constexpr (Decays::kLanes) {
    sum = warp_reduce<4>(sum, cuda::Sum{});
    if (threadIdx.x % 4 == 0) shared.passing[row - k0] = sum;
  } else {
    total += sum;
  }
}

template <class T, class Decays>
__global__ void __launch_bounds__(kThreads, 2)
    add_leaving(const __grid_constant__ Shard s, const __grid_constant__ GradientArgs<T> a,
                ChunkMatrices<const float> entering, ChunkMatrices<const T> leaving,
                CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LeavingShared<T, Decays>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), range.first, range.count);
  const auto rows = [&](const auto& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const View<const T> k = rows(a.k);
  const View<float> dk = rows(a.dk), dv = rows(a.dv);
  const View<const float> state = entering.view(s, chunk.head(s), chunk.index);
  const View<const T> costate = leaving.view(s, chunk.head(s), chunk.index - range.first);
  if constexpr (!Decays::kLanes) shared.decays.load(s, chunk);
  float written[TileSum<T>::kRows] = {}, passing = 0;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    if constexpr (Decays::kLanes) shared.decays.load(s, chunk, k0);
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
      const float product = keys.at[i][c] * read.at[i][c];
      written[i] += product;
      if constexpr (Decays::kLanes) shared.written.at(t, d) = product;
    });
    add_to(dk, k0, read);
    if (a.dlog_decay == nullptr) continue;
    load_passing(state, costate, k0, shared, passing);
    if constexpr (Decays::kLanes) {
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
  if (Decays::kLanes || a.dlog_decay == nullptr) return;
  TileSum<T>::sum_rows(written, &shared.row_sums[0][0]);
  passing = warp_reduce(passing, cuda::Sum{});
  if (threadIdx.x % kWarp == 0) shared.passing[threadIdx.x / kWarp] = passing;
  __syncthreads();
  double through = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) through += shared.passing[w];
  through *= shared.decays.through(0);
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
  const int64_t blocks = heads * range.count;
  if (s.lanes > 1) {
    launch(add_leaving<T, LaneDecays>, blocks, sizeof(LeavingShared<T, LaneDecays>), stream, s,
           args, entering, leaving, range);
  } else {
    launch(add_leaving<T, TokenDecays>, blocks, sizeof(LeavingShared<T, TokenDecays>), stream, s,
           args, entering, leaving, range);
  }
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
