// One rank's part of `weft train`, from opened data to the last step.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "launch/config.hpp"
#include "launch/metrics.hpp"
#include "launch/samples.hpp"
#include "launch/trainer.hpp"

namespace weft {

class TrainRun {
 public:
  /// What a rank can do alone: opens the data, plans the step. Throws what the user did wrong.
  /// `config.mesh` is resolved.
  TrainRun(const Config& config, int rank);

  /// Makes `folder` ready: one rank of the job, before run().
  void open_folder(const std::string& folder);

  /// Trains; collective over the world. Returns done, or how all ranks agreed to end: diverged.
  /// What fails on one rank is thrown there.
  ExitCode run(World& world);

 private:
  void describe() const;
  /// Says what train.deterministic costs on this rank's GPU.
  void weigh_backward(const World& world) const;
  /// What rank 0's GPU has in use beside what was predicted.
  std::string card_memory_text() const;
  /// Loads a step's batch and enqueues the step. What is known of it then: all but what
  /// finish_step() adds. Throws Error(comparison) where it differs from the plan, under --strict.
  StepMetrics begin_step(Trainer& trainer, const BatchLoader& loader, int64_t step) const;
  /// Waits for the report of the oldest step that has none.
  void finish_step(Trainer& trainer, StepMetrics& metrics);

  Config config_;
  int rank_;
  std::unique_ptr<SampleSource> source_;
  StepPlan plan_;
  std::string folder_;  // empty on ranks that write nothing
  std::unique_ptr<MetricsWriter> metrics_;
  int64_t predicted_card_bytes_ = 0;  // on a GPU
  int64_t group_bytes_ = 0;           // of it, what NCCL's groups took before the first step
  double step_flops_ = 0;             // of all ranks, without what is computed again
  double matmul_rate_ = 0;            // FLOP/s of all ranks together
  std::chrono::steady_clock::time_point last_end_;  // of a step; at first, the first one's begin
};

}  // namespace weft
