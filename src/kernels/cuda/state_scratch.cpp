#include "src/kernels/cuda/state_scratch.hpp"

#include <algorithm>

#include "src/kernels/slab.hpp"

namespace weft::cuda::state {

Scratch::Scratch(std::byte* memory, StateKind kind, DType dtype, const StateShape& shape) {
  const int64_t chunks = std::max<int64_t>(state_chunks(shape.tokens), 1);
  take(nullptr, kind, dtype, shape);  // a piece of one chunk
  const int64_t of_one = bytes;
  piece = 2;
  take(nullptr, kind, dtype, shape);
  const int64_t of_a_chunk = std::max<int64_t>(bytes - of_one, 1);
  piece = std::clamp<int64_t>(kPieceBytes / of_a_chunk, 1, chunks);
  take(memory, kind, dtype, shape);
}

void Scratch::take(std::byte* memory, StateKind kind, DType dtype, const StateShape& shape) {
  Slab slab(memory);
  const auto& [batch, tokens, sequence_heads, K, V] = shape;
  const int64_t heads = batch * sequence_heads, element = size_of(dtype);
  const bool delta = kind == StateKind::delta, lanes = kind == StateKind::vector;
  logs = slab.take<double>(heads * state_chunks(tokens) * (lanes ? K : 1));
  state = slab.take<float>(heads * K * V);
  const int64_t kept = heads * piece;
  if (!delta && !lanes) decays = slab.take<float>(kept * kStateChunk);
  states = slab.take<std::byte>(kept * K * V * (delta ? int64_t{sizeof(float)} : element));
  if (delta) {
    transition = slab.take<float>(heads * K * K);
    reads = slab.take<std::byte>(kept * kStateChunk * padded(K) * element);
    writes = slab.take<std::byte>(kept * kStateChunk * padded(K) * element);
    rows = slab.take<float>(kept * kStateChunk * padded(V));
    solution = slab.take<std::byte>(kept * kStateChunk * kStateChunk * element);
    written = slab.take<std::byte>(kept * kStateChunk * padded(V) * element);
  }
  bytes = slab.used();
}

}  // namespace weft::cuda::state
