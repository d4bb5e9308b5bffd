// weft train, weft parity and weft bench kernels on GPUs, from the command line.
#include <gtest/gtest.h>

#include "parallel/comm/nccl.hpp"
#include "src/core/check.hpp"
#include "src/core/cuda/stream.hpp"
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
    const CommandResult result = run_command(
        concat(WEFT_SOURCE_DIR "/tools/nccl_on_one_gpu.sh 4 ", weft_alone(),
               " parity configs/parity.yaml --device cuda --dtype f32 --steps 1 --comm nccl --mesh ",
               mesh,
               " --set 'model.layer_pattern=*L*L*L*L*L' --set model.num_hidden_layers=10 "
               "--set model.linear.family=simple_gla "
               "--set 'sequence.attention=[ring, lightseq, allgather, ulysses, rsa]' "
               "--set 'sequence.state=[lasp, lasp2, zeco, doubling, two_level]'"));
    EXPECT_EQ(result.code, 0) << result.out;
  }
}

TEST_F(CommandsOnGpus, KernelsAreWithinTheirBounds) {
  for (const char* dtype : {"f32", "bf16"}) {
    const CommandResult result = run_command(
        concat(weft_alone(), " bench kernels --device cuda --repeats 1 --dtype ", dtype));
    EXPECT_EQ(result.code, 0) << result.out;
  }
}

TEST_F(CommandsOnGpus, RefuseF64InOneLine) {
  const CommandResult result =
      run_command(weft_alone() + " parity configs/parity.yaml --device cuda --dtype f64");
  EXPECT_EQ(result.code, 64);
  EXPECT_EQ(result.lines().size(), 1u) << result.out;
  EXPECT_NE(result.out.find("train.precision on a GPU: expected f32 or bf16, got f64"), std::string::npos)
      << result.out;
}

}  // namespace
}  // namespace weft
