#include "launch/quantity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
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

/// "32k"; 0 when it is no length.
int64_t length_of(std::string_view text) {
  constexpr int64_t kMost = 1000000000;  // as many as data.seq_length takes
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number);
  const std::string_view rest(at, end);
  const int64_t unit = rest.empty() ? 1 : rest == "k" ? 1 << 10 : rest == "M" ? 1 << 20 : 0;
  const bool fine = error == std::errc() && number > 0 && unit > 0 && number <= kMost / unit;
  return fine ? number * unit : 0;
}

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

std::vector<int64_t> parse_lengths(const std::string& flag, const std::string& text) {
  std::set<int64_t> lengths;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, comma - begin);
    const size_t dots = item.find("..");
    const int64_t first = length_of(item.substr(0, dots));
    const int64_t last = dots == std::string::npos ? first : length_of(item.substr(dots + 2));
    WEFT_REQUIRE(first > 0 && last > 0, ExitCode::usage, flag,
                 ": expected lengths from 1 to 1000000000 as 4096, 32k (k = 1024), 1M (M = 1024^2) "
                 "or 32k..1M, got ",
                 quote(item));
    int64_t tokens = first;
    for (; tokens < last; tokens *= 2) lengths.insert(tokens);
    WEFT_REQUIRE(tokens == last, ExitCode::usage, flag,
                 ": expected a range whose end is its start doubled some times, got ", quote(item));
    lengths.insert(last);
    begin = comma + 1;
  }
  return {lengths.begin(), lengths.end()};
}

std::string gib_text(int64_t bytes) {
  return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace weft
