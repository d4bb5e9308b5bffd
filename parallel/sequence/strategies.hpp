// The table of sequence strategies. A new one is a file that defines its maker and a line in
// strategies.cpp.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "parallel/sequence/attention_parallel.hpp"

namespace weft {

struct AttentionStrategy {
  const char* name;     // as in sequence.attention
  const char* summary;  // one line for `weft strategies`
  std::unique_ptr<AttentionParallel> (*make)();
};

std::span<const AttentionStrategy> attention_strategies();

/// The strategy of that name; "auto" is the one that sends fewest bytes. Throws Error(config).
const AttentionStrategy& attention_strategy(std::string_view name);

/// What layers of sliding windows always take, whatever sequence.attention says.
std::unique_ptr<AttentionParallel> make_halo_attention();

// Makers, one a file.
std::unique_ptr<AttentionParallel> make_ring_attention();

}  // namespace weft
