// weft bench sequence: its bytes are those of a planned training step, its times bound each other,
// and its lengths are the longest that fit.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/trainer.hpp"
#include "parallel/sequence/strategies.hpp"
#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;

const std::string kConfig = WEFT_SOURCE_DIR "/configs/parity.yaml";

Json bench(const std::string& arguments) {
  const std::string file = fresh_folder() + "/sequence.json";
  const CommandResult run = run_command(weft_alone() + " bench sequence --json " + file + " " +
                                        arguments + " " + kConfig);
  EXPECT_EQ(run.code, 0) << run.out;
  std::ifstream in(file);
  return in ? Json::parse(in) : Json::object();
}

/// The rows of a table whose strategy runs; the ring runs everywhere.
std::vector<Json> rows(const Json& json, const char* table) {
  std::vector<Json> running;
  for (const Json& row : json.value(table, Json::array())) {
    EXPECT_TRUE(row.at("strategy") != "ring" || !row.contains("refused")) << row;
    if (!row.contains("refused")) running.push_back(row);
  }
  EXPECT_FALSE(running.empty()) << table;
  return running;
}

/// The parity config with a strategy on so many ranks.
Config config_of(const Json& row, std::vector<std::string> sets = {}) {
  sets.push_back(concat("mesh.sequence=", row.at("ranks").get<int>()));
  sets.push_back("sequence.attention=" + row.at("strategy").get<std::string>());
  return load_config(kConfig, sets).config;
}

TEST(BenchSequence, CoversTheTableOfStrategies) {
  const Json json = bench("--ranks 1,3 --real-time 0s");
  EXPECT_FALSE(json.contains("measured"));  // takes real time: only where it is named
  for (const char* table : {"bytes", "overlap", "memory"}) {
    size_t at = 0;
    for (const AttentionStrategy& strategy : attention_strategies()) {
      for (const int ranks : {1, 3}) {
        ASSERT_LT(at, json.at(table).size());
        EXPECT_EQ(json.at(table)[at].at("strategy"), strategy.name);
        EXPECT_EQ(json.at(table)[at++].at("ranks"), ranks);
      }
    }
    EXPECT_EQ(json.at(table).size(), at);
  }
}

TEST(BenchSequence, ATableCanBeHadAlone) {
  for (const std::string table : {"bytes", "overlap", "memory"}) {
    const Json json =
        bench("--ranks 2 --real-time 0s --memory 100MiB --strategies ring --tables " + table);
    EXPECT_EQ(json.size(), 2u) << json;
    ASSERT_TRUE(json.contains(table)) << json;
    EXPECT_EQ(json.at(table).size(), 1u);
  }
}

TEST(BenchSequence, BytesAreThoseOfAPlannedStep) {
  // 101 tokens: no number of ranks divides them.
  const Json json = bench("--tables bytes --ranks 2,4,8");
  for (const Json& row : rows(json, "bytes")) {
    EXPECT_EQ(row.at("booked"), row.at("sent")) << row;
    const Config config = config_of(row);
    for (int rank = 0; rank < row.at("ranks"); ++rank) {
      std::map<Tag::Pass, int64_t> planned;
      for (const auto& [key, bytes] : plan_step(config, rank).bytes) {
        const bool ours = key.group == "sequence" && key.tag.layer == 0 && key.tag.micro_batch == 0;
        if (ours) planned[key.tag.pass] += bytes;
      }
      EXPECT_EQ(row.at("sent").at("forward")[rank], planned[Tag::Pass::forward]) << row;
      EXPECT_EQ(row.at("sent").at("backward")[rank], planned[Tag::Pass::backward]) << row;
    }
  }
}

TEST(BenchSequence, TimesBoundEachOther) {
  const Json json = bench(
      "--tables overlap --ranks 1,2,4 --flops 1GFLOP/s --link-bandwidth 10MB/s --latency 100us "
      "--real-time 100ms --repeats 1");
  for (const Json& row : rows(json, "overlap")) {
    for (const char* pass : {"forward", "step"}) {
      const double kernels = row.at(pass).at("kernels_s"),
                   both = row.at(pass).at("critical_path_s");
      const double transfers = row.at(pass).at("transfers_s");
      EXPECT_GE(both, std::max(kernels, transfers) * (1 - 1e-9)) << row;
      EXPECT_LE(both, (kernels + transfers) * (1 + 1e-9)) << row;
      EXPECT_EQ(transfers > 0, row.at("ranks") > 1) << row;
    }
    EXPECT_GE(row.at("step").at("critical_path_s"), row.at("forward").at("critical_path_s"));
    EXPECT_GE(row.at("attained_s"), row.at("step").at("critical_path_s")) << row;
    EXPECT_GT(row.at("busy"), 0);
    EXPECT_LE(row.at("busy"), 1 + 1e-9);
  }
  // Alone, a rank computes all the time. One that is twice as fast needs half of it.
  const auto alone = [](const std::string& flops) {
    return bench("--tables overlap --ranks 1 --strategies ring --real-time 0s --flops " + flops +
                 " --memory-bandwidth 1PB/s")["overlap"][0];
  };
  const Json slow = alone("1GFLOP/s"), fast = alone("2GFLOP/s");
  EXPECT_FALSE(slow.contains("attained_s"));
  EXPECT_DOUBLE_EQ(slow.at("busy"), 1);
  EXPECT_NEAR(slow.at("step").at("critical_path_s").get<double>() /
                  fast.at("step").at("critical_path_s").get<double>(),
              2, 1e-6);  // kernels of no FLOPs take their memory traffic
}

TEST(BenchSequence, TheLongestSequenceFitsAndALongerOneDoesNot) {
  constexpr int64_t kLimit = 64 << 20;
  const Json json = bench("--tables memory --memory 64MiB --ranks 1,3");
  for (const Json& row : rows(json, "memory")) {
    const int64_t tokens = row.at("tokens");
    ASSERT_GT(tokens, 0) << row;
    const auto peak = [&](int64_t length) {
      const Config config = config_of(row, {concat("data.seq_length=", length)});
      int64_t most = 0;
      for (int rank = 0; rank < row.at("ranks"); ++rank) {
        most = std::max(most, plan_step(config, rank).memory.peak());
      }
      return most;
    };
    EXPECT_EQ(peak(tokens), row.at("peak_bytes")) << row;
    EXPECT_LE(row.at("peak_bytes"), kLimit) << row;
    EXPECT_GT(peak(tokens + tokens / 128 + 1), kLimit) << row;
    EXPECT_LE(row.at("largest").at("bytes"), row.at("peak_bytes")) << row;
  }
  const Json nothing = bench("--tables memory --memory 1KiB --ranks 2 --strategies ring");
  EXPECT_EQ(nothing.at("memory")[0].at("tokens"), 0);
}

TEST(BenchSequence, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--strategies rinng", 64, "--strategies"},
      {"--strategies ring,ring", 64, "--strategies"},
      {"--ranks 0", 2, "--ranks"},
      {"--ranks 65", 2, "--ranks"},
      {"--ranks two", 2, "--ranks"},
      {"--tables time", 2, "--tables"},
      {"--flops 100", 2, "--flops"},
      {"--flops 0FLOP/s", 2, "--flops"},
      {"--memory 40GiBs", 2, "--memory"},
      {"--memory 1001PB", 2, "--memory"},
      {"--latency -1us", 2, "--latency"},
      {"--real-time 601s", 2, "--real-time"},
      {"--set train.stepps=2", 64, "train.stepps"},
      {"--ranks 1 --real-time 0s --json /proc/none/bench.json", 74, "/proc/none/bench.json"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run =
        run_command(weft_alone() + " bench sequence " + arguments + " " + kConfig);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
  EXPECT_EQ(run_command(weft_alone() + " bench sequence --help").code, 0);
}

}  // namespace
}  // namespace weft
