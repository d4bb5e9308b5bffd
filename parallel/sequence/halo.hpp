// Which tokens cross ranks when a query sees only a window of keys: a pure function of the cuts and
// the window.
#pragma once

#include <cstdint>
#include <vector>

#include "src/core/shard.hpp"

namespace weft {

/// Tokens [begin, end) of the sequence, never none, that travel between a rank and `peer`.
struct HaloPiece {
  int peer;
  int64_t begin, end;

  int64_t tokens() const { return end - begin; }
  bool operator==(const HaloPiece&) const = default;
};

/// What `rank` receives: the window - 1 tokens before its first, or as many as there are, from
/// their owners in ascending order. A rank without tokens has no queries and receives nothing.
std::vector<HaloPiece> halo_pieces(const Cuts& cuts, int64_t window, int rank);

/// What `rank` sends: its part of the halo of every later rank, in ascending order. Each piece ends
/// with the shard, and none is longer than the first.
std::vector<HaloPiece> halo_sends(const Cuts& cuts, int64_t window, int rank);

}  // namespace weft
