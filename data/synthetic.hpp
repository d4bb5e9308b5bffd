// Synthetic samples: tokens and documents out of thin air, for parity, tests and timing.
#pragma once

#include <cstdint>
#include <span>

#include "data/batch_loader.hpp"

namespace weft {

/// Uniform tokens, and documents of about a quarter of the sequence among which are some of a
/// single token: pure functions of (seed, sample), the same on any mesh.
class SyntheticSource final : public SampleSource {
 public:
  /// `documents`: without, a sample is one document that goes on.
  SyntheticSource(int64_t vocab_size, int64_t seq_length, uint64_t seed, bool documents);

  int64_t vocab_size() const override { return vocab_size_; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t samples() const override { return int64_t{1} << 40; }  // no run sees an end
  SegmentMap segments(int64_t sample) const override;
  void tokens(int64_t sample, int64_t begin, int64_t end, std::span<int32_t> out) const override;

 private:
  int64_t vocab_size_;
  int64_t seq_length_;
  uint64_t seed_;
  bool documents_;
};

}  // namespace weft
