// From samples to one rank's batches: which sample comes when, who owns which part of it, and the
// label of every token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/masking.hpp"
#include "data/token_file.hpp"
#include "src/core/segment_map.hpp"
#include "src/core/shard.hpp"

namespace weft {

/// Where samples come from. A sample is seq_length() tokens plus the next one, the last label.
class SampleSource {
 public:
  virtual ~SampleSource() = default;

  virtual int64_t vocab_size() const = 0;
  virtual int64_t seq_length() const = 0;
  /// Distinct samples: one epoch. At least one.
  virtual int64_t samples() const = 0;
  /// The documents of a sample in [0, samples()).
  virtual SegmentMap segments(int64_t sample) const = 0;
  /// Its tokens [begin, end) into `out`, whose size is end - begin; end <= seq_length() + 1.
  virtual void tokens(int64_t sample, int64_t begin, int64_t end, std::span<int32_t> out) const = 0;
};

/// Windows of a token file: window w is tokens [w N, w N + N], N the sequence length.
class TokenFileSource final : public SampleSource {
 public:
  /// `documents`: keep the documents of the file apart; otherwise a window is one document that
  /// goes on. Throws Error(data) when the file holds no whole window.
  TokenFileSource(const std::string& path, int64_t seq_length, bool documents);

  int64_t vocab_size() const override { return file_.info().vocab_size; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t samples() const override { return (file_.tokens() - 1) / seq_length_; }
  SegmentMap segments(int64_t sample) const override;
  void tokens(int64_t sample, int64_t begin, int64_t end, std::span<int32_t> out) const override;

 private:
  TokenFile file_;
  int64_t seq_length_;
  bool documents_;
};

/// The sample at `global_index` of the run, of `samples` distinct ones. Every epoch (`samples`
/// indices in a row) shows each of them once, in an order of its own that `seed` decides.
int64_t sample_at(uint64_t seed, int64_t global_index, int64_t samples);

/// One rank's shard of one micro-batch: tokens [begin, end) of B samples. T = end - begin may be 0.
struct Batch {
  std::vector<SegmentMap> segments;  // of the B whole samples
  int64_t begin = 0;
  int64_t end = 0;
  std::vector<int32_t> tokens;  // [B, T]
  /// [B, T]: the next token of the same document, or under masking the token that was selected
  /// here; -1, ignored, where there is none.
  std::vector<int32_t> labels;
};

/// Batches of one rank. Every rank of the job makes one with the same source, seed, sizes and cuts,
/// and its own two shards; together they load every sample of a step once, without a word.
class BatchLoader {
 public:
  /// `source` outlives the loader. `sequence_cuts` cut the tokens of a sample, `data_cuts` the
  /// `global_batch_size` samples of a step. With `masking`, tokens are masked and their own labels;
  /// without, every label is the next token.
  BatchLoader(const SampleSource& source, uint64_t seed, int64_t global_batch_size,
              const Cuts& sequence_cuts, int sequence_shard, const Cuts& data_cuts, int data_shard,
              int64_t micro_batch_size, std::optional<TokenMasking> masking = {});

  /// This rank's micro-batches of a step: as many on every rank, so that the last ones may have
  /// fewer samples, or none. Step s takes the samples at global indices [s G, (s + 1) G), G the
  /// global batch size.
  std::vector<Batch> load(int64_t step) const;

  /// Labelled tokens of the whole global batch, the divisor of the loss: the same on every rank.
  int64_t global_labels(int64_t step) const;

 private:
  int64_t global_index(int64_t step, int64_t index) const;
  int64_t sample(int64_t global_index) const;
  Batch load_batch(int64_t step, int64_t first, int64_t last) const;
  void append_sample(int64_t global_index, Batch& batch) const;

  const SampleSource& source_;
  uint64_t seed_;
  int64_t global_batch_size_;
  int64_t token_begin_, token_end_;    // of every sample
  int64_t sample_begin_, sample_end_;  // of every global batch
  int64_t micro_batch_size_;
  int64_t most_samples_;  // of a data rank
  std::optional<TokenMasking> masking_;
};

}  // namespace weft
