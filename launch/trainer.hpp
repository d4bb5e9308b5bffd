// Trainer: one rank's model, memory and optimizer, and the step that drives them.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/batch_loader.hpp"
#include "launch/config.hpp"
#include "models/model_stage.hpp"
#include "parallel/data/sharded_optimizer.hpp"
#include "parallel/pipeline/channels.hpp"
#include "src/tensor/readback.hpp"
#include "src/tensor/staging.hpp"

namespace weft {

/// Bytes that a rank allocates before the first step.
struct MemoryPlan {
  int64_t state = 0;                        // parameters, gradients, moments
  std::vector<int64_t> frame_slots = {};    // what forward leaves for backward, by slot
  std::vector<int64_t> product_slots = {};  // operands of weights' gradients that wait, by slot
  int64_t scratch = 0;                      // what dies inside a call
  int64_t staging = 0;                      // of the host: inputs on their way to a GPU
  /// Of all slots.
  int64_t frames() const;
  int64_t products() const;
  /// Of all arenas, where the model runs.
  int64_t peak() const { return state + frames() + products() + scratch; }
  bool operator==(const MemoryPlan&) const = default;
  /// Throws Error(comparison) when `real`, the peaks of a step, is not this plan.
  void check(int64_t step, const MemoryPlan& real) const;
};

/// What one step of one rank will take, found by running it on the meta device.
struct StepPlan {
  int64_t parameters = 0;  // elements that the rank holds
  MemoryPlan memory;
  std::vector<Arena::Item> at_peak;  // of all arenas, by name, largest first
  std::vector<ModelPiece> pieces;    // of the model that the rank's stage has
  std::map<std::string, Cost> kernels;
  std::map<Ledger::Key, int64_t> bytes;  // sent
  double flops() const;
};

/// What a step says, the same on every rank but for the time.
struct StepReport {
  double loss = 0;       // mean over the labelled tokens of the global batch
  double grad_norm = 0;  // before clipping
  /// When this rank's device had done the step, whenever the host read the report; the rank's own.
  Readback::Clock::time_point finished = {};
};

/// What takes the place of the strategies that a config names, where it is given.
struct StandIns {
  const AttentionStrategy* attention = nullptr;
  const StateScanKind* scan = nullptr;
};

class Trainer {
 public:
  /// Collective over the world. The model runs on the world's device, a GPU where train.device is
  /// cuda. Arenas and staging get the bytes of `memory`; on the meta device (a recording world)
  /// they measure instead.
  Trainer(const Config& config, World& world, const MemoryPlan& memory,
          const StandIns& stand_ins = {});

  /// Enqueues one optimizer step over this rank's micro-batches, whose tokens are read before it
  /// returns; on the CPU it is done then, on a GPU the host has waited for nothing but transfers
  /// through it. `step` counts from 0; `global_labels` is the number of labelled tokens of the
  /// global batch. At most kStepsInFlight steps have a report that was not read.
  ///
  /// A step whose loss or gradient is not finite leaves parameters and moments as they are, as do
  /// all steps after it, enqueued already or not; its report says so.
  void enqueue(int64_t step, std::span<const Batch> batches, int64_t global_labels);
  /// Of the oldest step whose report was not read; there is one. Waits until a GPU has done it.
  StepReport report();
  static constexpr int kStepsInFlight = 2;

  /// enqueue() and its report(), which is the only one not read.
  StepReport step(int64_t step, std::span<const Batch> batches, int64_t global_labels);

  Model& model() { return model_; }
  const ParameterStore& parameters() const { return store_; }
  /// What it has of their values between steps.
  std::vector<HeldValues> held() const { return traffic_.held(); }
  /// In bf16 the f32 masters of those that this rank updates.
  std::vector<HeldValues> masters() const { return optimizer_.masters(); }
  /// Both: what a run starts from. They are of the config's seed until others are set in all.
  std::vector<HeldValues> start_values() const;
  /// What this rank updates.
  std::vector<OwnedPiece> owned() const { return optimizer_.owned(); }
  /// The model's pieces that this rank's stage has.
  std::vector<ModelPiece> pieces() const;
  const ProcessMesh& mesh() const { return mesh_; }
  ProcessMesh& mesh() { return mesh_; }
  Stream& compute() { return *compute_; }
  /// Kernel costs so far; counted on the meta device only.
  const std::map<std::string, Cost>& kernels() const { return kernels_; }
  const Ledger& predicted() const { return predicted_; }
  const Ledger& counted() const { return counted_; }
  void clear_ledgers();
  /// Peaks so far.
  MemoryPlan peaks() const;
  std::vector<Arena::Item> at_peak() const;

  /// How often this rank has waited for a GPU so far: for reports that were not there yet, and in
  /// transfers through the host.
  int64_t host_waits() const {
    return reports_.waits() + mesh_.host_waits() + channels_.host_waits();
  }

  /// Runs the next steps on `stream`, which works on the same device, the CPU or meta; for
  /// measuring.
  void set_compute(std::unique_ptr<Stream> stream);
  /// Sees named tensors of the next steps.
  void set_probe(Probe probe) { probe_ = std::move(probe); }
  /// Called when the gradients are summed over their holders, before the update; for tests and
  /// parity.
  void set_before_update(std::function<void()> f) { before_update_ = std::move(f); }

 private:
  std::optional<Muon> make_muon();
  void compute_gradients(std::span<const Batch> batches, StepContext& ctx);

  Config config_;
  Ledger predicted_, counted_;
  std::map<std::string, Cost> kernels_;
  Device target_;     // where kernels run, or on the meta device are planned to
  Staging staging_;   // before the stream, which ends its copies first
  Readback reports_;  // of totals_; before the stream too
  std::unique_ptr<Stream> compute_;
  PipelineSchedule schedule_;
  std::vector<ModelPiece> pieces_;  // of all stages
  Arena state_, scratch_;
  StageSlots frames_, products_;
  ProcessMesh mesh_;  // after the arenas: when a step fails, transfers under way end before them
  PipelineChannels channels_;
  Cuts sequence_cuts_;
  Model model_;
  ParameterStore store_;
  ParameterTraffic traffic_;
  ShardedOptimizer optimizer_;
  Tensor totals_;                   // [2] f64: sum of token losses, squared gradient norm
  std::deque<double> loss_scales_;  // of the steps whose reports were not read
  Probe probe_;
  std::function<void()> before_update_;
};

/// One layer's attention of a micro-batch of the config over `ranks` even shards.
AttentionSetting attention_setting(const Config& config, int ranks);

/// The strategies of sequence.attention and sequence.state. For auto the one that cheapest_strategy
/// names, and zeco: a chain sends one state a rank, as little as can be, and this is the shortest.
SequenceStrategies named_strategies(const Config& config);

/// Runs one step of `rank` on the meta device.
StepPlan plan_step(const Config& config, int rank);

/// The micro-batches a rank of the mesh gets in every step, as shapes without tokens.
std::vector<Batch> batch_shapes(const Config& config, const Coordinate& at);

}  // namespace weft
