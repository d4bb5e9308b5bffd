#include "data/tokenizers.hpp"

#include <array>

#include "src/core/check.hpp"

namespace weft {
namespace {

/// A token is a byte: works on any file, and every document can be restored exactly.
class Bytes final : public Tokenizer {
 public:
  std::string_view name() const override { return "bytes"; }
  int64_t vocab_size() const override { return 256; }

  std::vector<int32_t> encode(std::string_view bytes) const override {
    const auto* first = reinterpret_cast<const unsigned char*>(bytes.data());
    return {first, first + bytes.size()};
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::string bytes;
    bytes.reserve(tokens.size());
    for (const int32_t token : tokens) {
      WEFT_CHECK(token >= 0 && token < 256, "token ", token);
      bytes.push_back(static_cast<char>(token));
    }
    return bytes;
  }
};

const Bytes kBytes;
constexpr std::array<const Tokenizer*, 1> kTable{&kBytes};

}  // namespace

const Tokenizer& tokenizer(std::string_view name) {
  std::string known;
  for (const Tokenizer* entry : kTable) {
    if (entry->name() == name) return *entry;
    known += (known.empty() ? "" : ", ") + std::string(entry->name());
  }
  throw Error(ExitCode::usage, concat("tokenizer: expected one of ", known, ", got '", name, "'"));
}

}  // namespace weft
