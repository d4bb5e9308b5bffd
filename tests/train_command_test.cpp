// weft train as users start it: under mpirun, with mistakes, and with a rank that dies.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string train(const std::string& program, const std::string& folder,
                  const std::string& arguments = "") {
  return program + " train configs/parity.yaml --output " + folder + " " + arguments;
}

TEST(Train, FourMpiRanksFollowTheCurveOfOne) {
  const std::string one = fresh_folder(), four = fresh_folder();
  const std::string steps = "--set train.steps=20 --strict ";
  ASSERT_EQ(run_command(train(weft_alone(), one, steps)).code, 0);
  const CommandResult run = run_command(train(weft_on(4), four, steps + "--set mesh.sequence=4"));
  ASSERT_EQ(run.code, 0) << run.out;
  const auto expected = metric(one, "loss"), got = metric(four, "loss");
  ASSERT_EQ(expected.size(), 20u);
  ASSERT_EQ(got.size(), 20u);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1, 1e-10) << i;
}

TEST(Train, AnyDataTimesSequenceMeshFollowsTheCurveOfOne) {
  const std::string one = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), one)).code, 0);
  const auto expected = metric(one, "loss"), norms = metric(one, "grad_norm");
  for (const auto& [data, sequence] : {std::pair{1, 8}, {2, 3}, {3, 1}, {3, 2}, {5, 1}, {2, 4}}) {
    const std::string folder = fresh_folder();
    const CommandResult run =
        run_command(train(weft_alone(), folder,
                          concat("--strict --set train.comm=threads --set mesh.data=", data,
                                 " --set mesh.sequence=", sequence)));
    ASSERT_EQ(run.code, 0) << run.out;
    const auto got = metric(folder, "loss"), got_norms = metric(folder, "grad_norm");
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(got[i] / expected[i], 1, 1e-12) << data << " x " << sequence;
      EXPECT_NEAR(got_norms[i] / norms[i], 1, 1e-12) << data << " x " << sequence;
    }
  }
}

TEST(Train, ARankThatThrowsEndsTheJob) {
  const CommandResult run = run_command("WEFT_FAULT=throw:2:1 " +
                                        train(weft_on(4), fresh_folder(), "--set mesh.sequence=4"));
  EXPECT_EQ(run.code, 1);
  EXPECT_LT(run.seconds, 5);
  const auto errors = run.lines("weft: rank");
  ASSERT_EQ(errors.size(), 1u) << run.out;
  EXPECT_TRUE(errors[0].starts_with("weft: rank 2 on host ")) << errors[0];
  EXPECT_NE(errors[0].find(", step 1: "), std::string::npos) << errors[0];
}

TEST(Train, AThreadThatThrowsEndsTheJob) {
  const CommandResult run = run_command(
      "WEFT_FAULT=throw:2:1 " +
      train(weft_alone(), fresh_folder(), "--set mesh.sequence=4 --set train.comm=threads"));
  EXPECT_EQ(run.code, 1);
  const auto errors = run.lines("weft: rank");
  ASSERT_EQ(errors.size(), 1u) << run.out;
  EXPECT_TRUE(errors[0].starts_with("weft: rank 2 on host ")) << errors[0];
  EXPECT_NE(errors[0].find(", step 1: "), std::string::npos) << errors[0];
}

TEST(Train, AMistakeIsOneLineHoweverManyRanks) {
  const CommandResult run = run_command(train(weft_on(3), fresh_folder(), "--set train.stepps=4"));
  EXPECT_EQ(run.code, 64);
  EXPECT_EQ(run.lines().size(), 1u) << run.out;
  EXPECT_NE(run.out.find("train.stepps"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("train.steps"), std::string::npos) << run.out;
}

struct Mistake {
  const char* arguments;
  int code;
  const char* says;
};

TEST(Train, MistakesLeaveWithTheirCode) {
  const Mistake mistakes[] = {{"--set mesh.sequence=4", 64, "mpirun -n 4"},
                              {"--set mesh.tensor=2", 64, "mesh.tensor"},
                              {"--set mesh.pipeline=2", 64, "mesh.pipeline"},
                              {"--set data.path=/nowhere/tokens.h5", 65, "/nowhere/tokens.h5"},
                              {"--set data.path=README.md", 65, "README.md"},
                              {"--set model.num_key_value_heads=3", 64, "num_key_value_heads"},
                              {"--set sequence.attention=zigzag", 64, "sequence.attention"},
                              {"--no-such-flag", 2, "--no-such-flag"}};
  for (const auto& [arguments, code, says] : mistakes) {
    const CommandResult run = run_command(train(weft_alone(), fresh_folder(), arguments));
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_EQ(run.lines().size(), 1u) << run.out;
    EXPECT_NE(run.out.find(says), std::string::npos) << run.out;
  }
}

TEST(Train, AnUnwritableFolderIsAnIoError) {
  const CommandResult run = run_command(train(weft_alone(), "/proc/no-folder"));
  EXPECT_EQ(run.code, 74) << run.out;
  EXPECT_EQ(run.lines().size(), 1u) << run.out;
}

TEST(Train, ASecondRunKeepsTheFirst) {
  const std::string folder = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), folder)).code, 0);
  const auto first = metric(folder, "loss");
  ASSERT_EQ(run_command(train(weft_alone(), folder, "--set train.seed=2")).code, 0);
  EXPECT_NE(metric(folder, "loss"), first);
  EXPECT_EQ(metric(folder + "/earlier-1", "loss"), first);
}

TEST(Train, ADivergedRunLeavesWith70) {
  const CommandResult run =
      run_command(train(weft_alone(), fresh_folder(), "--set optimizer.lr=1e300"));
  EXPECT_EQ(run.code, 70) << run.out;
  EXPECT_EQ(run.lines("weft: step").size(), 1u) << run.out;
}

TEST(Train, LeavesTheFilesOfTheContract) {
  const std::string folder = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), folder)).code, 0);
  for (const char* name : {"config.resolved.yaml", "metrics.jsonl", "console.log"}) {
    EXPECT_TRUE(fs::exists(fs::path(folder) / name)) << name;
  }
  for (const char* key :
       {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "tokens_per_s_per_rank",
        "step_s", "mfu", "data_wait_s", "exposed_comm_s", "peak_bytes"}) {
    EXPECT_EQ(metric(folder, key).size(), 3u) << key;
  }
  // The resolved config is a config: it runs, and to the same curve.
  const std::string again = fresh_folder();
  ASSERT_EQ(
      run_command(weft_alone() + " train " + folder + "/config.resolved.yaml --output " + again)
          .code,
      0);
  EXPECT_EQ(metric(again, "loss"), metric(folder, "loss"));
}

TEST(Train, RealTextGoesFromFileToUpdate) {
  const std::string folder = fresh_folder(), tokens = folder + "/tokens.h5";
  ASSERT_EQ(run_command(weft_alone() +
                        " data prepare --input src --input parallel --extensions hpp,cpp "
                        "--output " +
                        tokens)
                .code,
            0);
  const CommandResult inspect = run_command(weft_alone() + " data inspect " + tokens);
  EXPECT_EQ(inspect.code, 0) << inspect.out;
  const std::string run = folder + "/run";
  const CommandResult trained = run_command(
      weft_on(2) + " train configs/parity.yaml --output " + run +
      " --strict --set mesh.sequence=2"
      " --set model.vocab_size=256 --set data.path=" +
      tokens + " --set train.steps=30 --set optimizer.lr=1e-2 --set train.precision=f32");
  ASSERT_EQ(trained.code, 0) << trained.out;
  const auto losses = metric(run, "loss");
  EXPECT_GT(losses.front(), 5.0);
  EXPECT_LT(losses.back(), losses.front() - 1.5);
}

TEST(Strategies, AreListed) {
  const CommandResult run = run_command(weft_alone() + " strategies");
  EXPECT_EQ(run.code, 0);
  EXPECT_NE(run.out.find("ring"), std::string::npos);
}

TEST(Help, EverySubcommandHasSome) {
  for (const char* command : {"", "train", "data", "data prepare", "data inspect", "strategies"}) {
    EXPECT_EQ(run_command(weft_alone() + " " + command + " --help").code, 0) << command;
  }
  EXPECT_EQ(run_command(weft_alone()).code, 2);
}

}  // namespace
}  // namespace weft
