// What the CUDA twins of the state mixers keep in scratch and hand from pass to pass. Part of every
// build, so that each can say what a call on a GPU will need.
#pragma once

#include "src/kernels/state_mixer.hpp"

namespace weft::cuda::state {

/// What chunks need is kept for a *piece* of the shard at a time, which bounds it to about this
/// many bytes whatever the shard's length.
inline constexpr int64_t kPieceBytes = int64_t{128} << 20;

/// Rows of the delta kind are padded with zeros to whole tiles of 64.
inline constexpr int64_t padded(int64_t width) {
  return (width + kStateChunk - 1) / kStateChunk * kStateChunk;
}

/// Whether a GPU takes a shard in segments: a diagonal kind in bf16.
bool in_segments(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim);

/// Whether what comes from pairs inside a chunk is then made with the rest: of one decay a token.
/// state_local leaves everything to state_apply, state_backward_local makes dq and
/// state_backward_apply dk and dv, all whole. Between these two dlog_decay holds what each token
/// reads of the states.
bool whole_in_segments(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim);

/// The segments of a shard, which the shape alone decides: enough of them to keep a GPU busy, and
/// long enough that what each of them adds is little to read and write.
struct Segments {
  int64_t count = 1, chunks = 16;  // of each but the last; an empty shard is one

  static Segments of(const StateShape& shape);
};

/// As those of src/kernels/state_mixer.hpp, chunk_states_of for diagonal kinds.
std::optional<HandedStates> chunk_states_of(StateKind kind, DType dtype, const StateShape& shape);
std::optional<HandedStates> entering_states_of(StateKind kind, DType dtype,
                                               const StateShape& shape);

/// Arrays of one call; null without memory. Elements are of the data's type, and so are the arrays
/// of bytes.
struct Scratch {
  Scratch(std::byte* memory, StateKind kind, DType dtype, const StateShape& shape);

  int64_t piece = 1;            // chunks
  double* logs = nullptr;       // [B H, chunks, lanes]: of the decay over each chunk
  float* decays = nullptr;      // [B H, piece, 64]: of the tokens; for none, fixed and scalar
  float* state = nullptr;       // [B H, K, V]: what one piece hands to the next
  std::byte* states = nullptr;  // [B H, piece, K, V]: of the chunks; elements, for delta f32
  // In segments
  Segments segments;
  float* places = nullptr;          // [B H, chunks, 64, 2]: of the tokens (ChunkPlaces)
  double* segment_logs = nullptr;   // [B H, segments, lanes]: of the decay over each
  float* segment_states = nullptr;  // [B H, segments, K, V]
  float* decay_parts = nullptr;     // [B H, chunks, 64, 2], and
  float* passing = nullptr;         // [B H, chunks] (DecayParts)
  // Delta, with the tokens of a chunk as rows, K and V padded
  float* transition = nullptr;    // [B H, K, K] (not padded): as `state`
  std::byte* reads = nullptr;     // [B H, piece, 64, K]: what multiplies the state
  std::byte* writes = nullptr;    // [B H, piece, 64, K]: transposed, what writes to it
  float* rows = nullptr;          // [B H, piece, 64, V]: what is written
  std::byte* solution = nullptr;  // [B H, piece, 64, 64]: (I + L)^-1 diag(beta)
  std::byte* written = nullptr;   // [B H, piece, 64, V]: U
  int64_t bytes = 0;

 private:
  void take_segments(std::byte* memory, StateKind kind, const StateShape& shape);
  void take(std::byte* memory, StateKind kind, DType dtype, const StateShape& shape);
};

}  // namespace weft::cuda::state
