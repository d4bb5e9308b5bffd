// The masked-token objective (Devlin et al., arXiv 1810.04805): some tokens of a sample are hidden
// from a model that sees both ways, and those are the ones it predicts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/core/random.hpp"

namespace weft {

/// Which tokens are selected, and what stands in their place: a pure function of the seed, the
/// sample's index in the run and the token's index in the sample. Every epoch has other masks, and
/// no cut of a sample changes one.
class TokenMasking {
 public:
  /// Each token is selected with probability `fraction`, in (0, 1], whatever the others are. Of the
  /// selected ones 80 % become `mask_token`, 10 % a token drawn from the others below `vocab_size`,
  /// the vocabulary of the samples, which holds one at least, and 10 % stay.
  TokenMasking(uint64_t seed, double fraction, int64_t mask_token, int64_t vocab_size);

  /// Masks in place the tokens from `begin` on of the sample at `global_index` of the run. Returns
  /// their labels: the token that was there where one is selected, -1 elsewhere.
  std::vector<int32_t> mask(int64_t global_index, int64_t begin, std::span<int32_t> tokens) const;

  /// Selected tokens among the first `tokens` of the sample.
  int64_t selected(int64_t global_index, int64_t tokens) const;

 private:
  RandomStream selection(int64_t global_index) const;
  int32_t random_token(const RandomStream& random, uint64_t draw) const;

  uint64_t seed_;
  double fraction_;
  int64_t mask_token_;
  int64_t vocab_size_;
};

}  // namespace weft
