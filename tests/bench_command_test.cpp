// weft bench step: its floor is made of exactly the products that the planned step counts. weft
// bench collectives: it sends what the ledger's rules say.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/trainer.hpp"
#include "parallel/sequence/scan_bytes.hpp"
#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;

const std::set<std::string> kProductKernels{"matmul", "attention_forward", "attention_backward"};

Json bench(const std::string& config, const std::string& arguments) {
  const std::string file = fresh_folder() + "/bench.json";
  const CommandResult run = run_command(weft_alone() + " bench step " + config +
                                        " --repeats 2 --json " + file + " " + arguments);
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_NE(run.out.find("ratio"), std::string::npos) << run.out;
  std::ifstream in(file);
  return in ? Json::parse(in) : Json();
}

double sum_of(const Json& list, const char* key) {
  double sum = 0;
  for (const Json& entry : list) sum += entry.at(key).get<double>();
  return sum;
}

TEST(BenchStep, CountsTheProductsOfThePlan) {
  for (const char* set : {"model.num_hidden_layers=2", "model.causal=false", "train.precision=f32",
                          "data.seq_length=1", "train.loss_slice=1000", "data.seq_length=700"}) {
    SCOPED_TRACE(set);
    const Json json = bench("configs/parity.yaml", concat("--set ", set));
    ASSERT_FALSE(json.is_null());
    const StepPlan plan =
        plan_step(load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", {set}).config, 0);
    double planned = 0;
    for (const auto& [kernel, cost] : plan.kernels) {
      if (kProductKernels.contains(kernel)) planned += cost.flops;
    }
    EXPECT_EQ(sum_of(json.at("products"), "flops"), planned);
    EXPECT_EQ(sum_of(json.at("kernels"), "flops"), plan.flops());
    EXPECT_EQ(json.at("kernels").size(), plan.kernels.size());
    for (const Json& p : json.at("products")) {
      const double whole =
          2.0 * p.at("m").get<double>() * p.at("n").get<double>() * p.at("k").get<double>();
      EXPECT_NEAR(p.at("count").get<double>() * whole / p.at("flops").get<double>(), 1, 1e-12);
      EXPECT_GT(p.at("seconds"), 0);
    }
  }
}

TEST(BenchStep, ItsSecondsAddUp) {
  const Json json = bench("configs/parity.yaml", "");
  ASSERT_FALSE(json.is_null());
  EXPECT_EQ(json.at("runs").size(), 2u);
  EXPECT_EQ(json.at("ratio"), json.at("step_s").get<double>() / json.at("floor_s").get<double>());
  // Of two runs a median is the mean, so that sums of medians are medians of sums.
  EXPECT_NEAR(sum_of(json.at("products"), "seconds") / json.at("floor_s").get<double>(), 1, 1e-9);
  EXPECT_NEAR((sum_of(json.at("kernels"), "seconds") + json.at("rest_s").get<double>()) /
                  json.at("step_s").get<double>(),
              1, 1e-9);
  EXPECT_NEAR(sum_of(json.at("kernels"), "floor_s") / json.at("floor_s").get<double>(), 1, 1e-9);
}

TEST(BenchStep, NeedsNoData) {
  EXPECT_FALSE(bench("configs/parity.yaml", "--set data.path=/nowhere/tokens.h5").is_null());
  const std::string config = fresh_folder() + "/no-data.yaml";
  std::ofstream(config) << "model: {hidden_size: 32, num_hidden_layers: 1}\n"
                           "data: {seq_length: 64}\n";
  EXPECT_FALSE(bench(config, "").is_null());
}

TEST(BenchStep, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"configs/parity.yaml --set mesh.sequence=2", 64, "mesh"},
      {"configs/parity.yaml --set mesh.data=2", 64, "mesh"},
      {"configs/parity.yaml --set train.stepps=2", 64, "train.stepps"},
      {"configs/none.yaml", 64, "configs/none.yaml"},
      {"configs/parity.yaml --repeats 0", 2, "--repeats"},
      {"configs/parity.yaml --repeats 1 --json /proc/none/bench.json", 74, "/proc/none/bench.json"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(weft_alone() + " bench step " + arguments);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
  EXPECT_EQ(run_command(weft_alone() + " bench --help").code, 0);
  EXPECT_EQ(run_command(weft_alone() + " bench step --help").code, 0);
}

/// The JSON of `weft bench collectives`, started by `weft`.
Json bench_collectives(const std::string& weft, const std::string& arguments) {
  const std::string file = fresh_folder() + "/collectives.json";
  const CommandResult run = run_command(weft + " bench collectives --repeats 2 --calls 3 --json " +
                                        file + " " + arguments);
  EXPECT_EQ(run.code, 0) << run.out;
  std::ifstream in(file);
  return in ? Json::parse(in) : Json();
}

/// Half of what the busiest rank sends in a prefix and a suffix of a state with log decays by head.
int64_t scan_sent(const std::string& scan, int ranks, int64_t state_bytes) {
  const ScanByteShape shape{ranks, state_bytes, state_bytes / (128 * 128)};
  int64_t busiest = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    busiest = std::max(
        busiest, scan_bytes(scan, shape, rank, {}) + scan_bytes(scan, shape, ranks - 1 - rank, {}));
  }
  return busiest / 2;
}

/// Rows of `sizes`, each of every operation, with the bytes that the rules of the ledger give;
/// scans only of states with at least one head of 64 KiB.
void expect_sent(const Json& json, int ranks, const std::vector<int64_t>& sizes) {
  ASSERT_FALSE(json.is_null());
  EXPECT_EQ(json.at("ranks"), ranks);
  EXPECT_EQ(json.at("host_waits"), 0);
  std::map<std::string, std::vector<int64_t>> seen;
  for (const Json& row : json.at("results")) {
    const std::string operation = row.at("operation");
    const int64_t bytes = row.at("bytes");
    std::map<std::string, int64_t> sent{{"all_gather", bytes / ranks * (ranks - 1)},
                                        {"reduce_scatter", bytes / ranks * (ranks - 1)},
                                        {"all_reduce", 2 * bytes / ranks * (ranks - 1)},
                                        {"ring", bytes}};
    for (const StateScanKind& scan : state_scans()) {
      if (bytes >= 64 << 10) sent[scan.name] = scan_sent(scan.name, ranks, bytes);
    }
    ASSERT_TRUE(sent.contains(operation)) << operation;
    EXPECT_EQ(row.at("bytes_sent"), sent.at(operation)) << operation;
    EXPECT_GT(row.at("seconds"), 0);
    EXPECT_NEAR(row.at("bus_bytes_per_s").get<double>() * row.at("seconds").get<double>() /
                    row.at("bytes_sent").get<double>(),
                1, 1e-9);
    seen[operation].push_back(bytes);
  }
  EXPECT_EQ(seen.size(), sizes.back() < 64 << 10 ? 4 : 4 + state_scans().size());
  for (const auto& [operation, of] : seen) EXPECT_EQ(of, sizes) << operation;
}

TEST(BenchCollectives, SendsWhatTheLedgerSays) {
  // 1000 bytes are 250 elements, of which three ranks take 83 each.
  expect_sent(bench_collectives(weft_alone(), "--ranks 3 --sizes 4,1000,3k"), 3, {12, 996, 3072});
  const Json json = bench_collectives(weft_on(2), "--sizes 64k");
  expect_sent(json, 2, {65536});
  expect_sent(bench_collectives(weft_alone(), "--ranks 4 --sizes 64k,192k"), 4, {65536, 196608});
  EXPECT_EQ(json.at("comm"), "mpi");
}

TEST(BenchCollectives, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--ranks 1", 2, "one rank sends nothing"},
      {"--comm nccl", 2, "--device cuda"},
      {"--comm mpi", 2, "mpirun"},
      {"--comm smoke", 2, "--comm"},
      {"--sizes 1k,3", 2, "--sizes"},
      {"--sizes few", 2, "--sizes"},
      {"--ranks 2 --sizes 1k --json /proc/none/x.json", 74, "/proc/none/x.json"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(weft_alone() + " bench collectives " + arguments);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
}

}  // namespace
}  // namespace weft
