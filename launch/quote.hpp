// Words from a user's file, safe inside a one-line message.
#pragma once

#include <string>
#include <string_view>

namespace weft {

/// `text` between quote marks: control characters as \xNN, and the end of a long text cut off where
/// no UTF-8 character is split.
inline std::string quote(std::string_view text, char mark = '\'') {
  constexpr size_t kLongest = 60;  // bytes
  constexpr char kHex[] = "0123456789abcdef";
  const bool cut = text.size() > kLongest;
  if (cut) {
    size_t end = kLongest;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end);
  }
  std::string out(1, mark);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + (cut ? "..." : "") + mark;
}

}  // namespace weft
