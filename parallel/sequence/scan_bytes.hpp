// Closed forms of what a state scan sends and how often it calls, from docs/sequence.md: by
// position, which counts from the end that nothing enters. No scan reads them: what they send is
// held to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "parallel/sequence/strategies.hpp"

namespace weft {

/// Bytes of one shard's state and of its transition.
struct ScanByteShape {
  int ranks;
  int64_t state, transition;
  int64_t map() const { return state + transition; }
};

inline int default_group(int ranks) {
  return static_cast<int>(std::lround(std::sqrt(ranks)));
}

/// Of lasp and of zeco, whatever the number of blocks.
inline int64_t chain_bytes(const ScanByteShape& s, int position) {
  return position + 1 < s.ranks ? s.state : 0;
}

inline int64_t lasp2_bytes(const ScanByteShape& s, int) {
  return (s.ranks - 1) * s.map();
}

inline int64_t doubling_bytes(const ScanByteShape& s, int position) {
  int64_t sent = 0;
  for (int distance = 1; position + distance < s.ranks; distance *= 2) {
    sent += position < distance ? s.state : s.map();
  }
  return sent;
}

inline int64_t two_level_bytes(const ScanByteShape& s, int position, int group) {
  const int first = position / group * group;
  const int leader = std::min(first + group, s.ranks) - 1;
  int64_t sent = (leader - position) * (position == 0 ? s.state : s.map());
  if (position == leader && leader + 1 < s.ranks) sent += s.state;
  if (position == leader && first > 0) sent += (leader - first) * s.state;
  return sent;
}

/// ceil(log2 P)
inline int doubling_rounds(int ranks) {
  int rounds = 0;
  while (1 << rounds < ranks) ++rounds;
  return rounds;
}

/// Of the scan of that name in the table. Throws Error(internal) where none is known.
int64_t scan_bytes(std::string_view scan, const ScanByteShape& s, int position,
                   const StateScanOptions& options);

}  // namespace weft
