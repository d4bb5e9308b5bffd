// What happens in one document stays there, to the bit.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "tests/parity_testing.hpp"

namespace weft {

/// Which tokens of [sample, token] belong to the last document of sample 1 with at least two
/// tokens.
inline std::vector<bool> perturbed_tokens(const Config& config, const SampleSource& source) {
  const int64_t N = config.data.seq_length;
  std::vector<bool> inside(config.train.global_batch_size * N);
  const SegmentMap map = source.segments(sample_at(config.train.seed, 1, source.samples()));
  int64_t t = N - 1;
  while (map.document_end(t) - map.document_begin(t) < 2) t = map.document_begin(t) - 1;
  for (int64_t i = map.document_begin(t); i < map.document_end(t); ++i) inside[N + i] = true;
  return inside;
}

/// Changes the tokens of those places, and the labels that are such tokens.
inline RecordingHooks perturbing(const Config& config, const std::vector<bool>& inside) {
  RecordingHooks hooks;
  hooks.batches = [&config, &inside](std::vector<Batch>& batches) {
    const int64_t N = config.data.seq_length;
    const auto source = open_samples(config);
    const SegmentMap sample_1 =
        source->segments(sample_at(config.train.seed, 1, source->samples()));
    for (Batch& batch : batches) {
      const int64_t T = batch.end - batch.begin;
      for (size_t b = 0; b < batch.segments.size(); ++b) {
        if (batch.segments[b].starts() != sample_1.starts()) continue;
        for (int64_t i = 0; i < T; ++i) {
          if (!inside[N + batch.begin + i]) continue;
          int32_t& token = batch.tokens[b * T + i];
          token = (token + 1) % static_cast<int32_t>(config.model.vocab_size);
          int32_t& label = batch.labels[b * T + i];
          if (label >= 0) label = (label + 1) % static_cast<int32_t>(config.model.vocab_size);
        }
      }
    }
  };
  return hooks;
}

/// A step of configs/parity.yaml with these keys, one document of it changed: no bit of another
/// document's activations and gradients of activations moves.
inline void expect_no_leak(const std::vector<std::string>& sets, int data, int sequence) {
  const Config config =
      on_mesh(parity_config(joined({"train.steps=1", "data.seq_length=61"}, sets)), data, sequence);
  const std::vector<bool> inside = perturbed_tokens(config, *open_samples(config));
  const Recording before = record(config), after = record(config, perturbing(config, inside));
  ASSERT_EQ(before.activations.size(), after.activations.size());
  int64_t changed = 0;
  for (size_t e = 0; e < before.activations.size(); ++e) {
    const auto& [name, was] = before.activations[e];
    const std::vector<double>& is = after.activations[e].values;
    const size_t width = was.size() / inside.size();
    for (size_t i = 0; i < was.size(); ++i) {
      const bool same = std::memcmp(&was[i], &is[i], sizeof(double)) == 0;
      changed += inside[i / width] && !same;
      ASSERT_TRUE(inside[i / width] || same) << name << ", row " << i / width << ", data " << data
                                             << ", sequence " << sequence << ", " << sets.back();
    }
  }
  EXPECT_GT(changed, 1000);  // the perturbation did something
}

}  // namespace weft
