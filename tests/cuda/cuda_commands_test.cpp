// weft train, weft parity, weft scale and weft bench on GPUs, from the command line.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/comm/nccl.hpp"
#include "src/core/check.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"
#include "tests/command.hpp"

namespace weft {
namespace {

class CommandsOnGpus : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

/// The losses of a few steps of the quickstart's model, on made-up text.
std::vector<double> train(const std::string& program, int ranks, const std::string& sets) {
  const std::string folder = fresh_folder();
  const CommandResult result = run_command(
      concat(program, " train configs/quickstart.yaml --strict --output ", folder,
             " --set data.path=synthetic --set train.steps=4 --set optimizer.warmup_steps=1 ",
             "--set train.device=cuda --set mesh.sequence=", ranks, " ", sets));
  EXPECT_EQ(result.code, 0) << result.out;
  for (const double mfu : metric(folder, "mfu")) EXPECT_GT(mfu, 0);
  return metric(folder, "loss");
}

void expect_equal(const std::vector<double>& got, const std::vector<double>& reference) {
  ASSERT_EQ(got.size(), 4u);
  ASSERT_EQ(reference.size(), 4u);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / reference[i], 1, 1e-4) << i;
}

TEST_F(CommandsOnGpus, TrainAsTheCpuDoes) {
  expect_equal(train(weft_alone(), 1, ""), train(weft_alone(), 1, "--set train.device=cpu"));
}

TEST_F(CommandsOnGpus, TrainOnRanksThatShareACard) {
  const std::vector<double> alone = train(weft_alone(), 1, "");
  expect_equal(train(weft_alone(), 4, "--set train.comm=threads"), alone);
  expect_equal(train(weft_on(4), 4, "--set train.comm=mpi"), alone);
}

TEST_F(CommandsOnGpus, TrainOverNccl) {
  if (!has_nccl() || cuda::device_count() < 2) GTEST_SKIP() << "needs NCCL and 2 GPUs";
  const std::vector<double> alone = train(weft_alone(), 1, "");
  expect_equal(train(weft_on(2), 2, ""), alone);  // auto
  expect_equal(train(weft_on(2), 2, "--set train.comm=nccl"), alone);
  expect_equal(train(weft_alone(), 2, "--set train.comm=nccl"), alone);
}

/// What a deterministic run of softmax layers in bf16 leaves: its checksum and every step's
/// figures.
struct Ending {
  std::string checksum;
  std::vector<double> losses, norms;
  bool operator==(const Ending&) const = default;
};

Ending train_deterministically(const std::string& program, const std::string& sets) {
  const std::string folder = fresh_folder();
  const CommandResult result = run_command(concat(
      program, " train configs/quickstart.yaml --strict --output ", folder,
      " --set data.path=synthetic --set data.documents=false --set train.steps=8 ",
      "--set optimizer.warmup_steps=1 ", "--set train.device=cuda --set train.precision=bf16 ",
      "--set train.deterministic=true ", sets));
  EXPECT_EQ(result.code, 0) << result.out;
  EXPECT_EQ(result.lines("weft: deterministic: own kernels take ").size(), 1u) << result.out;
  const auto checksums = result.lines("weft: parameters after 8 steps: checksum ");
  EXPECT_EQ(checksums.size(), 1u) << result.out;
  return {checksums.empty() ? "" : checksums[0], metric(folder, "loss"),
          metric(folder, "grad_norm")};
}

void expect_one_ending(const std::string& program, const std::string& sets) {
  const Ending first = train_deterministically(program, sets);
  EXPECT_EQ(first.losses.size(), 8u);
  EXPECT_TRUE(train_deterministically(program, sets) == first) << sets;
  EXPECT_NE(train_deterministically(program, sets + " --set train.seed=2").checksum,
            first.checksum);
}

TEST_F(CommandsOnGpus, TwoDeterministicRunsEndWithOneChecksum) {
  if (!cuda::has_cudnn()) GTEST_SKIP() << "no cuDNN in this build";
  expect_one_ending(weft_alone(), "--set mesh.sequence=1");
  expect_one_ending(weft_alone(), "--set mesh.sequence=4 --set train.comm=threads");
  expect_one_ending(weft_on(2), "--set mesh.sequence=2 --set train.comm=mpi");
}

TEST_F(CommandsOnGpus, TwoDeterministicRunsOverNcclEndWithOneChecksum) {
  if (!cuda::has_cudnn()) GTEST_SKIP() << "no cuDNN in this build";
  if (!has_nccl() || cuda::device_count() < 2) GTEST_SKIP() << "needs NCCL and 2 GPUs";
  const int ranks = std::min(cuda::device_count(), 4);  // more than two have more than one order
  for (const char* axis : {"data", "sequence"}) {
    expect_one_ending(weft_on(ranks),
                      concat("--set train.global_batch_size=", 2 * ranks,
                             " --set mesh.sequence=1 --set mesh.", axis, "=", ranks));
  }
}

TEST_F(CommandsOnGpus, ADivergedRunNamesTheStepThatWasNotTaken) {
  const std::string folder = fresh_folder();
  const CommandResult result = run_command(
      concat(weft_alone(), " train configs/quickstart.yaml --strict --output ", folder,
             " --set data.path=synthetic --set train.steps=6 --set optimizer.warmup_steps=0 ",
             "--set optimizer.lr=1e300 --set train.device=cuda --set mesh.sequence=1"));
  EXPECT_EQ(result.code, 70) << result.out;
  ASSERT_EQ(result.lines("weft: step").size(), 1u) << result.out;
  EXPECT_TRUE(result.lines("weft: step").front().starts_with("weft: step 1: the loss is "))
      << result.out;
  EXPECT_EQ(metric(folder, "step"), (std::vector<double>{0, 1}));
}

/// Exit code and output of parity in f32 on two ranks.
void expect_parity(const std::string& program, const std::string& arguments) {
  const CommandResult result =
      run_command(concat(program,
                         " parity configs/parity.yaml --device cuda --dtype f32 --steps 2 "
                         "--mesh sequence=2 ",
                         arguments));
  EXPECT_EQ(result.code, 0) << result.out;
}

TEST_F(CommandsOnGpus, HoldParity) {
  expect_parity(weft_alone(), "--comm threads");
  expect_parity(weft_on(2), "--comm mpi");
}

TEST_F(CommandsOnGpus, HoldParityOverNccl) {
  if (!has_nccl() || cuda::device_count() < 2) GTEST_SKIP() << "needs NCCL and 2 GPUs";
  expect_parity(weft_alone(), "--comm nccl");
  expect_parity(weft_on(2), "--comm nccl");
  expect_parity(weft_on(2), "");
}

/// NCCL needs no second card to be wrong: ranks that share one talk over sockets. A strategy or a
/// scan a layer.
TEST_F(CommandsOnGpus, HoldParityOverNcclOnOneCard) {
  if (!has_nccl()) GTEST_SKIP() << "needs NCCL";
  for (const char* mesh : {"sequence=4", "sequence=2,tensor=2", "data=2,sequence=2"}) {
    SCOPED_TRACE(mesh);
    const CommandResult result = run_command(concat(
        WEFT_SOURCE_DIR "/tools/nccl_on_one_gpu.sh 4 ", weft_alone(),
        " parity configs/parity.yaml --device cuda --dtype f32 --steps 1 --comm nccl --mesh ", mesh,
        " --set 'model.layer_pattern=*L*L*L*L*L' --set model.num_hidden_layers=10 "
        "--set model.linear.family=simple_gla "
        "--set 'sequence.attention=[ring, lightseq, allgather, ulysses, rsa]' "
        "--set 'sequence.state=[lasp, lasp2, zeco, doubling, two_level]'"));
    EXPECT_EQ(result.code, 0) << result.out;
  }
}

/// What `weft scale` writes of the quickstart's model, a layer with a state and a softmax layer.
nlohmann::json scale(const std::string& arguments, int code = 0) {
  const std::string file = fresh_folder() + "/scale.json";
  const CommandResult result =
      run_command(concat(weft_alone(), " scale configs/quickstart.yaml --json ", file,
                         " --strategies ring,lasp2 --set train.device=cuda ", arguments));
  EXPECT_EQ(result.code, code) << result.out;
  std::ifstream in(file);
  return in ? nlohmann::json::parse(in) : nlohmann::json{{"rows", nlohmann::json::array()}};
}

/// A row that was measured, sent and held what was planned and computed what one rank does.
void expect_sound(const nlohmann::json& row, size_t repeats) {
  SCOPED_TRACE(row.dump());
  ASSERT_FALSE(row.contains("skipped") || row.contains("failed"));
  EXPECT_EQ(row.at("steps_s").size(), repeats);
  for (const double seconds : row.at("steps_s")) EXPECT_GT(seconds, 0);
  EXPECT_EQ(row.at("sequence_bytes").at("counted"), row.at("sequence_bytes").at("predicted"));
  EXPECT_EQ(row.at("peak_bytes").at("real"), row.at("peak_bytes").at("planned"));
  if (row.at("ranks") == 1) return;
  EXPECT_GT(row.at("sequence_bytes").at("counted"), 0);
  EXPECT_GT(row.at("error").at("grad"), 0);  // sums in another order
  EXPECT_LE(row.at("error").at("of_tolerance"), 1);
}

TEST_F(CommandsOnGpus, ScaleOverRanksThatShareACard) {
  for (const char* precision : {"f32", "bf16"}) {
    const nlohmann::json json = scale(
        concat("--seq 256,512 --ranks 1,2,3 --repeats 3 ", "--set train.precision=", precision));
    EXPECT_EQ(json.at("device"), "cuda");
    EXPECT_EQ(json.at("comm"), "threads");
    EXPECT_EQ(json.at("machine").at("gpus"), cuda::device_count());
    EXPECT_EQ(json.at("rows").size(), 2u * (1 + 2 * 2));
    for (const nlohmann::json& row : json.at("rows")) expect_sound(row, 3);
  }
}

/// The length that the limit of a card leaves out is skipped, in bf16 also where it is the step in
/// f32 alone that does not fit; then nothing is compared.
TEST_F(CommandsOnGpus, ScaleSaysWhatDoesNotFitACard) {
  const std::string sets = "--set train.precision=bf16 --seq 2k --repeats 1 --ranks 1,2 ";
  const auto peak = [&](const std::string& more) -> int64_t {
    return scale(sets + "--no-error " + more).at("rows").at(0).at("peak_bytes").at("planned");
  };
  const int64_t in_bf16 = peak(""), in_f32 = peak("--set train.precision=f32");
  ASSERT_LT(in_bf16, in_f32);
  const nlohmann::json none = scale(concat(sets, "--memory ", in_bf16 / 4, "B"));
  for (const nlohmann::json& row : none.at("rows")) {
    EXPECT_NE(row.at("skipped").get<std::string>().find("the arenas on one GPU take"),
              std::string::npos)
        << row;
  }
  const nlohmann::json json = scale(concat(sets, "--memory ", in_f32 - 1, "B"));
  ASSERT_GE(json.at("rows").size(), 2u);
  expect_sound(json.at("rows").at(0), 1);
  EXPECT_TRUE(json.at("rows").at(1).at("skipped").get<std::string>().starts_with("in f32, "))
      << json.at("rows").at(1);
  for (const nlohmann::json& row : json.at("rows")) {
    EXPECT_TRUE(row.contains("skipped") || row.at("error").is_null()) << row;
  }
}

TEST_F(CommandsOnGpus, ScaleOverNcclSkipsRanksWithoutACard) {
  if (!has_nccl()) GTEST_SKIP() << "needs NCCL";
  const int gpus = cuda::device_count();
  const nlohmann::json json =
      scale(concat("--seq 256 --set train.comm=nccl --ranks ", gpus > 1 ? "1,2," : "1,", gpus + 1));
  EXPECT_EQ(json.at("comm"), "nccl");
  for (const nlohmann::json& row : json.at("rows")) {
    if (row.at("ranks") <= gpus) {
      expect_sound(row, 2);
    } else {
      EXPECT_TRUE(row.at("skipped").get<std::string>().starts_with(
          "train.comm: nccl needs a GPU for every rank"))
          << row;
    }
  }
}

TEST_F(CommandsOnGpus, KernelsAreWithinTheirBounds) {
  for (const char* dtype : {"f32", "bf16"}) {
    const CommandResult result = run_command(
        concat(weft_alone(), " bench kernels --device cuda --repeats 1 --dtype ", dtype));
    EXPECT_EQ(result.code, 0) << result.out;
  }
}

/// 1001 tokens: shards differ, and none ends with a tile.
TEST_F(CommandsOnGpus, MeasureAttentionThatOneRankConfirms) {
  for (const char* dtype : {"f32", "bf16"}) {
    SCOPED_TRACE(dtype);
    const CommandResult result = run_command(
        concat(weft_alone(),
               " bench sequence configs/quickstart.yaml --tables measured --device cuda "
               "--ranks 2,4 --repeats 1 --set data.seq_length=1001 --set train.precision=",
               dtype));
    EXPECT_EQ(result.code, 0) << result.out;
    EXPECT_EQ(result.out.find("refused"), std::string::npos) << result.out;
  }
}

TEST_F(CommandsOnGpus, MeasureAttentionOverNccl) {
  const bool each = has_nccl() && cuda::device_count() >= 2;
  const CommandResult result = run_command(
      concat(weft_alone(),
             " bench sequence configs/quickstart.yaml --tables measured --device cuda --comm nccl "
             "--repeats 1 --set data.seq_length=1001 --set train.precision=bf16 --ranks ",
             each ? 2 : cuda::device_count() + 1));
  EXPECT_EQ(result.code, each ? 0 : 2) << result.out;
  EXPECT_EQ(result.lines("weft: --comm nccl").size(), each ? 0u : 1u) << result.out;
}

TEST_F(CommandsOnGpus, RefuseF64InOneLine) {
  const CommandResult result =
      run_command(weft_alone() + " parity configs/parity.yaml --device cuda --dtype f64");
  EXPECT_EQ(result.code, 64);
  EXPECT_EQ(result.lines().size(), 1u) << result.out;
  EXPECT_NE(result.out.find("train.precision on a GPU: expected f32 or bf16, got f64"),
            std::string::npos)
      << result.out;
}

}  // namespace
}  // namespace weft
