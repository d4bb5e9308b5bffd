#include "launch/placement.hpp"

#include <algorithm>
#include <vector>

#include "models/state_family.hpp"
#include "parallel/comm/mpi.hpp"
#include "parallel/comm/nccl.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

/// What the CUDA kernels take: attention's tiles, and those of the delta rule.
constexpr int64_t kMostHeadDim = 128, kMostDeltaKeys = 256;

/// What all ranks have.
struct Means {
  bool gpu = false;      // one that the config can run on
  bool own_gpu = false;  // one that no other rank has
};

/// Why a rank of `config` cannot use a GPU here; empty when it can.
std::string missing_gpu(const Config& config) {
  if (!cuda::in_build()) return "this build has no CUDA (configure with WEFT_CUDA=ON)";
  if (cuda::device_count() == 0) return "no GPU can be used here";
  return unfit_for_gpu(config);
}

/// What every rank has, from what this one has.
Means of_all_ranks(const Means& mine, World* host) {
  if (host == nullptr) return mine;
  const auto all = host->everyone("placement");
  std::vector<int32_t> means(2 * all->size());
  means[2 * all->rank()] = mine.gpu;
  means[2 * all->rank() + 1] = mine.own_gpu;
  const int64_t dims[] = {std::ssize(means)};
  all->all_gather(Tensor::view(means.data(), DType::i32, Device::cpu, dims),
                  Cuts::even(std::ssize(means), all->size()));
  Means common{true, true};
  for (int rank = 0; rank < all->size(); ++rank) {
    common.gpu &= means[2 * rank] != 0;
    common.own_gpu &= means[2 * rank + 1] != 0;
  }
  return common;
}

const char* name_of(CommChoice comm) {
  switch (comm) {
    case CommChoice::mpi:
      return "mpi";
    case CommChoice::threads:
      return "threads";
    case CommChoice::nccl:
      return "nccl";
    case CommChoice::automatic:
      break;
  }
  return "auto";
}

}  // namespace

std::string unfit_for_gpu(const Config& config) {
  if (config.train.precision == DType::f64)
    return "train.precision on a GPU: expected f32 or bf16, got f64";
  const ModelConfig& model = config.model;
  const auto has = [&](std::string_view letters) {
    return model.mixers(letters, model.num_hidden_layers) > 0;
  };
  if (has("*WP") && model.head_dim > kMostHeadDim) {
    return concat("model.head_dim on a GPU: expected at most ", kMostHeadDim, ", got ",
                  model.head_dim);
  }
  if (has("G") && state_layout(model, 'G').key_dim > kMostDeltaKeys) {
    return concat("model.delta.head_dim on a GPU: expected at most ", kMostDeltaKeys, ", got ",
                  state_layout(model, 'G').key_dim);
  }
  return {};
}

std::string unfit_for_nccl(const Config& config) {
  if (config.mesh.along(Axis::pipeline) == 1) return {};
  const std::string& schedule = config.pipeline.schedule;
  if (schedule == "interleaved" || schedule == "zb_v") {
    return concat("pipeline.schedule: expected gpipe, 1f1b or zb_h1 over NCCL, got ", schedule,
                  "; train.comm: mpi or threads takes it");
  }
  if (config.model.tie_word_embeddings) {
    return "model.tie_word_embeddings: expected false for a pipeline over NCCL, got true; "
           "train.comm: mpi or threads takes it";
  }
  return {};
}

RankChoice place_ranks(Config& config, World* host) {
  const std::string missing = missing_gpu(config);
  const int ranks = config.mesh.ranks(), gpus = cuda::device_count();
  const Means mine{missing.empty(),
                   has_nccl() && (host ? launched_local_rank() < gpus : ranks <= gpus)};
  const Means all = of_all_ranks(mine, host);

  DeviceChoice& device = config.train.device;
  if (device == DeviceChoice::automatic) {
    device = all.gpu ? DeviceChoice::cuda : DeviceChoice::cpu;
  }
  const bool cuda = device == DeviceChoice::cuda;
  WEFT_REQUIRE(!cuda || missing.empty(), ExitCode::config, "train.device: cuda: ", missing);
  WEFT_REQUIRE(cuda || config.train.precision != DType::bf16, ExitCode::config,
               "train.precision: bf16 needs a GPU", missing.empty() ? "" : ": ", missing);

  CommChoice comm = config.train.comm;
  if (comm == CommChoice::automatic) {
    comm = host == nullptr       ? CommChoice::threads
           : cuda && all.own_gpu ? CommChoice::nccl
                                 : CommChoice::mpi;
  }
  if (comm == CommChoice::nccl) {
    WEFT_REQUIRE(cuda, ExitCode::config, "train.comm: nccl needs train.device: cuda");
    WEFT_REQUIRE(has_nccl(), ExitCode::config, "train.comm: nccl: this build has no NCCL");
    WEFT_REQUIRE(all.own_gpu, ExitCode::config,
                 "train.comm: nccl needs a GPU for every rank: ", ranks, " ranks, ", gpus,
                 " GPUs on this host");
    const std::string blocked = unfit_for_nccl(config);
    WEFT_REQUIRE(blocked.empty(), ExitCode::config, blocked);
  }
  return {.comm = name_of(comm), .device = cuda ? Device::cuda : Device::cpu, .ranks = ranks};
}

}  // namespace weft
