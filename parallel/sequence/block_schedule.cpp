#include "parallel/sequence/block_schedule.hpp"

#include <algorithm>

#include "src/core/check.hpp"

namespace weft {

std::vector<BlockStep> causal_schedule(int ranks, int rank, int helped) {
  WEFT_CHECK(rank >= 0 && rank < ranks && helped >= 0 && helped <= (ranks - 1) / 2, "rank ", rank,
             " of ", ranks, ", ", helped, " distances helped");
  const int last = ranks - 1 - helped;  // the largest distance computed at its queries
  std::vector<BlockStep> steps{{.keys_of = rank}};
  for (int t = 1; t <= last; ++t) {
    BlockStep step;
    if (rank >= t) step.keys_of = rank - t;
    if (rank + t < ranks) step.keys_to = rank + t;
    if (t <= helped) {  // distance P - t
      if (rank < t) step.queries_of = rank + ranks - t;
      if (rank >= ranks - t) step.helped_by = rank - (ranks - t);
    }
    steps.push_back(step);
  }
  return steps;
}

std::vector<BlockStep> full_schedule(int ranks, int rank) {
  std::vector<BlockStep> steps{{.keys_of = rank}};
  for (int t = 1; t < ranks; ++t) {
    steps.push_back({.keys_of = (rank - t + ranks) % ranks, .keys_to = (rank + t) % ranks});
  }
  return steps;
}

int helped_distances(int ranks, const BlockCost& cost) {
  const auto seconds = [&](int helped) {  // in units of a FLOP's time, the own block left out
    double sum = 0;
    for (int t = 1; t <= ranks - 1 - helped; ++t) {
      const double bytes = cost.key_bytes + (t <= helped ? cost.query_bytes : 0);
      sum += std::max(cost.flops, bytes * kFlopsPerByte);
    }
    return sum;
  };
  int best = (ranks - 1) / 2;
  for (int helped = best - 1; helped >= 0; --helped) {
    if (seconds(helped) < seconds(best)) best = helped;
  }
  return best;
}

}  // namespace weft
