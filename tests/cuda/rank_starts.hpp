// The ways to start ranks on the GPUs of this host in one process, for tests that run over all.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "parallel/comm/nccl.hpp"
#include "parallel/comm/staged.hpp"
#include "parallel/comm/threads.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {

struct RankStart {
  enum class Transport { threads, nccl, staged };
  Transport transport;
  int ranks;
  int gpus;  // that the ranks share, in turn

  std::string name() const {
    const char* names[] = {"Threads", "Nccl", "Staged"};
    return concat(ranks, names[static_cast<int>(transport)], "On", gpus);
  }

  /// Why this host cannot; empty when it can.
  std::string missing() const {
    if (cuda::device_count() < gpus) return concat("needs ", gpus, " GPUs");
    return transport == Transport::nccl && !has_nccl() ? "needs NCCL" : "";
  }

  void operator()(const std::function<void(World&)>& body) const {
    if (transport == Transport::threads) {
      std::vector<int> places;
      for (int rank = 0; rank < ranks; ++rank) places.push_back(rank % gpus);
      return run_ranks_on_gpus(places, body);
    }
    run_ranks(ranks, [&](World& host) {
      const int gpu = host.rank() % gpus;
      body(transport == Transport::nccl ? *make_nccl_world(host, gpu)
                                        : *make_staged_world(host, gpu));
    });
  }
};

inline void PrintTo(const RankStart& start, std::ostream* out) {
  *out << start.name();
}

inline constexpr RankStart kRankStarts[] = {
    {RankStart::Transport::threads, 1, 1}, {RankStart::Transport::threads, 2, 1},
    {RankStart::Transport::threads, 3, 1}, {RankStart::Transport::threads, 4, 1},
    {RankStart::Transport::threads, 8, 1}, {RankStart::Transport::threads, 2, 2},
    {RankStart::Transport::threads, 5, 2}, {RankStart::Transport::staged, 2, 1},
    {RankStart::Transport::staged, 3, 1},  {RankStart::Transport::staged, 2, 2},
    {RankStart::Transport::nccl, 1, 1},    {RankStart::Transport::nccl, 2, 2}};

/// A test for every way; one that the host cannot do skips, visibly.
class OnGpus : public testing::TestWithParam<RankStart> {
 protected:
  void SetUp() override {
    const std::string missing = GetParam().missing();
    if (!missing.empty()) GTEST_SKIP() << missing;
  }
};

inline std::string start_name(const testing::TestParamInfo<RankStart>& info) {
  return info.param.name();
}

}  // namespace weft
