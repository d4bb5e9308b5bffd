// Every config that ships loads, and its step can be planned on every rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "launch/trainer.hpp"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> presets() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(WEFT_SOURCE_DIR "/configs")) {
    names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class Presets : public testing::TestWithParam<std::string> {};

TEST_P(Presets, LoadAndPlan) {
  const std::string path = concat(WEFT_SOURCE_DIR "/configs/", GetParam(), ".yaml");
  const Config config = load_config(path, {}).config;
  for (int rank = 0; rank < config.mesh.ranks(); ++rank) {
    const StepPlan plan = plan_step(config, rank);
    EXPECT_GT(plan.memory.peak(), 0);
    EXPECT_GT(plan.flops(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Presets, testing::ValuesIn(presets()), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace weft
