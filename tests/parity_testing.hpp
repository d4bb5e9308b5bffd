// The runs that parity is tested on: configs/parity.yaml on a mesh, by default of threads.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "launch/parity.hpp"
#include "launch/samples.hpp"
#include "parallel/comm/threads.hpp"
#include "tests/testing.hpp"

namespace weft {

/// Keys as --set gives them, "a.b=c".
using Sets = std::vector<std::string>;

inline Sets joined(Sets a, const Sets& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// configs/parity.yaml with some keys set.
inline Config parity_config(const std::vector<std::string>& sets = {}) {
  return load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", sets).config;
}

inline Config on_mesh(Config config, int data, int sequence) {
  config.mesh.along(Axis::data) = data;
  config.mesh.along(Axis::sequence) = sequence;
  return config;
}

/// Starts a rank for each of the config's mesh.
using StartMesh = std::function<void(const std::function<void(World&)>& body)>;

/// Threads; with train.device cuda they share the first GPU.
inline StartMesh threads_of(const Config& config) {
  const int ranks = config.mesh.ranks();
  const bool cuda = config.train.device == DeviceChoice::cuda;
  return [=](const auto& body) {
    cuda ? run_ranks_on_gpus(std::vector<int>(ranks, 0), body) : run_ranks(ranks, body);
  };
}

/// What a run of all the config's steps computed, on the ranks that `start` starts.
inline Recording record_on(const StartMesh& start, const Config& config,
                           const RecordingHooks& hooks = {}) {
  const auto source = open_samples(config);
  Recording recording;
  start([&](World& world) {
    Recording mine = record_run(config, world, *source, config.train.steps, hooks);
    if (world.rank() == 0) recording = std::move(mine);
  });
  return recording;
}

inline Recording record(const Config& config, const RecordingHooks& hooks = {}) {
  return record_on(threads_of(config), config, hooks);
}

/// What a run of the config is found to be, held against `reference`.
inline ParityReport parity(const Config& config, const Recording& reference,
                           const RecordingHooks& hooks = {}) {
  return compare_runs(config, *open_samples(config), reference, record(config, hooks));
}

inline void expect_ok(const ParityReport& report, const Config& config) {
  EXPECT_TRUE(report.ok) << config.mesh.text() << ": loss " << report.loss << ", gradients "
                         << report.grad << ", updates " << report.param << ", oracle "
                         << report.oracle << "; departs in " << report.first << " ("
                         << report.first_tensor << ")";
}

/// The config on these meshes equals the same on one rank.
inline void expect_mesh_parity(const std::vector<std::string>& sets,
                               const std::vector<MeshShape>& meshes) {
  Config config = parity_config(sets);
  const Recording reference = record(on_one_rank(config));
  for (const MeshShape& mesh : meshes) {
    config.mesh = mesh;
    expect_ok(parity(config, reference, {.check_bytes = true}), config);
  }
  std::printf("%zu cells\n", meshes.size());
}

/// The same on data x sequence meshes.
inline void expect_parity(const std::vector<std::string>& sets,
                          const std::vector<std::pair<int, int>>& meshes) {
  std::vector<MeshShape> shapes;
  for (const auto& [data, sequence] : meshes) shapes.push_back({.size = {data, 1, sequence, 1}});
  expect_mesh_parity(sets, shapes);
}

}  // namespace weft
