// train.deterministic from the command line: what a run says about its parameters when it ends.
#include <gtest/gtest.h>

#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

/// The one line with which a run of configs/parity.yaml says its checksum; empty where it has none.
std::string checksum(const std::string& program, const std::string& sets = "",
                     const std::string& deterministic = "true") {
  const CommandResult run = run_command(
      concat(program, " train configs/parity.yaml --output ", fresh_folder(),
             " --strict --set train.steps=3 --set train.deterministic=", deterministic, " ", sets));
  EXPECT_EQ(run.code, 0) << run.out;
  const auto lines = run.lines("weft: parameters after ");
  EXPECT_LE(lines.size(), 1u) << run.out;
  return lines.empty() ? "" : lines[0];
}

std::string threads(const std::string& mesh) {
  return "--set train.comm=threads " + mesh;
}

TEST(Deterministic, RunsEndWithAChecksumOfTheirParameters) {
  const std::string line = checksum(weft_alone());
  const std::string before = "weft: parameters after 3 steps: checksum ";
  ASSERT_TRUE(line.starts_with(before)) << line;
  const std::string sum = line.substr(before.size());
  EXPECT_EQ(sum.size(), 16u);
  EXPECT_EQ(sum.find_first_not_of("0123456789abcdef"), std::string::npos) << sum;
  EXPECT_EQ(checksum(weft_alone()), line);
  EXPECT_NE(checksum(weft_alone(), "--set train.seed=2"), line);
  EXPECT_NE(checksum(weft_alone(), "--set optimizer.lr=3.0000001e-4"), line);
  EXPECT_EQ(checksum(weft_alone(), "", "false"), "");
}

TEST(Deterministic, TwoRunsOfFourRanksHaveOneChecksum) {
  const std::string mesh = "--set mesh.data=2 --set mesh.sequence=2 ";
  const std::string line = checksum(weft_on(4), mesh);
  ASSERT_FALSE(line.empty());
  EXPECT_EQ(checksum(weft_on(4), mesh), line);
  EXPECT_EQ(checksum(weft_alone(), threads(mesh)), line);  // sums have the same order
  EXPECT_NE(checksum(weft_on(4), mesh + "--set train.seed=2"), line);
}

/// Stages of one rank compute what one rank does but for the norm's sum, which here clips nothing:
/// the layout alone differs.
TEST(Deterministic, AChecksumIsOfTheModelNotOfItsLayout) {
  const std::string sets = "--set train.micro_batch_size=1 --set optimizer.grad_clip=0 ";
  const std::string line = checksum(weft_alone(), sets);
  ASSERT_FALSE(line.empty());
  EXPECT_EQ(checksum(weft_alone(), threads(sets + "--set mesh.pipeline=2")), line);
  EXPECT_EQ(checksum(weft_on(4), sets + "--set mesh.pipeline=4"), line);
}

}  // namespace
}  // namespace weft
