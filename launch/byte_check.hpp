#pragma once

#include <cstdint>
#include <map>

#include "parallel/comm/ledger.hpp"

namespace weft {

using SentBytes = std::map<Ledger::Key, int64_t>;

/// Compares what the meta device predicted, what the communicators booked and what the transports
/// counted in a step, key by key; an absent key is zero. Throws Error(comparison) naming the first
/// key that differs.
void check_sent_bytes(int64_t step, const SentBytes& planned, const SentBytes& booked,
                      const SentBytes& counted);

}  // namespace weft
