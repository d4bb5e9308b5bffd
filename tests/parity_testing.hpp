// The runs that parity is tested on: configs/parity.yaml on a mesh of threads.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "launch/parity.hpp"
#include "launch/samples.hpp"
#include "parallel/comm/threads.hpp"
#include "tests/testing.hpp"

namespace weft {

/// configs/parity.yaml with some keys set.
inline Config parity_config(const std::vector<std::string>& sets = {}) {
  return load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", sets).config;
}

inline Config on_mesh(Config config, int data, int sequence) {
  config.mesh.along(Axis::data) = data;
  config.mesh.along(Axis::sequence) = sequence;
  return config;
}

/// What a run of all the config's steps computed, ranks as threads.
inline Recording record(const Config& config, const RecordingHooks& hooks = {}) {
  const auto source = open_samples(config);
  Recording recording;
  run_ranks(config.mesh.ranks(), [&](World& world) {
    Recording mine = record_run(config, world, *source, config.train.steps, hooks);
    if (world.rank() == 0) recording = std::move(mine);
  });
  return recording;
}

/// What a run of the config is found to be, held against `reference`.
inline ParityReport parity(const Config& config, const Recording& reference,
                           const RecordingHooks& hooks = {}) {
  return compare_runs(config, *open_samples(config), reference, record(config, hooks));
}

/// The config on these data x sequence meshes equals the same on one rank.
inline void expect_parity(const std::vector<std::string>& sets,
                          const std::vector<std::pair<int, int>>& meshes) {
  const Config config = parity_config(sets);
  const Recording reference = record(on_one_rank(config));
  int64_t cells = 0;
  for (const auto& [data, sequence] : meshes) {
    const ParityReport report = parity(on_mesh(config, data, sequence), reference);
    EXPECT_TRUE(report.ok) << "data " << data << ", sequence " << sequence << ": loss "
                           << report.loss << ", gradients " << report.grad << ", updates "
                           << report.param << ", oracle " << report.oracle << "; departs in "
                           << report.first << " (" << report.first_tensor << ")";
    ++cells;
  }
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

}  // namespace weft
