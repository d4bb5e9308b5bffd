// Tokenizers: bytes of text to token ids and back. A new one is one entry of the table in
// tokenizers.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

/// Has no state: one object serves all threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string_view name() const = 0;
  /// Token ids are in [0, vocab_size()).
  virtual int64_t vocab_size() const = 0;
  /// The tokens of one piece of a document.
  virtual std::vector<int32_t> encode(std::string_view bytes) const = 0;
  /// The bytes that the tokens stand for; every id must be in the vocabulary.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
};

/// The tokenizer of that name; lives as long as the program. Throws Error(usage), which lists the
/// known names, when there is none.
const Tokenizer& tokenizer(std::string_view name);

}  // namespace weft
