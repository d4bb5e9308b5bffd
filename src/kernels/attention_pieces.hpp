// Masks of a block as rectangles: what a library's attention can be asked for.
#pragma once

#include <cstdint>
#include <vector>

#include "src/kernels/attention.hpp"

namespace weft {

/// Queries [q_begin, q_end) of a block against its keys [k_begin, k_end), under one of three masks.
struct AttentionPiece {
  enum class Mask {
    full,    // every query sees every key
    causal,  // the last query sees up to the last key, each one before it one key less
    upper,   // query i of the piece sees the keys from the i-th on
  };
  int64_t q_begin, q_end, k_begin, k_end;
  Mask mask;
  int64_t window = 0;  // with `causal`: at most so many keys up to a query's last one; 0: all

  int64_t queries() const { return q_end - q_begin; }
  int64_t keys() const { return k_end - k_begin; }
  bool operator==(const AttentionPiece&) const = default;
};

/// The pieces of a block of `queries` and of `keys` from the global index `first_key` on: each pair
/// that `band` leaves is in one of them, and no other is. Every query of a piece sees some key of
/// it, and every key of it is seen. At most three.
std::vector<AttentionPiece> pieces_of(const BandMask& band, int64_t queries, int64_t first_key,
                                      int64_t keys);

}  // namespace weft
