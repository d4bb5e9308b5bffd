// Numbers with units, as flags take them: 40GiB, 100GFLOP/s, 10us.
#pragma once

#include <string>

namespace weft {

/// The value of `text` in `unit`: a decimal number >= 0, a prefix (n u m k M G T P, or the binary
/// Ki Mi Gi Ti) or none, and the unit. Throws Error(usage), naming `flag`.
double parse_quantity(const std::string& flag, const std::string& text, const std::string& unit);

}  // namespace weft
