#include "data/masking.hpp"

#include "src/core/check.hpp"

namespace weft {

TokenMasking::TokenMasking(uint64_t seed, double fraction, int64_t mask_token, int64_t vocab_size)
    : seed_(seed), fraction_(fraction), mask_token_(mask_token), vocab_size_(vocab_size) {
  WEFT_CHECK(fraction > 0 && fraction <= 1, "fraction ", fraction);
  WEFT_CHECK(mask_token >= 0 && mask_token <= INT32_MAX, "mask_token ", mask_token);
  WEFT_CHECK(vocab_size > (mask_token < vocab_size ? 1 : 0), "a vocabulary of ", vocab_size,
             " with the mask token ", mask_token);
}

RandomStream TokenMasking::selection(int64_t global_index) const {
  return {seed_, concat("selected tokens ", global_index)};
}

int32_t TokenMasking::random_token(const RandomStream& random, uint64_t draw) const {
  const bool holds_mask = mask_token_ < vocab_size_;
  const auto token = static_cast<int64_t>(random.below(draw, vocab_size_ - holds_mask));
  return static_cast<int32_t>(token + (holds_mask && token >= mask_token_));
}

std::vector<int32_t> TokenMasking::mask(int64_t global_index, int64_t begin,
                                        std::span<int32_t> tokens) const {
  const RandomStream selected = selection(global_index);
  const RandomStream replaced(seed_, concat("replaced tokens ", global_index));
  std::vector<int32_t> labels(tokens.size(), -1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t t = begin + i;
    if (selected.uniform(t) >= fraction_) continue;
    labels[i] = tokens[i];
    const double share = replaced.uniform(2 * t);
    if (share < 0.8) {
      tokens[i] = static_cast<int32_t>(mask_token_);
    } else if (share < 0.9) {
      tokens[i] = random_token(replaced, 2 * t + 1);
    }
  }
  return labels;
}

int64_t TokenMasking::selected(int64_t global_index, int64_t tokens) const {
  const RandomStream selected = selection(global_index);
  int64_t count = 0;
  for (int64_t t = 0; t < tokens; ++t) count += selected.uniform(t) < fraction_;
  return count;
}

}  // namespace weft
