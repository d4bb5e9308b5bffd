// A golden model, trained: its weights and tokens through our trainer, and what it is held to.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "launch/hf.hpp"
#include "launch/hf_weights.hpp"
#include "launch/safetensors.hpp"
#include "launch/trainer.hpp"
#include "src/tensor/host_copy.hpp"
#include "tests/golden_cases.hpp"
#include "tests/parity_testing.hpp"

namespace weft {

/// The tokens of every step, and what the other program got.
struct Expected {
  explicit Expected(const std::string& folder) : file(folder + "/expected.safetensors") {
    const std::vector<int64_t>& shape = file.entry("tokens").shape;
    steps = shape[0], sequences = shape[1], length = shape[2] - 1;
    tokens.resize(steps * sequences * (length + 1));
    file.read<int64_t>("tokens", tokens);
  }

  std::vector<double> read(const std::string& name) const {
    int64_t numel = 1;
    for (const int64_t d : file.entry(name).shape) numel *= d;
    std::vector<double> out(numel);
    file.read<double>(name, out);
    return out;
  }

  /// Tokens [begin, end) of sequences [first, last) of a step, labels shifted before the cut.
  Batch batch(int64_t step, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    Batch batch{.segments = std::vector<SegmentMap>(last - first, SegmentMap::single(length)),
                .begin = begin,
                .end = end,
                .tokens = {},
                .labels = {}};
    for (int64_t b = first; b < last; ++b) {
      const int64_t* sequence = tokens.data() + (step * sequences + b) * (length + 1);
      batch.tokens.insert(batch.tokens.end(), sequence + begin, sequence + end);
      batch.labels.insert(batch.labels.end(), sequence + begin + 1, sequence + end + 1);
    }
    return batch;
  }

  SafetensorsFile file;
  int64_t steps, sequences, length;
  std::vector<int64_t> tokens;
};

/// The recipe of the golden files (see their README).
inline Config golden_config(const std::string& folder, const Expected& expected, DType dtype,
                            const MeshShape& mesh) {
  Config config;
  config.model = read_hf_config(folder);
  config.mesh = mesh;
  config.data.seq_length = expected.length;
  config.train.steps = expected.steps;
  config.train.global_batch_size = expected.sequences;
  config.train.micro_batch_size = expected.sequences;
  config.train.precision = dtype;
  config.train.loss_slice = expected.sequences * expected.length;  // all logits of a shard at once
  config.optimizer.lr = 2e-3;
  config.optimizer.schedule = Schedule::constant;
  return config;
}

struct Trained {
  std::vector<double> losses, norms;
  std::map<std::string, std::vector<double>> gradients;  // of step 0, summed over the ranks
  std::vector<double> logits;                            // of step 0's first sequence
};

class GoldenRun {
 public:
  GoldenRun(const std::string& folder, const Expected& expected, const Config& config)
      : folder_(folder), expected_(expected), config_(config) {}

  /// `start` calls what it gets once a rank of the config's mesh.
  Trained run(const StartMesh& start) {
    trained_.logits.resize(expected_.length * config_.model.vocab_size);
    start([&](World& world) { run_rank(world); });
    return std::move(trained_);
  }

 private:
  void run_rank(World& world) {
    Trainer trainer(config_, world, plan_step(config_, world.rank()).memory);
    load_hf_weights(folder_, trainer.model().config(), trainer.start_values(), trainer.compute());
    const Cuts cuts = Cuts::even(expected_.length, trainer.mesh().size(Axis::sequence));
    const int shard = trainer.mesh().at(Axis::sequence);
    const bool has_first = trainer.mesh().at(Axis::data) == 0;
    trainer.set_before_update([&] { add_gradients(trainer); });
    trainer.set_probe([&](const Observation& seen) {
      if (seen.name == "logits" && seen.micro_batch == 0 && has_first) {
        keep_logits(seen, trainer.compute(), cuts.begin(shard), cuts.end(shard));
      }
    });
    for (int64_t step = 0; step < expected_.steps; ++step) {
      const std::vector<Batch> batches = batches_of(step, trainer.mesh(), cuts);
      const StepReport report = trainer.step(step, batches, expected_.sequences * expected_.length);
      trainer.set_before_update({});
      trainer.set_probe({});
      if (world.rank() == 0) {
        trained_.losses.push_back(report.loss);
        trained_.norms.push_back(report.grad_norm);
      }
    }
  }

  /// The rank's micro-batches.
  std::vector<Batch> batches_of(int64_t step, const ProcessMesh& mesh, const Cuts& cuts) const {
    const Cuts sequences = Cuts::even(expected_.sequences, mesh.size(Axis::data));
    const int data = mesh.at(Axis::data), shard = mesh.at(Axis::sequence);
    std::vector<Batch> batches;
    for (int64_t first = sequences.begin(data); first < sequences.end(data);) {
      const int64_t last = std::min(first + config_.train.micro_batch_size, sequences.end(data));
      batches.push_back(expected_.batch(step, first, last, cuts.begin(shard), cuts.end(shard)));
      first = last;
    }
    return batches;
  }

  void add_gradients(Trainer& trainer) {
    const std::lock_guard lock(mutex_);
    for (const Recording::Entry& entry : owned_gradients(trainer)) {
      std::vector<double>& sum = trained_.gradients[entry.name];
      sum.resize(entry.values.size());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += entry.values[i];
    }
  }

  /// Rows of the first sequence, whose tokens [begin, end) are here.
  void keep_logits(const Observation& seen, Stream& compute, int64_t begin, int64_t end) {
    const HostCopy host(seen.value, compute);
    const int64_t rows = std::clamp<int64_t>(end - begin - seen.row, 0, seen.value.dim(0));
    const int64_t width = seen.value.dim(1);
    const std::vector<double> first = values(host.tensor().slice(0, 0, rows));
    const std::lock_guard lock(mutex_);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(first.begin() + r * width, width,
                  trained_.logits.begin() + (begin + seen.row + r) * seen.columns + seen.column);
    }
  }

  const std::string folder_;
  const Expected& expected_;
  const Config config_;
  std::mutex mutex_;
  Trained trained_;
};

/// What every golden run is held to. Later steps add up what each rounds: 1e-4.
inline void expect_golden(const Trained& got, const Expected& expected) {
  const std::vector<double> losses = expected.read("loss"), norms = expected.read("grad_norm");
  EXPECT_NEAR(got.losses[0] / losses[0], 1, 1e-6);
  EXPECT_NEAR(got.norms[0] / norms[0], 1, 1e-5);
  for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(got.losses[i] / losses[i], 1, 1e-4) << i;
  EXPECT_LE(relative_rms(got.logits, expected.read("logits")), 1e-5);
  for (const auto& [parameter, gradient] : got.gradients) {
    EXPECT_LE(relative_rms(gradient, expected.read("grad." + parameter)), 1e-5) << parameter;
  }
}

inline std::vector<std::string> attention_strategy_names() {
  std::vector<std::string> names;
  for (const AttentionStrategy& strategy : attention_strategies()) names.push_back(strategy.name);
  return names;
}

}  // namespace weft
