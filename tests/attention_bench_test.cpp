// weft bench sequence --tables measured: its rows are those asked for, one rank confirms them, a
// mistake fails its row, and what cannot run says why.
#include "launch/attention_bench.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/parity.hpp"
#include "launch/sequence_bench_tables.hpp"
#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "tests/command.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

const std::string kMeasured =
    " bench sequence " WEFT_SOURCE_DIR "/configs/parity.yaml --tables measured ";

/// The rows of a run that leaves with 0, all strategies on each of `ranks` in turn.
std::vector<nlohmann::json> measure(const std::string& arguments, const std::vector<int>& ranks) {
  const std::string file = fresh_folder() + "/measured.json";
  std::string list;
  for (const int P : ranks) list += (list.empty() ? "" : ",") + std::to_string(P);
  const CommandResult run = run_command(weft_alone() + kMeasured + "--repeats 1 --ranks " + list +
                                        " --json " + file + " " + arguments);
  EXPECT_EQ(run.code, 0) << run.out;
  std::ifstream in(file);
  const nlohmann::json json = in ? nlohmann::json::parse(in) : nlohmann::json::object();
  EXPECT_EQ(json.size(), 2u) << json;  // the layer and this table
  const std::vector<nlohmann::json> rows = json.value("measured", nlohmann::json::array());
  size_t at = 0;
  for (const AttentionStrategy& strategy : attention_strategies()) {
    for (const int P : ranks) {
      if (at == rows.size()) break;
      EXPECT_EQ(rows[at].at("strategy"), strategy.name);
      EXPECT_EQ(rows[at++].at("ranks"), P);
    }
  }
  EXPECT_EQ(rows.size(), attention_strategies().size() * ranks.size());
  return rows;
}

TEST(MeasuredAttention, OneRankConfirmsEveryStrategy) {
  // 101 tokens, 8 heads of 8, 2 of keys, 2 sequences.
  const std::tuple<const char*, DType, double> layers[] = {
      {"", DType::f64, 101 * 102 / 2},
      {"--set train.precision=f32", DType::f32, 101 * 102 / 2},
      {"--set model.causal=false", DType::f64, 101 * 101},
      {"--set data.seq_length=2", DType::f64, 3},  // one of three ranks has no token
  };
  for (const auto& [sets, dtype, pairs] : layers) {
    double ring_s = 0;
    for (const nlohmann::json& row : measure(sets, {3})) {
      SCOPED_TRACE(sets + row.dump());
      EXPECT_FALSE(row.contains("refused") || row.contains("failed"));
      EXPECT_LE(row.at("error").at("value"), oracle_tolerance(dtype));
      EXPECT_EQ(row.at("flops"), 7 * 2 * pairs * 2 * 8 * 8);
      const double both_s = row.at("both_s");
      EXPECT_DOUBLE_EQ(row.at("forward_s").get<double>() + row.at("backward_s").get<double>(),
                       both_s);
      EXPECT_GT(row.at("forward_s"), 0);
      EXPECT_GT(row.at("backward_s"), 0);
      EXPECT_DOUBLE_EQ(row.at("flops_per_s").get<double>() * both_s, row.at("flops"));
      if (row.at("strategy") == "ring") ring_s = both_s;
      EXPECT_DOUBLE_EQ(row.at("over_ring"), ring_s / both_s);
      EXPECT_EQ(row.at("device"), "cpu");
      EXPECT_EQ(row.at("comm"), "threads");
      EXPECT_EQ(row.at("repeats"), 1);
    }
  }
}

TEST(MeasuredAttention, RatiosAreOfAsManyRanks) {
  const std::vector<nlohmann::json> rows = measure("", {1, 2});
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_DOUBLE_EQ(rows[i].at("over_ring"),
                     rows[i % 2].at("both_s").get<double>() / rows[i].at("both_s").get<double>());
  }
  // On one rank the ring is the very block that it is held against; on two its sums are others.
  EXPECT_EQ(rows[0].at("error").at("value"), 0);
  EXPECT_GT(rows[1].at("error").at("value"), 0);
}

TEST(MeasuredAttention, ErrorsAndTheRingCanBeLeftOut) {
  const std::string file = fresh_folder() + "/measured.json";
  const CommandResult run = run_command(weft_alone() + kMeasured +
                                        "--strategies ulysses --ranks 2 --no-error --json " + file);
  ASSERT_EQ(run.code, 0) << run.out;
  std::ifstream in(file);
  const auto row = nlohmann::json::parse(in).at("measured").at(0);
  EXPECT_GT(row.at("both_s"), 0);
  EXPECT_FALSE(row.contains("error") || row.contains("over_ring")) << row;
}

// ---- Mistakes that a row must show

enum class Mistake {
  none,
  one_gradient,
  own_keys_alone,
  more_bytes,
  more_memory,
  too_much_memory,
  refuses,
};

/// The ring with a mistake in it. What a plan must not foresee is done on no meta device.
template <Mistake mistake>
class FlawedRing final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    constexpr int64_t kTooMuch = int64_t{1} << 50;
    const bool planned = ctx.compute.device() == Device::meta;
    if (mistake == Mistake::refuses) throw Error(ExitCode::config, "not on such a layer");
    if (mistake == Mistake::too_much_memory || (mistake == Mistake::more_memory && !planned)) {
      const Scope scope(ctx.scratch);
      ctx.scratch.allocate("of no use", DType::u8, {kTooMuch});
    }
    ring_->forward(shard, out, lse, ctx);
    if (mistake == Mistake::more_bytes && !planned) ring_->forward(shard, out, lse, ctx);
    if (mistake == Mistake::own_keys_alone) attend_own_block(shard, out, lse, ctx);
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    ring_->backward(shard, out, lse, dout, gradients, ctx);
    const bool first = ctx.mesh.at(Axis::sequence) == 0 && gradients.dk.data != nullptr;
    if (mistake == Mistake::one_gradient && first) gradients.dk.as<double>()[0] += 1e-6;
  }

  static std::unique_ptr<AttentionParallel> make() { return std::make_unique<FlawedRing>(); }

 private:
  static void attend_own_block(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                               StepContext& ctx) {
    const Scope scope(ctx.scratch);
    const Queries queries = own_queries(shard, ctx);
    clear_output(out, lse, ctx);
    attention_forward({.out = out,
                       .lse = lse,
                       .scratch = attention_tiles(shard, ctx),
                       .block = block_of(shard, queries, {shard.k, shard.v}, queries.first)},
                      ctx.compute);
  }

  std::unique_ptr<AttentionParallel> ring_ = make_ring_attention();
};

template <Mistake mistake>
constexpr AttentionStrategy kFlawed{"flawed", "", FlawedRing<mistake>::make};

/// The only row of `strategy` on two ranks.
MeasuredAttention row_of(const AttentionStrategy& strategy) {
  const Config config = parity_config({"data.seq_length=40"});
  const StrategyOnRanks cases[] = {{&strategy, 2, ""}};
  const AttentionRuns runs{.place = {.comm = "threads"}, .repeats = 1};
  std::vector<MeasuredAttention> rows;
  measure_attention(config, cases, runs,
                    [&](const MeasuredAttention& row) { rows.push_back(row); });
  EXPECT_EQ(rows.size(), 1u);
  Json json;
  EXPECT_EQ(measured_table(config, cases, runs, json), rows[0].failed.empty());
  EXPECT_EQ(json.at(0).contains("failed"), !rows[0].failed.empty());
  EXPECT_EQ(json.at(0).contains("refused"), !rows[0].refused.empty());
  return rows[0];
}

TEST(MeasuredAttention, MistakesFailTheirRow) {
  const MeasuredAttention sound = row_of(kFlawed<Mistake::none>);
  EXPECT_EQ(sound.failed + sound.refused, "");
  EXPECT_FALSE(sound.over_ring);  // of another name
  const std::tuple<AttentionStrategy, const char*> mistakes[] = {
      {kFlawed<Mistake::one_gradient>, "dk is off by"},
      {kFlawed<Mistake::own_keys_alone>, "is off by"},
      {kFlawed<Mistake::more_bytes>, "bytes sent for attention forward of layer 0"},
      {kFlawed<Mistake::more_memory>, "arena 'attention'"},
  };
  for (const auto& [strategy, says] : mistakes) {
    const MeasuredAttention row = row_of(strategy);
    EXPECT_NE(row.failed.find(says), std::string::npos) << says << ": " << row.failed;
    EXPECT_EQ(row.refused, "");
  }
}

TEST(MeasuredAttention, WhatCannotRunSaysWhy) {
  const std::tuple<AttentionStrategy, const char*> refusals[] = {
      {kFlawed<Mistake::refuses>, "not on such a layer"},
      {kFlawed<Mistake::too_much_memory>, "the arenas of all ranks take"},
  };
  for (const auto& [strategy, says] : refusals) {
    const MeasuredAttention row = row_of(strategy);
    EXPECT_NE(row.refused.find(says), std::string::npos) << says << ": " << row.refused;
    EXPECT_EQ(row.failed, "");
  }
  const CommandResult run =
      run_command(weft_alone() + kMeasured + "--set data.seq_length=1000000000 --strategies ring");
  EXPECT_EQ(run.code, 71) << run.out;
  EXPECT_NE(run.out.find("the tensors of the whole sequence take"), std::string::npos) << run.out;
}

TEST(MeasuredAttention, MistakesLeaveWithTheirCode) {
  const std::tuple<const char*, int, const char*> mistakes[] = {
      {"--comm nccl", 2, "--comm nccl needs --device cuda"},
      {"--comm mpi", 2, "--comm"},
      {"--device tpu", 2, "--device"},
      {"--repeats 0", 2, "--repeats"},
      {"--scans all", 2, "measured is of attention strategies"},
      {"--set train.precision=bf16", 64, "train.precision: bf16 needs a GPU"},
  };
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(weft_alone() + kMeasured + arguments);
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
    EXPECT_EQ(run.lines("weft: ").size(), 1u) << run.out;
  }
  EXPECT_EQ(run_command(weft_on(2) + kMeasured).code, 2);
}

}  // namespace
}  // namespace weft
