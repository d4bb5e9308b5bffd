// What each state scan costs on a recurrent layer of a given shape: bytes, time under simulated
// kernels and transfers, and which of them is fastest where.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/sequence/simulated_scan.hpp"

namespace weft {

/// A kind of transition by the name that --transitions takes.
struct TransitionKindName {
  const char* name;
  StateKind kind;  // of layers whose scans carry it
};
std::span<const TransitionKindName> transition_kinds();

/// The state of one layer on a rank, [B, H, K, V], and what its scans are told.
struct ScanBenchState {
  int64_t batch, heads, key_dim, value_dim;
  DType dtype;  // of the layer; the state is of its accumulator type
  StateScanOptions options = {};
};

/// A scan on so many ranks.
struct ScanOnRanks {
  const StateScanKind* scan;
  const TransitionKindName* transition;
  int ranks;
};

/// Bytes that the ranks send for one layer and micro-batch.
struct ScanBytes : ScanOnRanks {
  std::vector<PassBytes> closed_form;          // by rank
  std::vector<int64_t> tokens;                 // of the whole sequence
  std::vector<std::vector<PassBytes>> sent;    // by tokens, then by rank, as the transport counts
  std::vector<std::vector<PassBytes>> booked;  // as predicted from shapes

  /// Whether all of them are the closed form.
  bool agree() const;
};
std::vector<ScanBytes> bench_scan_bytes(const ScanBenchState& shape,
                                        std::span<const ScanOnRanks> cases,
                                        std::span<const int64_t> tokens);

/// Seconds of the scans of one layer and micro-batch, a prefix and then a suffix.
struct ScanTime : ScanOnRanks {
  /// A layer of so many tokens, forward and backward, and its largest shard alone on one rank.
  struct InLayer {
    int64_t tokens;  // of the whole sequence
    double layer_s, shard_s;
    double added_s() const { return layer_s - shard_s; }
  };

  LayerOverlap alone;     // the scans without the layer's kernels
  double attained_s = 0;  // of them by threads that sleep, on the scale of the machine; 0: not run
  std::vector<InLayer> layers;

  double attained_ratio() const { return attained_s / alone.step.both_s; }
};
/// As bench_time() of launch/sequence_bench.hpp.
std::vector<ScanTime> bench_scan_time(const ScanBenchState& shape,
                                      std::span<const ScanOnRanks> cases,
                                      std::span<const int64_t> tokens,
                                      const SimulatedMachine& machine, double real_s, int repeats);

/// The critical path of one prefix by every scan, for one state and transition.
struct ScanRace {
  const TransitionKindName* transition;
  int64_t state_bytes;
  int ranks;
  double transfer_s;            // of one state between two ranks
  std::vector<double> seconds;  // in the order of the scans

  int fastest() const;  // the first of equals
  /// Seconds of the next over those of the fastest; 1 where there is one scan.
  double lead() const;
};
/// States are of `shape` with as many heads as their bytes take, which is a whole number.
std::vector<ScanRace> bench_scan_race(const ScanBenchState& shape,
                                      std::span<const StateScanKind* const> scans,
                                      std::span<const TransitionKindName* const> transitions,
                                      std::span<const int64_t> state_bytes,
                                      std::span<const int> ranks, const SimulatedMachine& machine);

}  // namespace weft
