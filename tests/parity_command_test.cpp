// weft parity as users start it: over threads and MPI, with mistakes, and with a rank that dies.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/command.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

TEST(ParityCommand, HoldsOverThreadsAndMpi) {
  const std::string folder = fresh_folder(), json = folder + "/parity.json";
  for (const std::string& command :
       {weft_alone() + " parity configs/parity.yaml --mesh data=2,sequence=3 --json " + json,
        weft_on(4) + " parity configs/parity.yaml --mesh sequence=4 --steps 2 --json " + json,
        weft_alone() + " parity configs/parity.yaml --mesh data=3 --dtype f32 --json " + json}) {
    const CommandResult run = run_command(command);
    EXPECT_EQ(run.code, 0) << run.out;
    const nlohmann::json result = nlohmann::json::parse(std::ifstream(json));
    EXPECT_TRUE(result["ok"].get<bool>());
    for (const char* kind : {"loss", "grad", "param"}) {
      EXPECT_LE(result["max_rel"][kind].get<double>(), 1e-4) << kind;
    }
    EXPECT_TRUE(result["worst"].is_string());
    EXPECT_EQ(result["first"], "");
  }
}

TEST(ParityCommand, RefusesWhatIsNoMesh) {
  for (const char* mesh :
       {"sequence=0", "sequence", "rows=2", "sequence=2,sequence=2", "tensor=3"}) {
    const CommandResult run =
        run_command(weft_alone() + " parity configs/parity.yaml --mesh " + mesh);
    EXPECT_EQ(run.code, 64) << mesh;
    EXPECT_EQ(run.lines().size(), 1u) << run.out;
  }
}

TEST(ParityCommand, AMistakeIsOneLineHoweverManyRanks) {
  for (const auto& [arguments, key] :
       {std::pair{"--set train.stepps=4", "train.stepps"},
        {"--mesh sequence=3 --set data.path=no_such_file.h5", "no_such_file.h5"},
        {"--mesh sequence=2", "3 ranks, got 2"}}) {
    const CommandResult run = run_command(weft_on(3) + " parity configs/parity.yaml " + arguments);
    EXPECT_NE(run.code, 0) << arguments;
    const auto errors = run.lines("weft: ");
    ASSERT_EQ(errors.size(), 1u) << run.out;
    EXPECT_NE(errors[0].find(key), std::string::npos) << errors[0];
  }
}

TEST(ParityCommand, ARankThatThrowsEndsTheJob) {
  for (const std::string& program : {weft_on(3), weft_alone()}) {
    const CommandResult run = run_command("WEFT_FAULT=throw:1:1 " + program +
                                          " parity configs/parity.yaml --mesh sequence=3");
    EXPECT_EQ(run.code, 1) << run.out;
    EXPECT_LT(run.seconds, 60);  // and not when the others tire of waiting for it
    const auto errors = run.lines("weft: rank");
    ASSERT_EQ(errors.size(), 1u) << run.out;
    EXPECT_TRUE(errors[0].starts_with("weft: rank 1 on host ")) << errors[0];
    EXPECT_NE(errors[0].find(", step 1: "), std::string::npos) << errors[0];
  }
}

}  // namespace
}  // namespace weft
