// Numbers as flags take them, with units: 40GiB, 100GFLOP/s, 10us; or of tokens: 32k..1M. And as
// lines say them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

/// The value of `text` in `unit`: a decimal number >= 0, a prefix (n u m k M G T P, or the binary
/// Ki Mi Gi Ti) or none, and the unit. Throws Error(usage), naming `flag`.
double parse_quantity(const std::string& flag, const std::string& text, const std::string& unit);

/// Lengths of sequences in tokens, ascending, each once: a list of lengths and of ranges that
/// double, "4096,32k..1M", where k is 1024 and M 1024^2. The end of a range is its start doubled
/// some times. Throws Error(usage), naming `flag`.
std::vector<int64_t> parse_lengths(const std::string& flag, const std::string& text);

/// "1.500 GiB"
std::string gib_text(int64_t bytes);

}  // namespace weft
