// Where the ranks of a config go on a host whose GPUs, if it has any, are hidden from the tests.
#include "launch/placement.hpp"

#include <gtest/gtest.h>

#include "parallel/comm/threads.hpp"
#include "src/core/cuda/stream.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

class Placement : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() > 0) GTEST_SKIP() << "CUDA_VISIBLE_DEVICES=-1 hides the GPUs";
  }
};

Config config_on(DeviceChoice device, CommChoice comm, int ranks = 1) {
  Config config;
  config.mesh.along(Axis::sequence) = ranks;
  config.train.device = device;
  config.train.comm = comm;
  return config;
}

void expect_refused(Config config, const std::string& start) {
  try {
    place_ranks(config, nullptr);
    FAIL() << "not refused: " << start;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::config);
    EXPECT_TRUE(std::string(e.what()).starts_with(start)) << e.what();
  }
}

TEST_F(Placement, AutoIsTheCpuAndThreads) {
  Config config = config_on(DeviceChoice::automatic, CommChoice::automatic, 3);
  const RankChoice choice = place_ranks(config, nullptr);
  EXPECT_EQ(config.train.device, DeviceChoice::cpu);
  EXPECT_EQ(choice.device, Device::cpu);
  EXPECT_EQ(choice.comm, "threads");
  EXPECT_EQ(choice.ranks, 3);
}

TEST_F(Placement, OfProcessesIsMpi) {
  run_ranks(3, [](World& host) {
    Config config = config_on(DeviceChoice::automatic, CommChoice::automatic, 3);
    EXPECT_EQ(place_ranks(config, &host).comm, "mpi");
    EXPECT_EQ(config.train.device, DeviceChoice::cpu);
  });
}

TEST_F(Placement, RefusesWhatIsNotHere) {
  expect_refused(config_on(DeviceChoice::cuda, CommChoice::automatic),
                 cuda::in_build() ? "train.device: cuda: no GPU can be used here"
                                  : "train.device: cuda: this build has no CUDA");
  expect_refused(config_on(DeviceChoice::cpu, CommChoice::nccl),
                 "train.comm: nccl needs train.device: cuda");
  expect_refused(config_on(DeviceChoice::automatic, CommChoice::nccl),
                 "train.comm: nccl needs train.device: cuda");
}

TEST(UnfitForGpu, IsWhatHasNoKernels) {
  Config config;
  config.model.num_hidden_layers = 4;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    config.train.precision = dtype;
    for (const char* letters : {"*", "W", "P", "*LWG"}) {
      config.model.layer_pattern = letters;
      EXPECT_EQ(unfit_for_gpu(config), "") << letters;
    }
  }
  config.model.delta.head_dim = 320;
  EXPECT_EQ(unfit_for_gpu(config), "model.delta.head_dim on a GPU: expected at most 256, got 320");
  config.model.head_dim = 192;
  EXPECT_EQ(unfit_for_gpu(config), "model.head_dim on a GPU: expected at most 128, got 192");
  config.model.layer_pattern = "L";
  EXPECT_EQ(unfit_for_gpu(config), "");
  config.train.precision = DType::f64;
  EXPECT_EQ(unfit_for_gpu(config), "train.precision on a GPU: expected f32 or bf16, got f64");
}

TEST(UnfitForNccl, IsAPipelineWhoseTransfersWouldHang) {
  Config config;
  EXPECT_EQ(unfit_for_nccl(config), "");
  config.pipeline.schedule = "zb_v";
  config.model.tie_word_embeddings = true;
  EXPECT_EQ(unfit_for_nccl(config), "") << "one stage sends nothing";
  config.mesh.along(Axis::pipeline) = 2;
  EXPECT_EQ(unfit_for_nccl(config),
            "pipeline.schedule: expected gpipe, 1f1b or zb_h1 over NCCL, got zb_v; train.comm: mpi "
            "or threads takes it");
  config.pipeline.schedule = "1f1b";
  EXPECT_EQ(unfit_for_nccl(config),
            "model.tie_word_embeddings: expected false for a pipeline over NCCL, got true; "
            "train.comm: mpi or threads takes it");
  config.model.tie_word_embeddings = false;
  EXPECT_EQ(unfit_for_nccl(config), "");
}

}  // namespace
}  // namespace weft
