// The masked-token objective: which tokens are selected, what stands in their place, and that no
// mesh, cut or micro-batch changes either.
#include "data/masking.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "data/synthetic.hpp"
#include "tests/data_testing.hpp"

namespace weft {
namespace {

constexpr int64_t kVocab = 50;

std::vector<int32_t> some_tokens(int64_t count) {
  return random_documents(kVocab, {count}).front();
}

/// `count` of `trials` is what chance `p` gives, within five standard deviations.
void expect_share(int64_t count, int64_t trials, double p, const char* what) {
  const double n = static_cast<double>(trials), mean = n * p;
  EXPECT_NEAR(static_cast<double>(count), mean, 5 * std::sqrt(mean * (1 - p))) << what;
}

TEST(Masking, SelectsItsFractionAndReplacesEightOneOne) {
  constexpr int64_t kTokens = 400'000;
  const std::vector<int32_t> original = some_tokens(kTokens);
  for (const double fraction : {0.15, 0.5, 1.0}) {
    for (const int64_t mask_token : {int64_t{kVocab}, int64_t{7}, int64_t{0}}) {
      const TokenMasking masking(3, fraction, mask_token, kVocab);
      std::vector<int32_t> tokens = original;
      const std::vector<int32_t> labels = masking.mask(11, 0, tokens);
      int64_t selected = 0, pairs = 0, of_other = 0, masked = 0, changed = 0;
      std::vector<int64_t> drawn(kVocab);
      for (int64_t t = 0; t < kTokens; ++t) {
        if (labels[t] < 0) {
          ASSERT_EQ(labels[t], -1);
          ASSERT_EQ(tokens[t], original[t]);
          continue;
        }
        ASSERT_EQ(labels[t], original[t]);
        ++selected;
        pairs += t > 0 && labels[t - 1] >= 0;
        if (original[t] == mask_token) continue;  // whether it was masked cannot be seen
        ++of_other;
        masked += tokens[t] == mask_token;
        if (tokens[t] == mask_token || tokens[t] == original[t]) continue;
        ++changed;
        ++drawn.at(tokens[t]);
      }
      EXPECT_EQ(masking.selected(11, kTokens), selected);
      expect_share(selected, kTokens, fraction, "selected");
      expect_share(pairs, kTokens - 1, fraction * fraction, "selected in a row");
      expect_share(masked, of_other, 0.8, "masked");
      // a random token is the one that was there once in a while
      const int64_t choices = kVocab - (mask_token < kVocab);
      expect_share(changed, of_other, 0.1 * (1 - 1.0 / static_cast<double>(choices)), "changed");
      for (int64_t token = 0; token < kVocab; ++token) {
        if (token == mask_token) {
          EXPECT_EQ(drawn[token], 0);
        } else {
          expect_share(drawn[token], changed, 1.0 / static_cast<double>(choices), "drawn");
        }
      }
    }
  }
}

TEST(Masking, IsAFunctionOfSeedSampleAndToken) {
  constexpr int64_t kTokens = 97;
  const std::vector<int32_t> original = some_tokens(kTokens);
  const auto masked = [&](uint64_t seed, int64_t index, int64_t begin, int64_t end) {
    std::vector<int32_t> tokens(original.begin() + begin, original.begin() + end);
    const auto labels = TokenMasking(seed, 0.3, kVocab, kVocab).mask(index, begin, tokens);
    return std::pair(tokens, labels);
  };
  for (const int64_t index : {int64_t{0}, int64_t{5}, int64_t{1} << 40}) {
    const auto [tokens, labels] = masked(1, index, 0, kTokens);
    EXPECT_EQ(masked(1, index, 0, kTokens), std::pair(tokens, labels));
    EXPECT_NE(masked(2, index, 0, kTokens).second, labels);
    EXPECT_NE(masked(1, index + 1, 0, kTokens).second, labels);
    for (int64_t cut = 0; cut <= kTokens; ++cut) {
      auto parts = masked(1, index, 0, cut);
      const auto rest = masked(1, index, cut, kTokens);
      parts.first.insert(parts.first.end(), rest.first.begin(), rest.first.end());
      parts.second.insert(parts.second.end(), rest.second.begin(), rest.second.end());
      ASSERT_EQ(parts, std::pair(tokens, labels)) << cut;
    }
  }
}

TEST(Masking, ShardsOfAnyCutsAreTheUnshardedSamples) {
  const TokenMasking masking(4, 0.2, 99, 100);
  const std::vector<Cuts> sequences = {
      Cuts::even(13, 1),          Cuts::even(13, 4),          Cuts::even(13, 20),
      Cuts::of_sizes({12, 1, 0}), Cuts::of_sizes({0, 0, 13}), Cuts::of_sizes({1, 0, 5, 7}),
  };
  const std::vector<Cuts> datas = {Cuts::even(5, 1), Cuts::even(5, 2), Cuts::of_sizes({0, 4, 1})};
  for (const bool documents : {false, true}) {
    const SyntheticSource source(99, 13, 2, documents);
    for (const int64_t step : {0, 1, 5}) {
      LoadedStep whole;
      for (int64_t i = step * 5; i < (step + 1) * 5; ++i) {
        auto& tokens = whole.tokens.emplace_back(
            sample_tokens(source, sample_at(4, i, source.samples()), 0, 13));
        whole.labels.push_back(masking.mask(i, 0, tokens));
      }
      for (const Cuts& sequence : sequences) {
        for (const Cuts& data : datas) {
          for (const int64_t micro_batch : {1, 2, 9}) {
            const LoadedStep parts =
                reassembled(source, 4, step, data, sequence, micro_batch, masking);
            ASSERT_EQ(parts.tokens, whole.tokens);
            ASSERT_EQ(parts.labels, whole.labels);
          }
        }
      }
    }
  }
}

TEST(Masking, GlobalLabelsAreTheLabelsOfAllRanks) {
  // Steps of which some have no label at all, some many.
  for (const double fraction : {0.004, 0.15, 1.0}) {
    const SyntheticSource source(100, 17, 3, true);
    const TokenMasking masking(8, fraction, 100, 100);
    const Cuts sequence = Cuts::even(17, 3), data = Cuts::even(6, 4);
    int64_t without_labels = 0;
    for (int64_t step = 0; step < 40; ++step) {
      int64_t counted = 0;
      std::set<int64_t> told;
      for (int d = 0; d < data.pieces(); ++d) {
        for (int s = 0; s < sequence.pieces(); ++s) {
          const BatchLoader loader(source, 8, 6, sequence, s, data, d, 2, masking);
          told.insert(loader.global_labels(step));
          for (const Batch& batch : loader.load(step)) {
            counted += std::count_if(batch.labels.begin(), batch.labels.end(),
                                     [](int32_t label) { return label >= 0; });
          }
        }
      }
      ASSERT_EQ(told, std::set<int64_t>{counted});
      without_labels += counted == 0;
      ASSERT_TRUE(fraction < 1 || counted == 6 * 17);
    }
    EXPECT_EQ(without_labels > 0, fraction == 0.004);
  }
}

TEST(Masking, EveryEpochHasOtherMasks) {
  const ScratchFolder folder;
  write_tokens(folder / "tokens.h5", random_documents(256, {3 * 64 + 1}));  // three windows
  const TokenFileSource source(folder / "tokens.h5", 64, true);
  const BatchLoader loader(source, 1, 3, Cuts::even(64, 1), 0, Cuts::even(3, 1), 0, 1,
                           TokenMasking(1, 0.15, 256, 256));
  std::set<std::vector<int32_t>> masks;
  for (int64_t step = 0; step < 20; ++step) {  // an epoch a step
    for (const Batch& batch : loader.load(step)) {
      std::vector<int32_t> mask = batch.labels;
      for (int32_t& label : mask) label = label >= 0;
      masks.insert(mask);
    }
  }
  EXPECT_EQ(masks.size(), 60u);
}

}  // namespace
}  // namespace weft
