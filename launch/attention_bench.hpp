// How long one layer of softmax attention takes with each strategy: real tensors, kernels and
// transports, and ranks that are threads of this process.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>

#include "launch/sequence_bench.hpp"
#include "launch/start_ranks.hpp"

namespace weft {

/// Forward and backward of one layer and micro-batch, which all ranks begin together. Seconds are
/// medians over such pairs, each of its own, of the slowest rank.
struct MeasuredAttention : StrategyOnRanks {
  std::string failed;     // what is not as it must be: bytes, the error against one rank
  double forward_s = 0;   // until the last rank has done forward
  double backward_s = 0;  // from there until the last has done backward, which follows at once
  double both_s = 0;
  /// Of all ranks: the pairs that the mask leaves counted once, with two products forward and five
  /// backward, whatever a strategy computes.
  double flops = 0;
  std::optional<double> over_ring;  // both_s of the ring on as many ranks, measured before, over it
  /// Against one rank with the whole sequence: the largest of out, dq, dk and dv, and whose it is.
  /// RMS(difference) over RMS(reference), or over 1e-6 of the largest of those.
  std::optional<double> error;
  std::string worst;

  double flops_per_s() const { return flops / both_s; }
};

struct AttentionRuns {
  RankChoice place;    // comm threads or nccl; its ranks are those of each case
  int repeats = 5;     // pairs that the medians are over, after some to warm up
  bool errors = true;  // compare with one rank
};

/// Measures the cases one after the other and shows each to `report` as soon as it is done. The
/// layer is the config's; each sequence is one document of normal numbers, the same for every
/// number of ranks. A case that the config or the memory rules out is refused; one whose bytes are
/// not those predicted, or which one rank does not confirm within oracle_tolerance(), is failed.
/// Throws Error(memory) where the whole sequence does not fit the host or, with errors, one rank.
void measure_attention(const Config& config, std::span<const StrategyOnRanks> cases,
                       const AttentionRuns& runs,
                       const std::function<void(const MeasuredAttention&)>& report);

}  // namespace weft
