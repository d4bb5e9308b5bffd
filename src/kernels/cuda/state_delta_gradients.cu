#include "src/kernels/cuda/state_delta.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct DeltaShared {
  TokenDecays decays;
  float beta[kTile];
  Tile<T> a, b, c, d, e;
  Tile<T> dreads, dlower;  // gradients of q k^T and of k k^T; before them, the solution in dlower
  Tile<float> pairs;
  float crossing[kTile];
  float dbeta[TileSum<T>::kParts][kTile];
  float enters[TileSum<T>::kParts][kTile], leaves[TileSum<T>::kParts][kTile];
  float passing[kThreads / kWarp];
};

/// One chunk of one head.
template <class T>
struct DeltaChunk {
  const Shard& s;
  const DeltaGradientArgs<T>& a;
  ChunkOf chunk;
  View<const T> q, k, v, dout;
  View<const float> state, costate;  // S, D'
  View<float> rows;                  // Y
  View<T> solution, written;
};

template <class Parts>
__device__ double sum_parts(const Parts& parts, int t) {
  double sum = 0;
  for (const auto& part : parts) sum += part[t];
  return sum;
}

/// dv, U to `written`, R to dbeta, and the products dout U^T and Y U^T.
template <class T>
__device__ void gradients_of_rows(const DeltaChunk<T>& x, DeltaShared<T>& shared,
                                  TileSum<T>& dreads, TileSum<T>& dlower,
                                  float (&dbeta)[TileSum<T>::kRows]) {
  const View<float> dv = x.a.gradients.dv.view(x.chunk.b, x.chunk.h, x.chunk.begin, x.chunk.count);
  load_tile(shared.dlower, x.solution, 0, 0);
  for (int v0 = 0; v0 < x.s.value_dim; v0 += kTile) {
    TileSum<T> values;  // R
    for (int k0 = 0; k0 < x.s.key_dim; k0 += kTile) {
      tiles_ready();
      load_tile(shared.a, x.k, 0, k0, [&](int t, int) { return -shared.decays.enter(t); });
      load_tile(shared.b, x.state, k0, v0);
      tiles_ready();
      add_product<false, false>(values, shared.a, shared.b);
    }
    TileSum<T> row, given;
    read_from(x.v, v0, given);
    read_from(x.rows, v0, row);
    for_places<TileSum<T>>([&](int i, int c, int t, int d) {
      values.at[i][c] += given.at[i][c];
      dbeta[i] = fmaf(row.at[i][c], values.at[i][c], dbeta[i]);
      shared.c.at(t, d) = from_float<T>(values.at[i][c]);
      row.at[i][c] *= shared.beta[t];
    });
    store_to(dv, v0, row);
    __syncthreads();
    load_tile(shared.a, x.dout, 0, v0);
    load_tile(shared.b, x.rows, 0, v0);
    TileSum<T> written;
    add_product<false, false>(written, shared.dlower, shared.c);
    for_each(written, [&](int t, int d, float value) { shared.d.at(t, d) = from_float<T>(value); });
    store_to(x.written, v0, written);
    tiles_ready();
    add_product<false, true>(dreads, shared.a, shared.d);
    add_product<false, true>(dlower, shared.b, shared.d);
  }
}

/// From dP = `products` and -dL = `lower_products`: the gradients of q k^T and k k^T, what crosses
/// the tokens between pairs, and dbeta.
template <class T>
__device__ void gradients_of_pairs(const DeltaChunk<T>& x, DeltaShared<T>& shared,
                                   const TileSum<T>& products, const TileSum<T>& lower_products,
                                   float (&dbeta)[TileSum<T>::kRows]) {
  TileSum<T> reads, keys;
  for (int k0 = 0; k0 < x.s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, x.q, 0, k0);
    load_tile(shared.b, x.k, 0, k0);
    tiles_ready();
    add_product<false, true>(reads, shared.a, shared.b);
    add_product<false, true>(keys, shared.b, shared.b);
  }
  const float scale = x.a.gradients.scale;
#pragma unroll
  for (int i = 0; i < TileSum<T>::kRows; ++i) {
#pragma unroll
    for (int c = 0; c < TileSum<T>::kColumns; ++c) {
      const int r = reads.row(i), j = reads.column(c);
      const float decay = j <= r ? shared.decays.pair(r, j) : 0.0f;
      const float below = j < r ? decay : 0.0f, beta = shared.beta[r];
      const float dread = products.at[i][c], dlower = -lower_products.at[i][c];
      const float of_beta = below * keys.at[i][c] * dlower;
      dbeta[i] += of_beta;
      shared.pairs.at(r, j) = scale * below * reads.at[i][c] * dread + beta * of_beta;
      shared.dreads.at(r, j) = from_float<T>(scale * decay * dread);
      shared.dlower.at(r, j) = from_float<T>(beta * below * dlower);
    }
  }
  TileSum<T>::sum_rows(dbeta, &shared.dbeta[0][0]);
  __syncthreads();
  sum_crossing_pairs(shared.pairs, shared.crossing);
  const int t = threadIdx.x;
  if (t < x.chunk.count) {
    x.a.dbeta[x.chunk.b * x.a.beta_batch + (x.chunk.begin + t) * x.a.beta_token +
              x.chunk.h * x.a.beta_head] = static_cast<float>(sum_parts(shared.dbeta, t));
  }
}

/// dq and dk of 64 rows of the state; q.dq and k.dk of what enters and of what leaves.
template <class T>
__device__ void gradients_of_keys(const DeltaChunk<T>& x, int k0, DeltaShared<T>& shared,
                                  float (&enters)[TileSum<T>::kRows],
                                  float (&leaves)[TileSum<T>::kRows]) {
  const GradientArgs<T>& g = x.a.gradients;
  TileSum<T> query, entering, leaving;  // dout S^T, dR S^T, U D'^T
  for (int v0 = 0; v0 < x.s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.a, x.dout, 0, v0);
    load_tile(shared.b, x.rows, 0, v0, [&](int t, int) { return shared.beta[t]; });
    load_tile(shared.c, x.written, 0, v0);
    load_tile(shared.d, x.state, k0, v0);
    load_tile(shared.e, x.costate, k0, v0);
    tiles_ready();
    add_product<false, true>(query, shared.a, shared.d);
    add_product<false, true>(entering, shared.b, shared.d);
    add_product<false, true>(leaving, shared.c, shared.e);
  }
  __syncthreads();
  load_tile(shared.a, x.q, 0, k0);
  load_tile(shared.b, x.k, 0, k0);
  tiles_ready();
  TileSum<T> dquery, dkey;
  add_product<false, false>(dquery, shared.dreads, shared.b);
  add_product<true, false>(dkey, shared.dreads, shared.a);
  add_product<false, false>(dkey, shared.dlower, shared.b);
  add_product<true, false>(dkey, shared.dlower, shared.b);
  const View<float> dq = g.dq.view(x.chunk.b, x.chunk.h, x.chunk.begin, x.chunk.count);
  const View<float> dk = g.dk.view(x.chunk.b, x.chunk.h, x.chunk.begin, x.chunk.count);
#pragma unroll
  for (int i = 0; i < TileSum<T>::kRows; ++i) {
    const int t = query.row(i);
    const float enter = shared.decays.enter(t), leave = shared.decays.leave(t);
#pragma unroll
    for (int c = 0; c < TileSum<T>::kColumns; ++c) {
      const int d = query.column(c);
      const float q = to_float(shared.a.at(t, d)), k = to_float(shared.b.at(t, d));
      const float read = g.scale * enter * query.at[i][c];
      const float removed = -enter * entering.at[i][c], wrote = leave * leaving.at[i][c];
      enters[i] += q * read + k * removed;
      leaves[i] += k * wrote;
      dquery.at[i][c] += read;
      dkey.at[i][c] += removed + wrote;
    }
  }
  store_to(dq, k0, dquery);
  store_to(dk, k0, dkey);
}

/// <S, D'>, as parts of the warps in shared.passing.
template <class T>
__device__ void load_passing(const DeltaChunk<T>& x, DeltaShared<T>& shared) {
  const int64_t size = static_cast<int64_t>(x.s.key_dim) * x.s.value_dim;
  float sum = 0;  // both matrices are contiguous
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    sum = fmaf(x.state.data[i], x.costate.data[i], sum);
  }
  sum = warp_reduce(sum, cuda::Sum{});
  if (threadIdx.x % kWarp == 0) shared.passing[threadIdx.x / kWarp] = sum;
}

/// dlog_decay; the rows' sums are there behind a barrier.
template <class T>
__device__ void store_dlog(const DeltaChunk<T>& x, const DeltaShared<T>& shared) {
  double through = 0;
  for (const float part : shared.passing) through += part;
  through *= shared.decays.through();
  double before[2];
  sums_before([&](int t) { return sum_parts(shared.leaves, t); },
              [&](int t, double sum) { before[t % 2] = sum; });
  sums_from([&](int t) { return sum_parts(shared.enters, t); },
            [&](int t, double sum) {
              if (t >= x.chunk.count) return;
              *x.a.gradients.dlog(x.chunk, t) =
                  static_cast<float>(shared.crossing[t] + sum + before[t % 2] + through);
            });
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gradients(const __grid_constant__ Shard s, const __grid_constant__ DeltaGradientArgs<T> a,
              const __grid_constant__ DeltaPiece<T> piece) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<DeltaShared<T>*>(memory);
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x), piece.range.first, piece.range.count);
  const int n = chunk.index - piece.range.first;
  const int64_t head = chunk.head(s);
  const auto rows = [&](const Rows<const T>& x) {
    return x.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  };
  const DeltaChunk<T> x{s,
                        a,
                        chunk,
                        rows(a.gradients.q),
                        rows(a.gradients.k),
                        rows(a.gradients.v),
                        rows(a.gradients.dout),
                        a.entering.view(s, head, chunk.index),
                        a.leaving.view(s, head, n),
                        piece.rows.view(head, n),
                        piece.solution.view(head, n),
                        piece.written.view(head, n)};
  shared.decays.load(s, chunk);
  load_beta(s, chunk, shared.beta);
  TileSum<T> products, lower_products;
  float dbeta[TileSum<T>::kRows] = {};
  gradients_of_rows(x, shared, products, lower_products, dbeta);
  gradients_of_pairs(x, shared, products, lower_products, dbeta);
  float enters[TileSum<T>::kRows] = {}, leaves[TileSum<T>::kRows] = {};
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    gradients_of_keys(x, k0, shared, enters, leaves);
  }
  TileSum<T>::sum_rows(enters, &shared.enters[0][0]);
  TileSum<T>::sum_rows(leaves, &shared.leaves[0][0]);
  load_passing(x, shared);
  __syncthreads();
  store_dlog(x, shared);
}

}  // namespace

template <class T>
void delta_gradients(const Shard& s, int64_t heads, const DeltaGradientArgs<T>& args,
                     const DeltaPiece<T>& piece, Stream& stream) {
  launch(gradients<T>, heads * piece.range.count, sizeof(DeltaShared<T>), stream, s, args, piece);
}

template void delta_gradients(const Shard&, int64_t, const DeltaGradientArgs<float>&,
                              const DeltaPiece<float>&, Stream&);
template void delta_gradients(const Shard&, int64_t, const DeltaGradientArgs<bf16>&,
                              const DeltaPiece<bf16>&, Stream&);

}  // namespace weft::cuda::state
