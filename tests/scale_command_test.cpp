// weft scale: its rows are those asked for, what it says of bytes, memory and errors is that of the
// plan and of one rank, a mistake fails its row, and what cannot run says why.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/machine.hpp"
#include "launch/parity.hpp"
#include "launch/scale.hpp"
#include "parallel/sequence/strategies.hpp"
#include "tests/command.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;
using Names = std::vector<std::string>;

const std::string kConfig = WEFT_SOURCE_DIR "/configs/parity.yaml";
const std::string kTwoLayers = " --set model.num_hidden_layers=2 ";

struct ScaleRun : CommandResult {
  Json json;
};

ScaleRun scale(const std::string& arguments) {
  const std::string file = fresh_folder() + "/scale.json";
  ScaleRun run{
      run_command(weft_alone() + " scale --json " + file + kTwoLayers + arguments + " " + kConfig),
      {}};
  std::ifstream in(file);
  run.json = in ? Json::parse(in) : Json::object();
  return run;
}

Names all_strategies() {
  Names names;
  for (const AttentionStrategy& row : attention_strategies()) names.push_back(row.name);
  return names;
}

Names all_scans() {
  Names names;
  for (const StateScanKind& row : state_scans()) names.push_back(row.name);
  return names;
}

/// The row of a length, pair and number of ranks; empty names are those that the row has not.
Json row_of(const Json& json, int64_t tokens, const std::string& attention,
            const std::string& state, int ranks) {
  const auto is = [](const Json& value, const std::string& name) {
    return name.empty() ? value.is_null() : value == name;
  };
  for (const Json& row : json.at("rows")) {
    if (row.at("tokens") == tokens && row.at("ranks") == ranks &&
        is(row.at("attention"), attention) && is(row.at("state"), state)) {
      return row;
    }
  }
  ADD_FAILURE() << "no row of " << tokens << " " << attention << " " << state << " " << ranks;
  return Json::object();
}

/// A row of `config`, which has its length, strategies and mesh, is one of its step.
void expect_step_of(const Json& row, const Config& config, size_t repeats) {
  SCOPED_TRACE(row.dump());
  ASSERT_FALSE(row.contains("skipped") || row.contains("failed"));
  const std::vector<double> seconds = row.at("steps_s");
  EXPECT_EQ(seconds.size(), repeats);
  const double step_s = row.at("step_s");
  EXPECT_EQ(step_s, *std::ranges::min_element(seconds));
  EXPECT_GT(step_s, 0);
  const auto tokens = static_cast<double>(config.train.global_batch_size * config.data.seq_length);
  const int ranks = config.mesh.ranks();
  EXPECT_NEAR(row.at("tokens_per_s").get<double>() * step_s / tokens, 1, 1e-12);
  EXPECT_NEAR(row.at("tokens_per_s_per_rank").get<double>() * ranks * step_s / tokens, 1, 1e-12);

  int64_t bytes = 0, peak = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const StepPlan plan = plan_step(config, rank);
    for (const auto& [key, sent] : plan.bytes) bytes += key.group == "sequence" ? sent : 0;
    peak = std::max(peak, plan.memory.peak());
  }
  EXPECT_EQ(bytes > 0, ranks > 1);
  EXPECT_EQ(row.at("sequence_bytes"), (Json{{"predicted", bytes}, {"counted", bytes}}));
  EXPECT_EQ(row.at("peak_bytes"), (Json{{"planned", peak}, {"real", peak}}));

  if (ranks == 1) {
    EXPECT_TRUE(row.at("error").is_null());
  } else {
    EXPECT_LE(row.at("error").at("loss"), parity_tolerance(config.train.precision));
    EXPECT_LE(row.at("error").at("grad"), parity_tolerance(config.train.precision));
    EXPECT_GT(row.at("error").at("grad"), 0);  // sums in another order
    const double largest = std::max(row.at("error").at("loss").get<double>(),
                                    row.at("error").at("grad").get<double>());
    EXPECT_NEAR(row.at("error").at("of_tolerance").get<double>() *
                    parity_tolerance(config.train.precision) / largest,
                1, 1e-9);
  }
}

double rate(const Json& row) {
  return row.at("tokens_per_s_per_rank");
}

TEST(Scale, RowsAreThoseOfPlannedSteps) {
  const ScaleRun run = scale("--seq 24..96 --ranks 4,1,2");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json.at("ok"), true);
  EXPECT_EQ(run.json.at("tolerance"), parity_tolerance(DType::f64));
  EXPECT_EQ(run.json.at("device"), "cpu");
  EXPECT_EQ(run.json.at("comm"), "threads");
  EXPECT_EQ(run.json.at("machine").at("cores"), this_machine().cores);
  EXPECT_FALSE(run.json.at("machine").contains("gpus"));
  const size_t strategies = attention_strategies().size();
  EXPECT_EQ(run.json.at("rows").size(), 3 * (1 + 2 * strategies));
  for (const int64_t tokens : {24, 48, 96}) {
    const Json alone = row_of(run.json, tokens, "", "", 1);
    const Names sets{"model.num_hidden_layers=2", concat("data.seq_length=", tokens)};
    expect_step_of(alone, parity_config(sets), 2);
    EXPECT_EQ(alone.at("strong_efficiency"), 1);
    EXPECT_EQ(alone.at("weak_efficiency"), 1);
    for (const std::string& strategy : all_strategies()) {
      for (const int ranks : {2, 4}) {
        Config config = on_mesh(parity_config(sets), 1, ranks);
        config.sequence.attention = {strategy};
        const Json row = row_of(run.json, tokens, strategy, "", ranks);
        expect_step_of(row, config, 2);
        EXPECT_EQ(row.at("strong_efficiency"), rate(row) / rate(alone));
        if (tokens / ranks < 24) {
          EXPECT_TRUE(row.at("weak_efficiency").is_null());
        } else {
          EXPECT_EQ(row.at("weak_efficiency"),
                    rate(row) / rate(row_of(run.json, tokens / ranks, "", "", 1)));
        }
      }
    }
  }
}

TEST(Scale, ScansOfAPureModelAndTheFewestRanksOfTheList) {
  const ScaleRun run = scale(
      "--set model.layer_pattern=L --set model.linear.family=gla --set train.precision=f32 "
      "--seq 50,100 --ranks 3,6 --repeats 1 --strategies lasp2,zeco");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json.at("rows").size(), 8u);
  for (const char* scan : {"lasp2", "zeco"}) {
    Config config = on_mesh(
        parity_config({"model.num_hidden_layers=2", "model.layer_pattern=L",
                       "model.linear.family=gla", "train.precision=f32", "data.seq_length=100"}),
        1, 6);
    config.sequence.state = {scan};
    const Json row = row_of(run.json, 100, "", scan, 6);
    expect_step_of(row, config, 1);
    EXPECT_EQ(row.at("strong_efficiency"), rate(row) / rate(row_of(run.json, 100, "", scan, 3)));
    EXPECT_EQ(row.at("weak_efficiency"), rate(row) / rate(row_of(run.json, 50, "", scan, 3)));
  }
}

TEST(Scale, PairsAreThoseThatTheModelUses) {
  const auto pairs = [](const char* pattern, const Names& names, bool product = false) {
    Names sets{concat("model.layer_pattern=", pattern), "sequence.attention=ulysses",
               "sequence.state=lasp2"};
    const auto has = [&](char letter) {
      return std::string(pattern).find(letter) != std::string::npos;
    };
    if (has('L')) sets.push_back("model.linear.family=gla");
    if (has('W')) sets.push_back("model.window=4");
    const Config config = parity_config(sets);
    return strategy_pairs(config, names, product, "--strategies");
  };
  using Pairs = std::vector<StrategyPair>;
  const size_t strategies = all_strategies().size(), scans = all_scans().size();
  EXPECT_EQ(pairs("*", {"all"}).size(), strategies);
  EXPECT_EQ(pairs("LW", {"all"}).size(), scans);
  EXPECT_EQ(pairs("*", {"rsa", "ring"}), (Pairs{{{"ring"}, {}}, {{"rsa"}, {}}}));
  EXPECT_EQ(pairs("L", {"zeco"}), (Pairs{{{}, {"zeco"}}}));
  EXPECT_EQ(pairs("W", {"all"}), (Pairs{{{}, {}}}));
  // The config's own pair is one of both kinds, and comes once.
  EXPECT_EQ(pairs("L*", {"all"}).size(), strategies + scans - 1);
  EXPECT_EQ(pairs("L*", {"all"}, true).size(), strategies * scans);
  EXPECT_EQ(pairs("L*", {"ring"}), (Pairs{{{"ring"}, {"lasp2"}}}));
  EXPECT_EQ(pairs("L*", {"zeco"}, true), (Pairs{{{"ulysses"}, {"zeco"}}}));
  EXPECT_EQ(pairs("L*", {"ring", "zeco"}), (Pairs{{{"ring"}, {"lasp2"}}, {{"ulysses"}, {"zeco"}}}));
  EXPECT_EQ(pairs("L*", {"ring", "zeco"}, true), (Pairs{{{"ring"}, {"zeco"}}}));
}

TEST(Scale, WhatCannotRunSaysWhyAndTheRestRuns) {
  const ScaleRun run = scale("--seq 8,64,4k --ranks 1,2 --strategies ring --memory 8MiB");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json.at("ok"), true);
  EXPECT_FALSE(row_of(run.json, 64, "ring", "", 2).contains("skipped"));
  for (const Json& row :
       {row_of(run.json, 4096, "", "", 1), row_of(run.json, 4096, "ring", "", 2)}) {
    const std::string why = row.at("skipped");
    EXPECT_NE(why.find("the limit is 0.008 GiB"), std::string::npos) << why;
    EXPECT_FALSE(row.contains("step_s"));
  }
  EXPECT_NE(run.out.find("skipped: the arenas of all ranks take"), std::string::npos) << run.out;

  // A length that the config rules out.
  const ScaleRun projected = scale(
      "--set model.layer_pattern=P --set model.projected_keys=16 --set model.causal=false "
      "--set data.documents=false --seq 8,32 --ranks 2");
  ASSERT_EQ(projected.code, 0) << projected.out;
  const std::string why = row_of(projected.json, 8, "", "", 2).at("skipped");
  EXPECT_NE(why.find("model.projected_keys"), std::string::npos) << why;
  EXPECT_LE(row_of(projected.json, 32, "", "", 2).at("error").at("grad"),
            parity_tolerance(DType::f64));
}

TEST(Scale, WithoutOneRankThereIsNoError) {
  for (const char* arguments : {"--seq 32 --ranks 2 --strategies ring --no-error",
                                "--seq 32 --ranks 1,2 --strategies ring --no-error"}) {
    const ScaleRun run = scale(arguments);
    ASSERT_EQ(run.code, 0) << run.out;
    EXPECT_TRUE(row_of(run.json, 32, "ring", "", 2).at("error").is_null()) << run.out;
  }
  // One rank with the config's strategy takes more than two with this one.
  const ScaleRun run = scale("--seq 32 --ranks 2 --strategies rsa --memory 2MiB");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_TRUE(row_of(run.json, 32, "", "", 1).contains("skipped")) << run.out;
  EXPECT_TRUE(row_of(run.json, 32, "rsa", "", 2).at("error").is_null()) << run.out;
}

TEST(Scale, ARunThatDivergesFailsItsRow) {
  const ScaleRun run = scale("--set optimizer.lr=1e300 --seq 16 --ranks 1,2 --strategies ring");
  EXPECT_EQ(run.code, 3) << run.out;
  EXPECT_EQ(run.json.at("ok"), false);
  EXPECT_EQ(run.json.at("rows").size(), 2u);
  for (const Json& row : run.json.at("rows")) {
    EXPECT_NE(row.at("failed").get<std::string>().find("not finite"), std::string::npos) << row;
  }
}

// ---- Mistakes that a row must show

enum class Mistake { one_number, one_pass_twice };

/// The ring with a mistake in its forward pass.
template <Mistake kind>
class FlawedRing final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    ring_->forward(shard, out, lse, ctx);
    if (kind == Mistake::one_pass_twice) ring_->forward(shard, out, lse, ctx);
    if (kind == Mistake::one_number && out.numel() > 0) out.as<double>()[0] += 1e-8;
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    ring_->backward(shard, out, lse, dout, gradients, ctx);
  }

  static std::unique_ptr<AttentionParallel> make() { return std::make_unique<FlawedRing>(); }

 private:
  std::unique_ptr<AttentionParallel> ring_ = make_ring_attention();
};

/// What a run of two ranks of the ring says when `strategy` takes its place.
std::string failure_with(const AttentionStrategy& strategy) {
  const ScaleGrid grid{.lengths = {40},
                       .pairs = {{{"ring"}, {}}},
                       .ranks = {1, 2},
                       .repeats = 1,
                       .memory_bytes = int64_t{1} << 30};
  std::vector<ScaleCell> cells;
  run_scale(
      grid, [](int64_t tokens) { return parity_config({concat("data.seq_length=", tokens)}); },
      [&](const ScaleCell& cell) { cells.push_back(cell); }, {.attention = &strategy});
  EXPECT_EQ(cells.size(), 2u);
  EXPECT_TRUE(cells[0].failed.empty() && cells[0].skipped.empty());
  EXPECT_EQ(cells[1].ranks, 2);
  return cells[1].failed;
}

TEST(Scale, MistakesFailTheirRow) {
  EXPECT_EQ(failure_with(attention_strategy("ring")), "");
  const std::tuple<AttentionStrategy, const char*> mistakes[] = {
      {{"off", "", FlawedRing<Mistake::one_number>::make}, "is off by"},
      {{"twice", "", FlawedRing<Mistake::one_pass_twice>::make},
       "bytes sent for attention forward"},
      // These hold other memory than was planned for a ring, less and more.
      {attention_strategy("rsa"), "peak bytes planned"},
      {attention_strategy("lightseq"), "arena 'frames'"},
  };
  for (const auto& [strategy, says] : mistakes) {
    const std::string failure = failure_with(strategy);
    EXPECT_NE(failure.find(says), std::string::npos) << strategy.name << ": " << failure;
  }
}

TEST(Scale, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--seq 1k..3k", 2, "--seq: expected a range whose end is its start doubled"},
      {"--seq 32K", 2, "--seq"},
      {"--ranks 0", 2, "--ranks"},
      {"--ranks 65", 2, "--ranks"},
      {"--repeats 0", 2, "--repeats"},
      {"--memory 40", 2, "--memory"},
      {"--memory 0B", 2, "--memory"},
      {"--html x.html", 2, "--html"},
      {"--strategies ringg", 64, "--strategies: expected some of all, ring,"},
      {"--strategies ring,ring", 64, "--strategies: expected 'ring' once"},
      {"--strategies zeco", 64,
       "zeco is a scan of states, and the model has no layer with a state"},
      {"--set mesh.data=2", 64, "mesh.data"},
      {"--set train.comm=mpi", 64, "train.comm"},
      {"--set train.device=cuda", 64, "train.device: cuda: "},
      {"--set train.comm=nccl", 64, "train.comm: nccl needs train.device: cuda"},
      {"--set train.precision=bf16", 64, "train.precision: bf16 needs a GPU"},
      {"--set train.stepps=2", 64, "train.stepps"},
      {"--json /proc/none/scale.json", 74, "/proc/none/scale.json"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(weft_alone() + " scale " + kConfig + " " + arguments);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << arguments << "\n" << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
  EXPECT_EQ(run_command(weft_alone() + " scale configs/none.yaml").code, 64);
  EXPECT_EQ(run_command(weft_alone() + " scale --help").code, 0);
  EXPECT_EQ(run_command(weft_on(2) + " scale " + kConfig).code, 2);
}

TEST(Machine, IsThisOne) {
  const Machine machine = this_machine();
  EXPECT_GE(machine.cores, 1);
  EXPECT_LE(machine.cores, sysconf(_SC_NPROCESSORS_CONF));
  EXPECT_GT(machine.memory_bytes, 0);
  EXPECT_LT(machine.memory_bytes, sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
}

}  // namespace
}  // namespace weft
