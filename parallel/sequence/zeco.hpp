// How All-Scan cuts a state into blocks. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

namespace weft {

/// States [first, last) of [R, K, V], columns [v_begin, v_end) of V.
struct StateBlock {
  int64_t first, last;
  int64_t v_begin, v_end;
  bool operator==(const StateBlock&) const = default;
};

/// [R, K, V] in `blocks` pieces, at least 1 and at most R V: whole states as long as there are
/// enough, columns of one state beyond that. K is never cut: dense transitions mix its rows.
std::vector<StateBlock> state_blocks(int64_t R, int64_t V, int64_t blocks);

/// The number of blocks with the shortest chain. Over P ranks it takes
/// (P - 2 + n) (a + S / (n w)) seconds for n blocks of a state of S bytes, a being a message's
/// latency and w a link's bytes a second: n = sqrt((P - 2) S / (a w)).
int64_t shortest_chain_blocks(int ranks, int64_t state_bytes);

}  // namespace weft
