// What each sequence strategy costs on a config: bytes, time under simulated kernels and transfers,
// and memory.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "launch/config.hpp"
#include "parallel/sequence/simulated_attention.hpp"

namespace weft {

/// A strategy on so many ranks of the sequence axis.
struct StrategyOnRanks {
  const AttentionStrategy* strategy;
  int ranks;
  std::string refused;  // why it does not run there; empty where it does
};

/// Bytes that the ranks send for one layer and micro-batch, as the transport counts them while the
/// strategy runs.
struct SequenceBytes : StrategyOnRanks {
  std::vector<PassBytes> sent;    // by rank
  std::vector<PassBytes> booked;  // as predicted from shapes: the same, or something is wrong
};
std::vector<SequenceBytes> bench_bytes(const Config& config,
                                       std::span<const StrategyOnRanks> cases);

/// Seconds of one layer and micro-batch, forward and backward, on a simulated machine.
struct SequenceTime : StrategyOnRanks {
  LayerOverlap overlap;
  double attained_s = 0;  // the step by threads that sleep, on the scale of the machine; 0: not run

  double attained_ratio() const { return attained_s / overlap.step.both_s; }
};
/// Real runs are slowed down together so that the critical path of a step takes `real_s` seconds,
/// and divided by as much; the fastest of `repeats` counts, since other load only adds time. None
/// runs with `real_s` 0.
std::vector<SequenceTime> bench_time(const Config& config, std::span<const StrategyOnRanks> cases,
                                     const SimulatedMachine& machine, double real_s, int repeats);

/// The longest sequence whose training step stays below a limit of memory on every rank.
struct SequenceMemory : StrategyOnRanks {
  int64_t tokens = 0;      // of the whole sequence, to one part in 128; 0: none fits
  int64_t peak_bytes = 0;  // of the fullest rank, at that length
  std::string largest;     // the name that takes most of it
  int64_t largest_bytes = 0;
};
/// By plans of the config's step on the meta device, its mesh with `ranks` on the sequence axis.
std::vector<SequenceMemory> bench_memory(const Config& config,
                                         std::span<const StrategyOnRanks> cases,
                                         int64_t limit_bytes);

}  // namespace weft
