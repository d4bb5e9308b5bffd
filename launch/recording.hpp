// What a run computed, in coordinates that no mesh can see: global samples and tokens, parameters
// by name. Two runs of one config on different meshes have recordings that agree.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/trainer.hpp"

namespace weft {

/// Named values in the order in which a step produced them. Pieces of several ranks are disjoint or
/// add up, so that the sum of all ranks' recordings is the recording of the run.
struct Recording {
  struct Entry {
    std::string name;            // "layers.3.mixer"
    std::vector<double> values;  // [sample, token, ...], or a parameter's elements
  };
  std::vector<double> losses;      // by step
  std::vector<Entry> activations;  // of step 0: forward, then backward (names that start with d)
  std::vector<std::vector<Entry>> gradients;   // by step: summed over the batch, before clipping
  std::vector<std::vector<Entry>> parameters;  // before the first step, then after each

  /// Entries by name; for activations of a recording whose order is another's.
  static const Entry* find(const std::vector<Entry>& entries, const std::string& name);
};

/// What a recorded run may be given in place of the real thing. Tests show with it that a
/// comparison finds a mistake.
struct RecordingHooks {
  std::function<void(std::vector<Batch>&)> batches = {};
  /// Sees tensors first, and may write to them.
  std::function<void(Trainer&, const Observation&)> probe = {};
  std::function<void(Trainer&)> gradients = {};  // called when they are summed over the ranks
  bool check_bytes = false;  // hold what a step sends to the plan, key by key, as strict runs do
  StandIns stand_ins = {};
};

/// All parameters of the trainer's model: what this rank owns at its place in the whole, zeros
/// elsewhere. The sum over all ranks is the whole.
std::vector<Recording::Entry> owned_values(Trainer& trainer);
/// The same of the gradients, where Trainer::set_before_update calls.
std::vector<Recording::Entry> owned_gradients(Trainer& trainer);

/// Trains `steps` steps of `config` from its initial values; collective over the world. Every rank
/// gets the recording of the whole run. Throws Error(comparison) when ranks that hold the same
/// parameters end a step with different bits, or the arenas' peaks are not the planned ones.
Recording record_run(const Config& config, World& world, const SampleSource& source, int64_t steps,
                     const RecordingHooks& hooks = {});

}  // namespace weft
