// Long sequences of a linear-attention model on the CPU: what time and memory they take, and that
// what crosses the ranks does not depend on their length.
#include <gtest/gtest.h>

#include <cmath>

#include "src/core/check.hpp"
#include "tests/command.hpp"

namespace weft {
namespace {

constexpr int64_t kMillion = 1 << 20;                 // tokens of configs/million.yaml
constexpr double kSecondsOfAMillion = 180;            // of two cores
constexpr double kBytesOfAMillion = 8.0 * (1 << 30);  // of all eight ranks

struct LongStep {
  double loss, sequence_bytes;
};

/// One step of configs/million.yaml with fewer tokens, within their share of its time and memory.
LongStep run_step(int64_t tokens) {
  const std::string folder = fresh_folder();
  const CommandResult run =
      run_command(concat(weft_alone(), " train configs/million.yaml --strict --output ", folder,
                         " --set data.seq_length=", tokens));
  EXPECT_EQ(run.code, 0) << run.out;
  const double share = static_cast<double>(tokens) / kMillion;
  std::printf("%lld tokens: %.1f s, %.2f GiB\n", static_cast<long long>(tokens), run.seconds,
              static_cast<double>(run.peak_bytes) / (1 << 30));
  // The program itself takes a second and 0.2 GiB.
  EXPECT_LE(run.seconds, share * kSecondsOfAMillion + 1);
  EXPECT_LE(static_cast<double>(run.peak_bytes), share * kBytesOfAMillion + 0.2 * (1 << 30));
  return {metric(folder, "loss").at(0), metric(folder, "bytes", "sequence").at(0)};
}

TEST(LongSequence, TakesItsShareOfAMillionAndSendsTheSameStates) {
  const LongStep of_64k = run_step(64 << 10), of_256k = run_step(256 << 10);
  for (const LongStep& step : {of_64k, of_256k}) {
    EXPECT_TRUE(std::isfinite(step.loss) && step.loss < 7) << step.loss;
  }
  EXPECT_GT(of_64k.sequence_bytes, 0);
  EXPECT_EQ(of_64k.sequence_bytes, of_256k.sequence_bytes);
}

TEST(LongSequence, FullMillionTokens) {
  EXPECT_LT(run_step(kMillion).loss, 7);
}

}  // namespace
}  // namespace weft
