// What recomputation is held to.
#pragma once

#include <cmath>
#include <string>

#include "tests/parity_testing.hpp"

namespace weft {

inline Config with(Config config, Recompute recompute) {
  config.train.recompute = recompute;
  return config;
}

/// With every policy that computes again the config has the bits that it has when all is kept: of
/// the loss, of gradients and of all that probes see, which they see once.
inline void expect_same_bits(const Config& config, const std::string& where) {
  const Recording kept = record(with(config, Recompute::none));
  ASSERT_TRUE(std::isfinite(kept.losses[0])) << where;
  for (const Recompute policy : {Recompute::attention_output, Recompute::layer}) {
    const Recording again = record(with(config, policy));
    EXPECT_EQ(again.losses[0], kept.losses[0]) << where;
    ASSERT_EQ(again.gradients[0].size(), kept.gradients[0].size()) << where;
    for (size_t i = 0; i < kept.gradients[0].size(); ++i) {
      const auto& [name, gradient] = kept.gradients[0][i];
      EXPECT_GT(rms(gradient), 0) << where << ", " << name;
      EXPECT_TRUE(same_bits(again.gradients[0][i].values, gradient)) << where << ", " << name;
    }
    ASSERT_EQ(again.activations.size(), kept.activations.size()) << where;  // none is seen twice
    for (size_t i = 0; i < kept.activations.size(); ++i) {
      const auto& [name, values] = kept.activations[i];
      EXPECT_EQ(again.activations[i].name, name) << where;
      EXPECT_TRUE(same_bits(again.activations[i].values, values)) << where << ", " << name;
    }
  }
}

}  // namespace weft
