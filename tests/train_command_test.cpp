// weft train as users start it: under mpirun, with mistakes, and with a rank that dies.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "launch/byte_check.hpp"
#include "parallel/pipeline/schedules.hpp"
#include "parallel/sequence/strategies.hpp"
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

/// Losses and gradient norms of every mesh of data x sequence ranks are those of one rank.
void expect_the_curve_of_one(const std::vector<std::pair<int, int>>& meshes,
                             const std::string& arguments = "") {
  const std::string one = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), one, arguments)).code, 0);
  const auto expected = metric(one, "loss"), norms = metric(one, "grad_norm");
  for (const auto& [data, sequence] : meshes) {
    const std::string folder = fresh_folder();
    const CommandResult run = run_command(
        train(weft_alone(), folder,
              concat(arguments, " --strict --set train.comm=threads --set mesh.data=", data,
                     " --set mesh.sequence=", sequence)));
    ASSERT_EQ(run.code, 0) << run.out;
    const auto got = metric(folder, "loss"), got_norms = metric(folder, "grad_norm");
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(got[i] / expected[i], 1, 1e-12) << data << " x " << sequence;
      EXPECT_NEAR(got_norms[i] / norms[i], 1, 1e-12) << data << " x " << sequence;
    }
  }
}

TEST(Train, AnyDataTimesSequenceMeshFollowsTheCurveOfOne) {
  expect_the_curve_of_one({{1, 8}, {2, 3}, {3, 1}, {3, 2}, {5, 1}, {2, 4}});
}

TEST(Train, WindowsFollowTheCurveOfOneOnAnyMesh) {
  const std::string windows = "--set 'model.layer_pattern=W*' --set model.window=";
  expect_the_curve_of_one({{1, 8}, {2, 3}, {5, 1}, {3, 2}}, windows + "7");
  expect_the_curve_of_one({{1, 8}, {2, 4}}, windows + "40");                 // many shards
  expect_the_curve_of_one({{1, 8}}, windows + "4 --set data.seq_length=5");  // empty ones
}

TEST(Train, ProjectedKeysAndMasksFollowTheCurveOfOne) {
  expect_the_curve_of_one({{1, 8}, {2, 3}, {5, 1}},
                          "--set model.layer_pattern=P --set model.projected_keys=9 "
                          "--set model.causal=false --set data.documents=false "
                          "--set data.objective=masked");
}

/// Losses of four MPI processes are those of one rank, whatever the arguments say.
void expect_the_curve_of_one_over_mpi(const std::string& arguments,
                                      const std::string& mesh = "--set mesh.sequence=4") {
  const std::string one = fresh_folder(), four = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), one, arguments)).code, 0);
  const CommandResult run = run_command(train(weft_on(4), four, arguments + " --strict " + mesh));
  ASSERT_EQ(run.code, 0) << run.out;
  const auto expected = metric(one, "loss"), got = metric(four, "loss");
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1, 1e-12) << i;
}

TEST(Train, EveryStageOfZeroFollowsTheCurveOfOneOverMpi) {
  const std::string one = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), one)).code, 0);
  const auto expected = metric(one, "loss");
  for (const int zero : {1, 2, 3}) {
    const std::string four = fresh_folder();
    const CommandResult run =
        run_command(train(weft_on(4), four,
                          concat("--strict --set mesh.data=2 --set mesh.sequence=2 "
                                 "--set train.micro_batch_size=1 --set optimizer.zero=",
                                 zero)));
    ASSERT_EQ(run.code, 0) << run.out;
    const auto got = metric(four, "loss");
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1, 1e-12) << i;
  }
}

TEST(Train, MuonFollowsTheCurveOfOneOverMpi) {
  expect_the_curve_of_one_over_mpi("--set optimizer.name=muon --set optimizer.zero=3 ");
}

TEST(Train, MuonLearnsText) {
  const std::string folder = fresh_folder();
  ASSERT_EQ(
      run_command(weft_alone() + " data prepare --input docs --output " + folder + "/docs.h5").code,
      0);
  const CommandResult run =
      run_command(weft_alone() + " train configs/quickstart.yaml --output " + folder +
                  "/run --set data.path=" + folder +
                  "/docs.h5 --set optimizer.name=muon --set mesh.sequence=1 --set train.steps=60 "
                  "--set data.seq_length=512 --set log.every=60 --strict");
  ASSERT_EQ(run.code, 0) << run.out;
  const auto losses = metric(folder + "/run", "loss");
  ASSERT_EQ(losses.size(), 60u);
  EXPECT_LT(losses.back(), losses.front() - 2) << losses.front() << " to " << losses.back();
}

TEST(Train, WindowsTravelOverMpi) {
  expect_the_curve_of_one_over_mpi("--set model.layer_pattern=W --set model.window=40");
}

TEST(Train, EveryStrategyTravelsOverMpi) {
  std::string names;  // one a layer, the table over and over
  for (int layer = 0; layer < 8; ++layer) {
    const auto& strategy = attention_strategies()[layer % attention_strategies().size()];
    names += concat(layer == 0 ? "" : ",", strategy.name);
  }
  const std::string all = "--set 'sequence.attention=[" + names + "]' ";
  expect_the_curve_of_one_over_mpi(all);
  expect_the_curve_of_one_over_mpi(all + "--set model.num_key_value_heads=8");  // helpers help
}

TEST(Train, RowsCrossTheTensorAxisOverMpi) {
  expect_the_curve_of_one_over_mpi("--set model.layer_pattern=W* --set model.window=40",
                                   "--set mesh.tensor=4");
  expect_the_curve_of_one_over_mpi(
      "--set model.layer_pattern=LG --set model.linear.family=lightning "
      "--set train.recompute=layer",
      "--set mesh.tensor=2 --set mesh.sequence=2");
}

TEST(Train, EveryScanTravelsOverMpi) {
  std::string names;  // one an L or G layer
  for (const StateScanKind& scan : state_scans()) {
    names += concat(names.empty() ? "" : ",", scan.name);
  }
  expect_the_curve_of_one_over_mpi(
      "--set model.layer_pattern=LG*LGL --set model.num_hidden_layers=6 "
      "--set model.linear.family=simple_gla --set 'sequence.state=[" +
      names + "]' ");
}

TEST(Train, HybridsFollowTheCurveOfOneOnAnyMesh) {
  expect_the_curve_of_one({{1, 8}, {2, 3}, {5, 1}},
                          "--set model.layer_pattern=LG*W --set model.window=7 "
                          "--set model.linear.family=gla --set train.recompute=layer");
}

/// The quickstart's hybrid over MPI, on each of the meshes, has the losses of one rank over 20
/// steps. Its text may not be there; its model and strategies are what counts.
void expect_the_quickstarts_curve(const std::string& sets, const std::vector<MeshShape>& meshes) {
  const auto train = [&](const std::string& program, const MeshShape& mesh) {
    std::string command = program + " train configs/quickstart.yaml --set data.path=synthetic " +
                          "--set train.precision=f64 --set train.steps=20 --strict " + sets;
    for (const Axis axis : kAllAxes) {
      command += concat(" --set mesh.", name(axis), "=", mesh.along(axis));
    }
    const std::string folder = fresh_folder();
    const CommandResult run = run_command(command + " --output " + folder);
    EXPECT_EQ(run.code, 0) << mesh.text() << ": " << run.out;
    return metric(folder, "loss");
  };
  const auto expected = train(weft_alone(), {});
  ASSERT_EQ(expected.size(), 20u);
  for (const MeshShape& mesh : meshes) {
    const auto got = train(weft_on(mesh.ranks()), mesh);
    ASSERT_EQ(got.size(), 20u) << mesh.text();
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i] / expected[i], 1, 1e-8) << mesh.text() << ", step " << i;
    }
  }
}

TEST(Train, TheQuickstartFollowsTheCurveOfOneOverMpi) {
  expect_the_quickstarts_curve("--set data.seq_length=700", {{.size = {1, 1, 4, 1}}});
}

TEST(Train, TheQuickstartFollowsTheCurveOfOneOnFourAxesOverMpi) {
  expect_the_quickstarts_curve(
      "--set data.seq_length=250 --set train.micro_batch_size=1",
      {{.size = {2, 2, 2, 1}}, {.size = {1, 2, 2, 2}}, {.size = {2, 1, 2, 2}}});
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
                              {"--set mesh.tensor=2", 64, "mpirun -n 2"},
                              {"--set mesh.tensor=3", 64, "mesh.tensor"},
                              {"--set mesh.pipeline=2", 64, "mpirun -n 2"},
                              {"--set mesh.pipeline=9", 64, "mesh.pipeline"},
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

TEST(Train, MistakesOfAllRanksAreOneLineToo) {
  const std::string folder = fresh_folder(), truncated = folder + "/truncated.h5";
  ASSERT_EQ(
      run_command(weft_alone() + " data prepare --input docs --output " + folder + "/whole.h5")
          .code,
      0);
  fs::copy_file(folder + "/whole.h5", truncated);
  fs::resize_file(truncated, fs::file_size(truncated) / 2);
  const std::string bytes = "--set model.vocab_size=256 --set data.path=";
  const std::vector<std::tuple<std::string, std::string, int>> mistakes = {
      {fresh_folder(), bytes + "/nowhere/tokens.h5", 65},
      {fresh_folder(), bytes + truncated, 65},
      {fresh_folder(), "--set data.path=" + folder + "/whole.h5", 65},  // a vocabulary of 64
      {"/proc/no-folder", "", 74},
      {fresh_folder(), "--set mesh.data=2", 64},
      {fresh_folder(), "--bogus", 2}};
  for (const auto& [output, arguments, code] : mistakes) {
    const CommandResult run =
        run_command(train(weft_on(3), output, "--set mesh.sequence=3 " + arguments));
    EXPECT_EQ(run.code, code) << arguments << "\n" << run.out;
    EXPECT_EQ(run.lines().size(), 1u) << run.out;
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

TEST(Train, BytesAreThoseOfTheShapesWhateverTheDocuments) {
  const std::string with = fresh_folder(), without = fresh_folder();
  const auto run = [&](const std::string& folder, const char* documents) {
    return run_command(
        train(weft_on(3), folder,
              concat("--strict --set mesh.sequence=3 --set data.documents=", documents)));
  };
  ASSERT_EQ(run(with, "true").code, 0);
  ASSERT_EQ(run(without, "false").code, 0);
  for (const char* group : {"sequence", "replicas"}) {
    EXPECT_EQ(metric(with, "bytes", group), metric(without, "bytes", group)) << group;
    EXPECT_GT(metric(with, "bytes", group).at(0), 0) << group;
  }
}

TEST(Train, ResidentMemoryIsThePredictedPeakAndTheLibraries) {
  const std::string folder = fresh_folder();
  const CommandResult run = run_command(train(
      weft_on(2), folder,
      "--set mesh.sequence=2 --set train.precision=f32 --set data.seq_length=3000 --set "
      "train.micro_batch_size=4 --set model.intermediate_size=512 --set model.hidden_size=128 "
      "--set train.steps=1 --set train.loss_slice=1024"));
  ASSERT_EQ(run.code, 0) << run.out;
  const double predicted = metric(folder, "peak_bytes")[0], mib = 1 << 20;
  const double resident = metric(folder, "peak_rss_bytes")[0];
  std::printf("predicted %.1f MiB, resident %.1f MiB\n", predicted / mib, resident / mib);
  EXPECT_GT(predicted, 200 * mib);  // large enough to mean something
  EXPECT_GE(resident, 0.9 * predicted);
  EXPECT_LE(resident, 1.25 * predicted + 100 * mib);
}

TEST(ByteCheck, NamesTheFirstDifference) {
  const Tag tag{3, Tag::Purpose::attention, Tag::Pass::forward, 0};
  const SentBytes a{{{"sequence", tag}, 100}}, b{{{"sequence", tag}, 101}};
  EXPECT_NO_THROW(check_sent_bytes(0, a, a, a));
  EXPECT_NO_THROW(check_sent_bytes(0, {{{"data", tag}, 0}}, {}, {}));
  for (const auto& [planned, booked, counted] :
       {std::tuple{a, a, b}, {a, b, b}, {b, a, a}, {a, a, SentBytes{}}}) {
    try {
      check_sent_bytes(7, planned, booked, counted);
      FAIL() << "not found";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::comparison);
      EXPECT_NE(std::string(error.what()).find("attention forward of layer 3"), std::string::npos);
    }
  }
}

TEST(Collectives, AMismatchOverMpiLeavesWith86) {
  const CommandResult run = run_command(on_ranks(3, WEFT_COLLECTIVES_MPI " mismatch"));
  EXPECT_EQ(run.code, 86) << run.out;
  EXPECT_NE(run.out.find("all_gather of f64"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("all_reduce of f64"), std::string::npos) << run.out;
}

TEST(Train, PipelinesOfEveryScheduleOverMpi) {
  const std::string small = " --strict --set train.micro_batch_size=1 --set data.seq_length=41";
  const std::string alone = fresh_folder();
  ASSERT_EQ(run_command(train(weft_alone(), alone, small)).code, 0);
  const auto expected = metric(alone, "loss");
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    const std::string folder = fresh_folder();
    const CommandResult run = run_command(train(
        weft_on(4), folder,
        small +
            " --set mesh.pipeline=2 --set mesh.sequence=2 --set pipeline.schedule=" + kind.name));
    ASSERT_EQ(run.code, 0) << kind.name << "\n" << run.out;
    const auto losses = metric(folder, "loss");
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], expected[i], 1e-11 * expected[i]) << kind.name;
    }
  }
}

// ---- Dry run

TEST(DryRun, PredictsWhatTheRunThenDoes) {
  const std::string folder = fresh_folder();
  const std::string mesh = " --set mesh.sequence=3 --set mesh.data=2 --set train.comm=threads";
  const CommandResult dry =
      run_command(weft_alone() + " train configs/parity.yaml --dry-run" + mesh);
  EXPECT_EQ(dry.code, 0) << dry.out;
  EXPECT_NE(dry.out.find("ranks (data=2,pipeline=1,sequence=3,tensor=1"), std::string::npos);
  ASSERT_EQ(run_command(train(weft_alone(), folder, mesh + " --strict")).code, 0);
  const std::string peak = concat(static_cast<int64_t>(metric(folder, "peak_bytes")[0]));
  // The table is in KiB with one digit.
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", std::stod(peak) / 1024);
  EXPECT_NE(dry.out.find(text), std::string::npos) << text << "\n" << dry.out;
}

TEST(DryRun, ShowsTheLayersOfEveryStage) {
  const CommandResult dry =
      run_command(weft_alone() + " train configs/parity.yaml --dry-run --set mesh.pipeline=2" +
                  " --set pipeline.schedule=zb_v");
  EXPECT_EQ(dry.code, 0) << dry.out;
  EXPECT_NE(dry.out.find("0-1 6-7"), std::string::npos) << dry.out;
  EXPECT_NE(dry.out.find("2-3 4-5"), std::string::npos) << dry.out;
}

TEST(Train, ADivergedRunLeavesWith70) {
  const std::string folder = fresh_folder();
  const CommandResult run = run_command(train(weft_alone(), folder, "--set optimizer.lr=1e300"));
  EXPECT_EQ(run.code, 70) << run.out;
  ASSERT_EQ(run.lines("weft: step").size(), 1u) << run.out;
  const std::string line = run.lines("weft: step").front();
  EXPECT_TRUE(line.starts_with("weft: step 1: the loss is ")) << line;
  EXPECT_TRUE(line.ends_with("; the parameters were left as they were before it")) << line;
  EXPECT_EQ(metric(folder, "step"), (std::vector<double>{0, 1}));
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
  for (const AttentionStrategy& strategy : attention_strategies()) {
    EXPECT_NE(run.out.find(concat("  ", strategy.name, " ")), std::string::npos) << strategy.name;
    EXPECT_NE(run.out.find(strategy.summary), std::string::npos) << strategy.name;
  }
}

TEST(Help, EverySubcommandHasSome) {
  for (const char* command : {"", "train", "data", "data prepare", "data inspect", "strategies"}) {
    EXPECT_EQ(run_command(weft_alone() + " " + command + " --help").code, 0) << command;
  }
  EXPECT_EQ(run_command(weft_alone()).code, 2);
}

}  // namespace
}  // namespace weft
