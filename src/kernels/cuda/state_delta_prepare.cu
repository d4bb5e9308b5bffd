#include "src/kernels/cuda/state_delta.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct PrepareShared {
  TokenDecays decays;
  float beta[kTile];
  Tile<float> lower, inverse;
  Tile<T> a, b, c;
  Tile<T> solution;
};

/// inverse = (I + lower)^-1, lower strictly so; what lies above its diagonal is used up. Blocks of
/// 16 on the diagonal by substitution, those below it by X_IJ = -X_II sum of L_IM X_MJ over J <= M
/// < I. All threads call it, behind a barrier; it ends with one.
__device__ inline void invert(Tile<float>& lower, Tile<float>& inverse) {
  const int y = static_cast<int>(threadIdx.x) / kBlock, x = threadIdx.x % kBlock;
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    inverse.at(i / kTile, i % kTile) = 0;
  }
  __syncthreads();
  if (threadIdx.x < kTile) {  // a thread a column
    const int begin = y * kBlock;
    float column[kBlock];
#pragma unroll
    for (int r = 0; r < kBlock; ++r) {
      float sum = r == x ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < r; ++j) sum = fmaf(-lower.at(begin + r, begin + j), column[j], sum);
      column[r] = sum;
      inverse.at(begin + r, begin + x) = sum;
    }
  }
  __syncthreads();
  for (int below = 1; below < kBlocks; ++below) {
    for (int J = 0; J + below < kBlocks; ++J) {
      const int I = J + below;
      float sum = 0;
      for (int m = J * kBlock; m < I * kBlock; ++m) {
        sum = fmaf(lower.at(I * kBlock + y, m), inverse.at(m, J * kBlock + x), sum);
      }
      lower.at(J * kBlock + y, I * kBlock + x) = sum;
    }
    __syncthreads();
    for (int J = 0; J + below < kBlocks; ++J) {
      const int I = J + below;
      float sum = 0;
      for (int m = 0; m < kBlock; ++m) {
        sum = fmaf(-inverse.at(I * kBlock + y, I * kBlock + m),
                   lower.at(J * kBlock + m, I * kBlock + x), sum);
      }
      inverse.at(I * kBlock + y, J * kBlock + x) = sum;
    }
    __syncthreads();
  }
}

/// Decays, beta and (I + L)^-1 of a chunk.
template <class T>
__device__ void load_inverse(const Shard& s, const View<const T>& k, const ChunkOf& chunk,
                             PrepareShared<T>& shared) {
  shared.decays.load(s, chunk);
  load_beta(s, chunk, shared.beta);
  TileSum<T> keys;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, k, 0, k0);
    tiles_ready();
    add_product<false, true>(keys, shared.a, shared.a);
  }
  for_each(keys, [&](int r, int j, float value) {
    shared.lower.at(r, j) = j < r ? shared.beta[r] * shared.decays.pair(r, j) * value : 0.0f;
  });
  __syncthreads();
  invert(shared.lower, shared.inverse);
}

/// out[:, column0...] = the tile.
template <class T>
__device__ void store_tile(const Tile<T>& tile, const View<T>& out, int column0) {
  for_quads([&](int row, int column) {
    *reinterpret_cast<Pack<T, 4>*>(&out.at(row, column0 + column)) =
        load_pack<4>(&tile.at(row, column));
  });
}

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    prepare(const __grid_constant__ Shard s, const __grid_constant__ DeltaInputs<T> in,
            const __grid_constant__ DeltaPiece<T> piece) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<PrepareShared<T>*>(memory);
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x), piece.range.first, piece.range.count);
  const int n = chunk.index - piece.range.first;
  const int64_t head = chunk.head(s);
  const View<const T> k = in.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> v = in.v.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  load_inverse(s, k, chunk, shared);
  for_quads([&](int r, int column) {
#pragma unroll
    for (int j = column; j < column + 4; ++j) {
      shared.solution.at(r, j) = from_float<T>(shared.inverse.at(r, j) * shared.beta[j]);
    }
  });
  const View<T> reads = piece.reads.view(head, n), writes = piece.writes.view(head, n);
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, k, 0, k0, [&](int t, int) { return -shared.decays.enter(t); });
    load_tile(shared.b, k, 0, k0, [&](int t, int) { return shared.decays.leave(t); });
    tiles_ready();
    TileSum<T> sum;
    add_product<false, false>(sum, shared.solution, shared.a);
    store_to(reads, k0, sum);
    store_tile(shared.b, writes, k0);
  }
  const View<float> rows = piece.rows.view(head, n);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.a, v, 0, v0);
    tiles_ready();
    TileSum<T> sum;
    add_product<false, false>(sum, shared.solution, shared.a);
    store_to(rows, v0, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    prepare_backward(const __grid_constant__ Shard s, const __grid_constant__ DeltaInputs<T> in,
                     const __grid_constant__ DeltaPiece<T> piece) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<PrepareShared<T>*>(memory);
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x), piece.range.first, piece.range.count);
  const int n = chunk.index - piece.range.first;
  const int64_t head = chunk.head(s);
  const View<const T> q = in.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = in.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> dout = in.dout.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  load_inverse(s, k, chunk, shared);
  const View<T> solution = piece.solution.view(head, n);
  for_quads([&](int r, int column) {
#pragma unroll
    for (int j = column; j < column + 4; ++j) {
      solution.at(r, j) = from_float<T>(shared.inverse.at(r, j) * shared.beta[j]);
      shared.solution.at(r, j) = from_float<T>(shared.inverse.at(r, j));  // without beta
    }
  });
  TileSum<T> scores;
  const View<T> reads = piece.reads.view(head, n), writes = piece.writes.view(head, n);
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, q, 0, k0);
    load_tile(shared.b, k, 0, k0);
    tiles_ready();
    add_product<false, true>(scores, shared.a, shared.b);
    __syncthreads();
    load_tile(shared.a, k, 0, k0, [&](int t, int) { return shared.decays.leave(t); });
    load_tile(shared.b, k, 0, k0,
              [&](int t, int) { return -shared.beta[t] * shared.decays.enter(t); });
    tiles_ready();
    TileSum<T> sum;
    add_product<true, false>(sum, shared.solution, shared.a);
    store_to(reads, k0, sum);
    store_tile(shared.b, writes, k0);
  }
  for_each(scores, [&](int r, int j, float value) {
    shared.c.at(r, j) = from_float<T>(j <= r ? in.scale * shared.decays.pair(r, j) * value : 0.0f);
  });
  const View<float> rows = piece.rows.view(head, n);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(shared.a, dout, 0, v0);
    tiles_ready();
    TileSum<T> received;  // dU of the chunk's own outputs
    add_product<true, false>(received, shared.c, shared.a);
    for_each(received,
             [&](int r, int d, float value) { shared.b.at(r, d) = from_float<T>(value); });
    __syncthreads();
    TileSum<T> sum;
    add_product<true, false>(sum, shared.solution, shared.b);
    store_to(rows, v0, sum);
  }
}

}  // namespace

template <class T>
void prepare_delta(const Shard& s, int64_t heads, const DeltaInputs<T>& in,
                   const DeltaPiece<T>& piece, Stream& stream) {
  launch(prepare<T>, heads * piece.range.count, sizeof(PrepareShared<T>), stream, s, in, piece);
}

template <class T>
void prepare_delta_backward(const Shard& s, int64_t heads, const DeltaInputs<T>& in,
                            const DeltaPiece<T>& piece, Stream& stream) {
  launch(prepare_backward<T>, heads * piece.range.count, sizeof(PrepareShared<T>), stream, s, in,
         piece);
}

template void prepare_delta(const Shard&, int64_t, const DeltaInputs<float>&,
                            const DeltaPiece<float>&, Stream&);
template void prepare_delta(const Shard&, int64_t, const DeltaInputs<bf16>&,
                            const DeltaPiece<bf16>&, Stream&);
template void prepare_delta_backward(const Shard&, int64_t, const DeltaInputs<float>&,
                                     const DeltaPiece<float>&, Stream&);
template void prepare_delta_backward(const Shard&, int64_t, const DeltaInputs<bf16>&,
                                     const DeltaPiece<bf16>&, Stream&);

}  // namespace weft::cuda::state
