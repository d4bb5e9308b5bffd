#include "parallel/sequence/block_schedule.hpp"

#include <algorithm>

#include "src/core/check.hpp"

namespace weft {

std::vector<BlockStep> causal_schedule(int ranks, int rank, int halves) {
  WEFT_CHECK(rank >= 0 && rank < ranks && halves >= 0 && halves < ranks, "rank ", rank, " of ",
             ranks, ", ", halves, " halves of distances helped");
  const int helped = halves / 2;        // whole distances
  const int last = ranks - 1 - helped;  // the largest distance computed at its queries
  std::vector<BlockStep> steps{{.keys_of = rank}};
  for (int t = 1; t <= last; ++t) {
    BlockStep step{.shared = t == last && halves % 2 == 1};
    if (rank >= t) step.keys_of = rank - t;
    if (rank + t < ranks) step.keys_to = rank + t;
    // Shared steps and those of whole help are not the same: halves < P makes helped < last then.
    if (t <= helped || step.shared) {
      const int distance = step.shared ? t : ranks - t;
      if (rank + distance < ranks) step.queries_of = rank + distance;
      if (rank >= distance) step.helped_by = rank - distance;
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

int helped_halves(int ranks, const BlockCost& cost) {
  const auto seconds = [&](int halves) {  // in units of a FLOP's time, the own block left out
    const int helped = halves / 2, last = ranks - 1 - helped;
    double sum = 0;
    for (int t = 1; t <= last; ++t) {
      const bool shared = t == last && halves % 2 == 1;
      const double computed = shared ? 0.5 : 1.0, given = shared ? 0.5 : t <= helped ? 1.0 : 0.0;
      const double bytes = cost.key_bytes + given * cost.query_bytes;
      sum += std::max(computed * cost.flops, bytes * kFlopsPerByte);
    }
    return sum;
  };
  int best = ranks - 1;
  for (int halves = best - 1; halves >= 0; --halves) {
    if (seconds(halves) < seconds(best)) best = halves;
  }
  return best;
}

}  // namespace weft
