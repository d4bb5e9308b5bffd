#include "launch/quantity.hpp"

#include <charconv>
#include <cmath>
#include <map>
#include <string_view>

#include "launch/quote.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace {

const std::map<std::string_view, double> kPrefixes{{"", 1},
                                                   {"n", 1e-9},
                                                   {"u", 1e-6},
                                                   {"m", 1e-3},
                                                   {"k", 1e3},
                                                   {"M", 1e6},
                                                   {"G", 1e9},
                                                   {"T", 1e12},
                                                   {"P", 1e15},
                                                   {"Ki", 1024.0},
                                                   {"Mi", 1 << 20},
                                                   {"Gi", 1 << 30},
                                                   {"Ti", 1099511627776.0}};

}  // namespace

double parse_quantity(const std::string& flag, const std::string& text, const std::string& unit) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number, std::chars_format::general);
  const std::string_view rest(at, end);
  const auto prefix = rest.ends_with(unit)
                          ? kPrefixes.find(rest.substr(0, rest.size() - unit.size()))
                          : kPrefixes.end();
  const bool fine = error == std::errc() && std::isfinite(number) && number >= 0 &&
                    !std::signbit(number) && prefix != kPrefixes.end();
  WEFT_REQUIRE(fine, ExitCode::usage, flag, ": expected a number and the unit ", unit,
               ", with a prefix (n u m k M G T P Ki Mi Gi Ti) or without, got ", quote(text));
  return number * prefix->second;
}

}  // namespace weft
