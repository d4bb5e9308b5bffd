// weft bench sequence --scans: the tables of state scans.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/sequence/strategies.hpp"
#include "tests/command.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;

const std::string kConfig = WEFT_SOURCE_DIR "/configs/parity.yaml";
constexpr double kHair = 1e-9;

Json bench(const std::string& arguments) {
  const std::string file = fresh_folder() + "/scans.json";
  const CommandResult run = run_command(weft_alone() + " bench sequence --json " + file + " " +
                                        arguments + " " + kConfig);
  EXPECT_EQ(run.code, 0) << run.out;
  std::ifstream in(file);
  return in ? Json::parse(in) : Json::object();
}

TEST(BenchScans, CoverTheTableOfScans) {
  const Json json = bench("--scans all --ranks 1,3 --real-time 0s --state-sizes 128KiB");
  EXPECT_EQ(json.size(), 1u) << "strategies were not named";
  for (const char* table : {"bytes", "overlap"}) {
    const Json& rows = json.at("scans").at(table);
    size_t at = 0;
    for (const StateScanKind& scan : state_scans()) {
      for (const char* transition : {"scalar", "dense"}) {
        for (const int ranks : {1, 3}) {
          ASSERT_LT(at, rows.size());
          EXPECT_EQ(rows[at].at("scan"), scan.name);
          EXPECT_EQ(rows[at].at("transition"), transition);
          EXPECT_EQ(rows[at++].at("ranks"), ranks);
        }
      }
    }
    EXPECT_EQ(rows.size(), at);
  }
  for (const Json& row : json.at("scans").at("crossover")) {
    EXPECT_EQ(row.at("seconds").size(), state_scans().size());
  }
}

TEST(BenchScans, StandBesideStrategiesThatAreNamed) {
  const Json json = bench("--scans zeco --strategies ring --tables bytes --ranks 2");
  EXPECT_EQ(json.at("bytes").size(), 1u);
  EXPECT_EQ(json.at("scans").at("bytes").size(), 2u);
  EXPECT_FALSE(json.contains("overlap") || json.at("scans").contains("overlap"));
}

/// From the promises themselves: a chain moves one state over each cut, a gather all maps to all.
TEST(BenchScans, BytesAreWhatTheSchedulesPromise) {
  const Json json =
      bench("--scans all --tables bytes --state 2,3,8,4 --transitions scalar,dense --tokens 7,70");
  const int64_t state = 2 * 3 * 8 * 4 * 8;  // the parity config is of f64
  EXPECT_EQ(json.at("scans").at("state").at("dtype"), "f64");
  for (const Json& row : json.at("scans").at("bytes")) {
    const int P = row.at("ranks");
    const int64_t transition = 2 * 3 * 8 * (row.at("transition") == "dense" ? 8 * 8 : 1);
    EXPECT_EQ(row.at("counted").size(), 2u);
    for (const Json& counted : row.at("counted")) {
      EXPECT_EQ(counted.at("sent"), row.at("closed_form")) << row;
      EXPECT_EQ(counted.at("booked"), row.at("closed_form")) << row;
      const std::vector<int64_t> forward = counted.at("sent").at("forward");
      const std::vector<int64_t> backward = counted.at("sent").at("backward");
      EXPECT_EQ(forward, std::vector<int64_t>(backward.rbegin(), backward.rend())) << row;
      int rounds = 0;
      while (1 << rounds < P) ++rounds;
      for (int rank = 0; rank < P; ++rank) {
        if (row.at("scan") == "zeco" || row.at("scan") == "lasp") {
          EXPECT_EQ(forward[rank], rank + 1 < P ? state : 0) << row;
        } else if (row.at("scan") == "lasp2") {
          EXPECT_EQ(forward[rank], (P - 1) * (state + transition)) << row;
        } else if (row.at("scan") == "doubling") {
          EXPECT_LE(forward[rank], rounds * (state + transition)) << row;
        }
      }
    }
  }
}

TEST(BenchScans, TakeTheOptionsOfTheConfig) {
  const auto most_forward = [](const std::string& group) {
    const Json row = bench(
                         "--scans two_level --tables bytes --ranks 8 --transitions scalar --set "
                         "sequence.group=" +
                         group)
                         .at("scans")
                         .at("bytes")[0];
    const std::vector<int64_t> forward = row.at("closed_form").at("forward");
    return *std::max_element(forward.begin(), forward.end());
  };
  EXPECT_EQ(most_forward("1"), 16 * 128 * 128 * 8);  // the chain of lasp
  EXPECT_GT(most_forward("4"), most_forward("1"));
}

TEST(BenchScans, TimesBoundEachOther) {
  const Json json = bench(
      "--scans all --tables overlap --ranks 1,2,4 --latency 100us --link-bandwidth 1GB/s "
      "--tokens 512,4096 --real-time 50ms --repeats 1");
  for (const Json& row : json.at("scans").at("overlap")) {
    for (const char* scans : {"prefix", "both"}) {
      const double kernels = row.at(scans).at("kernels_s"),
                   transfers = row.at(scans).at("transfers_s"),
                   path = row.at(scans).at("critical_path_s");
      EXPECT_GE(path, std::max(kernels, transfers) * (1 - kHair)) << row;
      EXPECT_LE(path, (kernels + transfers) * (1 + kHair)) << row;
      EXPECT_EQ(transfers > 0, row.at("ranks") > 1) << row;
    }
    EXPECT_GE(row.at("attained_s"), row.at("both").at("critical_path_s")) << row;
    EXPECT_EQ(row.at("layers").size(), 2u);
    for (const Json& layer : row.at("layers")) {
      const double added = layer.at("layer_s").get<double>() - layer.at("shard_s").get<double>();
      const double hair = kHair * layer.at("layer_s").get<double>();
      EXPECT_GE(added, -hair) << row;
      // A dense transition is one more pass over the tokens, which one rank does without.
      if (row.at("transition") == "dense") continue;
      EXPECT_LE(added, row.at("both").at("critical_path_s").get<double>() + hair) << row;
    }
  }
  EXPECT_FALSE(bench("--scans lasp --tables overlap --ranks 2 --real-time 0s")
                   .at("scans")
                   .at("overlap")[0]
                   .contains("attained_s"));
}

TEST(BenchScans, TheFastestIsTheLeastOfAll) {
  const Json json = bench(
      "--scans all --tables crossover --ranks 2,16 --transitions none --state-sizes 512KiB,64MiB "
      "--flops 60TFLOP/s --memory-bandwidth 3.35TB/s --link-bandwidth 50GB/s --latency 8us");
  const Json& rows = json.at("scans").at("crossover");
  ASSERT_EQ(rows.size(), 4u);
  for (const Json& row : rows) {
    std::vector<double> seconds;
    for (const auto& [scan, s] : row.at("seconds").items()) seconds.push_back(s);
    std::sort(seconds.begin(), seconds.end());
    EXPECT_EQ(row.at("seconds").at(row.at("fastest").get<std::string>()), seconds[0]) << row;
    EXPECT_DOUBLE_EQ(row.at("lead"), seconds[1] / seconds[0]) << row;
    EXPECT_GE(seconds[0], row.at("transfer_s")) << row;
  }
  EXPECT_EQ(rows[1].at("fastest"), "doubling");  // of 512 KiB over 16 ranks
  EXPECT_EQ(rows[3].at("fastest"), "zeco");      // of 64 MiB
}

TEST(BenchScans, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--scans zecco", 64, "--scans"},
      {"--scans zeco,zeco", 64, "--scans"},
      {"--scans zeco --transitions diagonal", 2, "--transitions"},
      {"--scans zeco --state 1,16,128", 2, "--state"},
      {"--scans zeco --state 1,16,128,0", 2, "--state"},
      {"--scans zeco --state 1,16,128,4097", 2, "--state"},
      {"--scans zeco --state 4096,4096,4096,4096", 2, "--state"},
      {"--scans zeco --state a,b,c,d", 2, "--state"},
      {"--scans zeco --tokens 0", 2, "--tokens"},
      {"--scans zeco --state-sizes 100KiB", 2, "--state-sizes"},
      {"--scans zeco --state-sizes 0B", 2, "--state-sizes"},
      {"--scans zeco --state-sizes 32GiB", 2, "--state-sizes"},
      {"--scans zeco --state-sizes 2", 2, "--state-sizes"},
      {"--scans zeco --tables memory", 2, "--tables"},
      {"--tables crossover", 2, "--tables"},
      {"--scans zeco --ranks 65", 2, "--ranks"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run =
        run_command(weft_alone() + " bench sequence " + arguments + " " + kConfig);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
    EXPECT_EQ(run.lines().size(), 1u) << run.out;
  }
}

}  // namespace
}  // namespace weft
