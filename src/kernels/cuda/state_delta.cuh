// The gated delta rule in chunks, as src/kernels/cpu/state_delta.cpp has it. What does not depend
// on the state is prepared for many chunks at once; with X = (I + L)^-1 the serial part is,
// forward,
//   U = X (beta o v) - X (beta o enter o k) S        S' = through S + (leave o k)^T U
// and backward, with Y = X^T dU and dR = beta o Y,
//   Y = X^T P^T dout + X^T (leave o k) D'
//   D = through D' + (enter o scale q)^T dout - (beta o enter o k)^T Y
// both of the one form
//   rows = rows + reads S                            S' = through S + added + writes^T rows.
#pragma once

#include "src/kernels/cuda/state_carry.cuh"
#include "src/kernels/cuda/state_gradients.cuh"

namespace weft::cuda::state {

/// What is kept of the chunks of a piece: [B H, piece, 64, width] with the tokens as rows, widths
/// padded with zeros to whole tiles.
template <class E>
struct PieceRows {
  E* data;
  int64_t head;  // stride from head to head
  int width;

  static PieceRows of(void* memory, int64_t piece, int width) {
    width = tiles_of(width) * kTile;
    return {static_cast<E*>(memory), piece * kTile * width, width};
  }
  /// Of the n-th chunk of the piece.
  __device__ View<E> view(int64_t bh, int n) const {
    return {data + bh * head + static_cast<int64_t>(n) * kTile * width, width, kTile, width, true};
  }
};

template <class T>
struct DeltaPiece {
  PieceRows<T> reads, writes;
  PieceRows<float> rows;
  PieceRows<T> solution;  // X diag(beta)
  PieceRows<T> written;   // U
  CarryRange range;
};

template <class T>
struct DeltaInputs {
  Rows<const T> q, k, v, dout;  // q and dout of the passes that have them
  float scale;
};

/// reads, writes and rows of the forward.
template <class T>
void prepare_delta(const Shard& s, int64_t heads, const DeltaInputs<T>& in,
                   const DeltaPiece<T>& piece, Stream& stream);
/// Those of the backward, and the solution.
template <class T>
void prepare_delta_backward(const Shard& s, int64_t heads, const DeltaInputs<T>& in,
                            const DeltaPiece<T>& piece, Stream& stream);

/// The columns of one matrix that is carried over the chunks of a piece.
struct DeltaColumns {
  int width = 0;                 // none: nothing is carried
  bool with_rows = false;        // else they are 0
  bool keep_rows = false;        // they are stored where they came from
  const float* start = nullptr;  // [B H, K, width]; null: 0, or I with `identity`
  bool identity = false;
  float* end = nullptr;              // null: not wanted
  bool transposed = false;           // `end` gets the transpose
  ChunkMatrices<const float> added;  // null: 0
  ChunkMatrices<float> before;       // gets the state before each chunk; null: not wanted
};

/// The state (or its gradient) and the transition at once. K is at most kDeltaKeys.
inline constexpr int kDeltaKeys = 256;
template <class T>
void carry_delta(const Shard& s, int64_t heads, ChunkLogs logs, const DeltaPiece<T>& piece,
                 const DeltaColumns& state, const DeltaColumns& transition, Stream& stream);

template <class T>
struct DeltaGradientArgs {
  GradientArgs<T> gradients;
  float* dbeta;
  int64_t beta_batch, beta_token, beta_head;  // strides
  ChunkMatrices<const float> entering;        // of the shard
  ChunkMatrices<const float> leaving;         // D' of the piece
};
/// All gradients, with Y in piece.rows.
template <class T>
void delta_gradients(const Shard& s, int64_t heads, const DeltaGradientArgs<T>& args,
                     const DeltaPiece<T>& piece, Stream& stream);

/// beta of the tokens of a chunk, 0 past its end, by the first 64 threads.
__device__ inline void load_beta(const Shard& s, const ChunkOf& chunk, float (&beta)[kTile]) {
  const int t = threadIdx.x;
  if (t >= kTile) return;
  beta[t] = t < chunk.count ? s.beta[chunk.b * s.beta_batch + (chunk.begin + t) * s.beta_token +
                                     chunk.h * s.beta_head]
                            : 0.0f;
}

}  // namespace weft::cuda::state
