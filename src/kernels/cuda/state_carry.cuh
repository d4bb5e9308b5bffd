// The one serial part of the diagonal kinds: the state, or its gradient, from chunk to chunk.
#pragma once

#include "src/kernels/cuda/state_shard.cuh"

namespace weft::cuda::state {

/// Where chunks keep a [K, V] matrix each: [B H, chunks, K, V], from its chunk `first` on.
template <class T>
struct ChunkMatrices {
  T* data = nullptr;
  int64_t head = 0;    // stride from head to head
  bool packs = false;  // as in View

  static ChunkMatrices of(T* data, const Shard& s, int64_t chunks, int64_t first = 0) {
    const int64_t matrix = static_cast<int64_t>(s.key_dim) * s.value_dim;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    return {data + first * matrix, chunks * matrix, aligned && s.value_dim % kPack<T> == 0};
  }
  /// Of the n-th chunk of the range.
  __device__ View<T> view(const Shard& s, int64_t bh, int n) const {
    const int64_t matrix = static_cast<int64_t>(s.key_dim) * s.value_dim;
    return {data + bh * head + n * matrix, s.value_dim, s.key_dim, s.value_dim, packs};
  }
};

/// [B H, chunks, lanes]: the log of the decay over each chunk, -inf where something resets.
struct ChunkLogs {
  double* data;

  __device__ double at(const Shard& s, int64_t bh, int chunk, int lane) const {
    return data[(bh * s.chunks + chunk) * s.lanes + lane];
  }
};

void chunk_logs(const Shard& s, int64_t heads, ChunkLogs logs, Stream& stream);

/// Sums of the logs over all chunks: the shard's transition [B H, lanes].
void transition(const Shard& s, int64_t heads, ChunkLogs logs, float* out, Stream& stream);

/// Chunks [first, first + count), in order or from the last to the first.
struct CarryRange {
  int first, count;
  bool backwards;
};

/// What each chunk writes to the state, or sends back to its gradient: (decay o alpha x)^T y, [K,
/// V], decayed to the chunk's end (`leaving`) or from its start.
template <class T>
struct ChunkProducts {
  Rows<const T> x, y;
  float alpha;
  bool leaving;
};

template <class T>
ChunkProducts<T> added_by_keys(const StateTokens& tokens) {
  return {Rows<const T>::of(tokens.k), Rows<const T>::of(tokens.v), 1.0f, true};
}
template <class T>
ChunkProducts<T> added_by_queries(const Tensor& q, const Tensor& dout, double scale) {
  return {Rows<const T>::of(q), Rows<const T>::of(dout), static_cast<float>(scale), false};
}
inline float* optional_f32(const Tensor& t) {
  return t ? elements<float>(t) : nullptr;
}

/// For each chunk: before = state, then state = decay o state + added. `before` may be `added`
/// itself. Null `start` is 0, null `end` is not wanted; they are [B H, K, V] and may be one.
template <class T>
void carry(const Shard& s, int64_t heads, ChunkLogs logs, CarryRange range,
           ChunkMatrices<const float> added, ChunkMatrices<T> before, const float* start,
           float* end, Stream& stream);
/// The products of the chunks of a range, which that adds up.
template <class T>
void write_chunks(const Shard& s, int64_t heads, const ChunkProducts<T>& products,
                  ChunkMatrices<float> out, CarryRange range, Stream& stream);

/// Both at once for kinds with one decay a token: nothing of what is added goes through memory.
/// Null `before` is not wanted. `decays` [B H, range, 64] are the products' decays times alpha.
template <class T>
void chain_decays(const Shard& s, int64_t heads, const ChunkProducts<T>& products, CarryRange range,
                  float* decays, Stream& stream);
template <class T, class E>
void chain_states(const Shard& s, int64_t heads, ChunkLogs logs, const ChunkProducts<T>& products,
                  const float* decays, CarryRange range, ChunkMatrices<E> before,
                  const float* start, float* end, Stream& stream);

}  // namespace weft::cuda::state
