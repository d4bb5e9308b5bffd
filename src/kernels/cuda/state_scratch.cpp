#include "src/kernels/cuda/state_scratch.hpp"

#include <algorithm>

#include "src/kernels/slab.hpp"

namespace weft::cuda::state {

bool in_segments(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim) {
  constexpr int64_t kWidest = 128;  // a state of more does not fit into a block's registers
  return kind != StateKind::delta && dtype == DType::bf16 && key_dim <= kWidest &&
         value_dim <= kWidest;
}

bool whole_in_segments(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim) {
  return kind != StateKind::vector && in_segments(kind, dtype, key_dim, value_dim);
}

Segments Segments::of(const StateShape& shape) {
  constexpr int64_t kBlocks = 512, kShortest = 16;
  const int64_t chunks = state_chunks(shape.tokens), heads = shape.batch * shape.heads;
  Segments s;
  s.chunks = std::max((chunks * heads + kBlocks - 1) / kBlocks, kShortest);
  s.count = std::max<int64_t>((chunks + s.chunks - 1) / s.chunks, 1);
  return s;
}

std::optional<HandedStates> chunk_states_of(StateKind kind, DType dtype, const StateShape& shape) {
  if (in_segments(kind, dtype, shape.key_dim, shape.value_dim)) {
    // One segment adds what the shard does, which nobody asks for again.
    const int64_t count = Segments::of(shape).count;
    if (count == 1) return {};
    return HandedStates{count, DType::f32};
  }
  if (kind != StateKind::vector) return {};  // the carry makes them on its way
  return HandedStates{state_chunks(shape.tokens), DType::f32};
}

std::optional<HandedStates> entering_states_of(StateKind kind, DType dtype,
                                               const StateShape& shape) {
  const bool whole = whole_in_segments(kind, dtype, shape.key_dim, shape.value_dim);
  if (whole && kind != StateKind::scalar) return {};  // read for the gradients of decays alone
  return HandedStates{state_chunks(shape.tokens), whole ? dtype : DType::f32};
}

Scratch::Scratch(std::byte* memory, StateKind kind, DType dtype, const StateShape& shape) {
  if (in_segments(kind, dtype, shape.key_dim, shape.value_dim)) {
    take_segments(memory, kind, shape);
    return;
  }
  const int64_t chunks = std::max<int64_t>(state_chunks(shape.tokens), 1);
  take(nullptr, kind, dtype, shape);  // a piece of one chunk
  const int64_t of_one = bytes;
  piece = 2;
  take(nullptr, kind, dtype, shape);
  const int64_t of_a_chunk = std::max<int64_t>(bytes - of_one, 1);
  piece = std::clamp<int64_t>(kPieceBytes / of_a_chunk, 1, chunks);
  take(memory, kind, dtype, shape);
}

void Scratch::take_segments(std::byte* memory, StateKind kind, const StateShape& shape) {
  Slab slab(memory);
  const int64_t heads = shape.batch * shape.heads, chunks = heads * state_chunks(shape.tokens);
  segments = Segments::of(shape);
  const bool lanes = kind == StateKind::vector;
  const int64_t of_all = heads * segments.count, width = lanes ? shape.key_dim : 1;
  logs = slab.take<double>(chunks * width);
  segment_logs = slab.take<double>(of_all * width);
  segment_states = slab.take<float>(of_all * shape.key_dim * shape.value_dim);
  if (!lanes) places = slab.take<float>(chunks * kStateChunk * 2);
  if (kind == StateKind::scalar) {
    decay_parts = slab.take<float>(chunks * kStateChunk * 2);
    passing = slab.take<float>(chunks);
  }
  bytes = slab.used();
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
