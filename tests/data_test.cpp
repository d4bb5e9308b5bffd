// From a sample source to batches: the order of samples, sources, and the batch loader.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "data/batch_loader.hpp"
#include "data/synthetic.hpp"
#include "src/core/check.hpp"
#include "tests/data_testing.hpp"

namespace weft {
namespace {

// ---- Order of samples

TEST(Order, EveryEpochIsABijection) {
  for (int64_t samples = 1; samples < 300; samples = samples < 20 ? samples + 1 : samples * 3 / 2) {
    for (const uint64_t seed : {0, 1, 77}) {
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int64_t> seen;
        for (int64_t i = 0; i < samples; ++i) {
          const int64_t sample = sample_at(seed, epoch * samples + i, samples);
          ASSERT_TRUE(sample >= 0 && sample < samples);
          seen.insert(sample);
        }
        ASSERT_EQ(std::ssize(seen), samples);
      }
    }
  }
}

TEST(Order, SeedsAndEpochsDiffer) {
  constexpr int64_t kSamples = 1000;
  const auto order = [](uint64_t seed, int64_t epoch) {
    std::vector<int64_t> out;
    for (int64_t i = 0; i < kSamples; ++i) {
      out.push_back(sample_at(seed, epoch * kSamples + i, kSamples));
    }
    return out;
  };
  const std::vector<std::vector<int64_t>> orders = {order(1, 0), order(1, 1), order(2, 0),
                                                    order(uint64_t{1} << 32 | 1, 0)};
  for (size_t a = 0; a < orders.size(); ++a) {
    int fixed = 0, rising = 0;
    for (int64_t i = 0; i < kSamples; ++i) {
      fixed += orders[a][i] == i;
      rising += i > 0 && orders[a][i] > orders[a][i - 1];
    }
    EXPECT_LT(fixed, 10);
    EXPECT_NEAR(rising, kSamples / 2, 50);
    for (size_t b = 0; b < a; ++b) EXPECT_NE(orders[a], orders[b]);
  }
}

TEST(Order, HugeCounts) {
  for (const int64_t samples : {int64_t{1} << 40, (int64_t{1} << 40) + 1, INT64_MAX}) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 5000; ++i) {
      const int64_t sample = sample_at(3, i, samples);
      ASSERT_TRUE(sample >= 0 && sample < samples);
      seen.insert(sample);
    }
    EXPECT_EQ(seen.size(), 5000u);
  }
}

// ---- Sources

TEST(SyntheticSource, IsAFunctionOfSeedAndSample) {
  const SyntheticSource source(50, 40, 9, true), again(50, 40, 9, true), other(50, 40, 10, true);
  for (const int64_t sample : {int64_t{0}, int64_t{1}, int64_t{12345678901}}) {
    const auto whole = sample_tokens(source, sample, 0, 41);
    for (const int32_t token : whole) ASSERT_TRUE(token >= 0 && token < 50);
    EXPECT_EQ(sample_tokens(again, sample, 0, 41), whole);
    EXPECT_NE(sample_tokens(other, sample, 0, 41), whole);
    EXPECT_NE(sample_tokens(source, sample + 1, 0, 41), whole);
    for (int64_t cut = 0; cut <= 41; ++cut) {
      auto parts = sample_tokens(source, sample, 0, cut);
      const auto rest = sample_tokens(source, sample, cut, 41);
      parts.insert(parts.end(), rest.begin(), rest.end());
      ASSERT_EQ(parts, whole);
    }
    EXPECT_EQ(again.segments(sample).starts(), source.segments(sample).starts());
  }
}

TEST(SyntheticSource, DocumentsOfAllLengths) {
  constexpr int64_t kLength = 64, kSamples = 2000;
  const SyntheticSource source(50, kLength, 1, true), whole(50, kLength, 1, false);
  int64_t documents = 0, single = 0, continuing = 0;
  for (int64_t sample = 0; sample < kSamples; ++sample) {
    const SegmentMap map = source.segments(sample);
    documents += std::ssize(map.starts());
    continuing += map.has_label(kLength - 1);
    for (const int64_t start : map.starts()) single += map.document_end(start) == start + 1;
    EXPECT_EQ(whole.segments(sample).labels(0, kLength), kLength);
  }
  const double mean = static_cast<double>(kLength * kSamples) / static_cast<double>(documents);
  EXPECT_NEAR(mean, kLength / 4.0, kLength / 16.0);
  EXPECT_GT(single, kSamples / 4);
  EXPECT_NEAR(continuing, kSamples / 2, 150);
  for (const int64_t tiny : {1, 2, 3}) {
    EXPECT_EQ(SyntheticSource(2, tiny, 1, true).segments(0).tokens(), tiny);
  }
}

TEST(TokenFileSource, WindowsMatchATokenByTokenView) {
  const ScratchFolder folder;
  const std::vector<int64_t> lengths = {3, 1, 1, 10, 2, 7, 1, 6};  // 31 tokens
  const Documents documents = random_documents(256, lengths);
  write_tokens(folder / "tokens.h5", documents);
  const std::vector<int32_t> all = joined(documents);
  std::vector<int64_t> document_of;
  for (size_t d = 0; d < lengths.size(); ++d) {
    document_of.insert(document_of.end(), lengths[d], static_cast<int64_t>(d));
  }
  for (int64_t n = 1; n <= 30; ++n) {
    const TokenFileSource apart(folder / "tokens.h5", n, true), run(folder / "tokens.h5", n, false);
    ASSERT_EQ(apart.samples(), 30 / n);
    for (int64_t w = 0; w < apart.samples(); ++w) {
      ASSERT_EQ(sample_tokens(apart, w, 0, n + 1),
                std::vector<int32_t>(all.begin() + w * n, all.begin() + w * n + n + 1));
      const SegmentMap map = apart.segments(w);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t at = w * n + t;
        ASSERT_EQ(map.has_label(t), document_of[at] == document_of[at + 1]);
        ASSERT_EQ(map.position(t) == 0, t == 0 || document_of[at] != document_of[at - 1]);
      }
      ASSERT_EQ(run.segments(w).labels(0, n), n);
    }
  }
  expect_error(ExitCode::data, {folder / "tokens.h5", "at least 32 tokens", "got 31"},
               [&] { TokenFileSource(folder / "tokens.h5", 31, true); });
}

// ---- Batches

/// A step without a loader: labels are found token by token.
LoadedStep reference(const SampleSource& source, uint64_t seed, int64_t step, int64_t global) {
  LoadedStep out;
  const int64_t n = source.seq_length();
  for (int64_t i = step * global; i < (step + 1) * global; ++i) {
    const int64_t sample = sample_at(seed, i, source.samples());
    const auto tokens = sample_tokens(source, sample, 0, n + 1);
    const SegmentMap map = source.segments(sample);
    auto& labels = out.labels.emplace_back(tokens.begin() + 1, tokens.end());
    for (const int64_t start : map.starts()) {
      if (start > 0) labels[start - 1] = -1;
    }
    if (!map.has_label(n - 1)) labels[n - 1] = -1;
    out.tokens.emplace_back(tokens.begin(), tokens.end() - 1);
  }
  return out;
}

TEST(BatchLoader, ShardsOfAnyCutsAreTheUnshardedSamples) {
  const ScratchFolder folder;
  write_tokens(folder / "tokens.h5", random_documents(256, {30, 1, 1, 90, 12, 1, 13, 4}));
  const SyntheticSource synthetic(100, 13, 2, true), synthetic_run(100, 13, 2, false);
  const TokenFileSource file(folder / "tokens.h5", 13, true), run(folder / "tokens.h5", 13, false);
  const std::vector<Cuts> sequences = {
      Cuts::even(13, 1),
      Cuts::even(13, 4),
      Cuts::even(13, 13),
      Cuts::even(13, 20),
      Cuts::of_sizes({0, 13}),
      Cuts::of_sizes({12, 1, 0}),
      Cuts::of_sizes({1, 0, 0, 5, 7}),
  };
  const std::vector<Cuts> datas = {Cuts::even(5, 1), Cuts::even(5, 2), Cuts::even(5, 7),
                                   Cuts::of_sizes({0, 4, 1})};
  int cells = 0;
  for (const SampleSource* source :
       {static_cast<const SampleSource*>(&synthetic),
        static_cast<const SampleSource*>(&synthetic_run), static_cast<const SampleSource*>(&file),
        static_cast<const SampleSource*>(&run)}) {
    for (const int64_t step : {0, 1, 5}) {
      const LoadedStep whole = reference(*source, 4, step, 5);
      for (const Cuts& sequence : sequences) {
        for (const Cuts& data : datas) {
          for (const int64_t micro_batch : {1, 2, 9}) {
            const LoadedStep parts = reassembled(*source, 4, step, data, sequence, micro_batch);
            ASSERT_EQ(parts.tokens, whole.tokens);
            ASSERT_EQ(parts.labels, whole.labels);
            ++cells;
          }
        }
      }
    }
  }
  EXPECT_EQ(cells, 4 * 3 * 7 * 4 * 3);
}

TEST(BatchLoader, GlobalLabelsAreTheLabelsOfAllRanks) {
  for (const bool documents : {false, true}) {
    const SyntheticSource source(100, 17, 3, documents);
    const Cuts sequence = Cuts::even(17, 3), data = Cuts::even(6, 4);
    for (int64_t step = 0; step < 20; ++step) {
      int64_t counted = 0, from_maps = 0;
      std::set<int64_t> told;
      for (int d = 0; d < data.pieces(); ++d) {
        for (int s = 0; s < sequence.pieces(); ++s) {
          const BatchLoader loader(source, 8, 6, sequence, s, data, d, 2);
          told.insert(loader.global_labels(step));
          for (const Batch& batch : loader.load(step)) {
            counted += std::count_if(batch.labels.begin(), batch.labels.end(),
                                     [](int32_t label) { return label >= 0; });
            for (const SegmentMap& map : batch.segments) {
              from_maps += map.labels(batch.begin, batch.end);
            }
          }
        }
      }
      ASSERT_EQ(told, std::set<int64_t>{counted});
      ASSERT_EQ(from_maps, counted);
      ASSERT_TRUE(documents || counted == 6 * 17);
    }
  }
}

TEST(BatchLoader, EverySampleOnceAnEpochAcrossStepsAndRanks) {
  const ScratchFolder folder;
  std::vector<int32_t> tokens(10 * 4 + 1);  // 10 windows, each known by its first token
  std::iota(tokens.begin(), tokens.end(), 0);
  write_tokens(folder / "tokens.h5", {tokens});
  const TokenFileSource source(folder / "tokens.h5", 4, true);
  const Cuts sequence = Cuts::even(4, 1), data = Cuts::even(3, 2);
  std::map<int32_t, int> seen;
  for (int64_t step = 0; step < 10; ++step) {  // 30 samples: three epochs
    for (int d = 0; d < 2; ++d) {
      const BatchLoader loader(source, 1, 3, sequence, 0, data, d, 1);
      const std::vector<Batch> batches = loader.load(step);
      EXPECT_EQ(batches.size(), 2u);  // as many as the rank with two samples has
      for (const Batch& batch : batches) {
        if (!batch.segments.empty()) ++seen[batch.tokens[0] / 4];
      }
    }
  }
  ASSERT_EQ(seen.size(), 10u);
  for (const auto& [window, times] : seen) EXPECT_EQ(times, 3) << window;
}

}  // namespace
}  // namespace weft
