#include "parallel/sequence/simulated_attention.hpp"

#include <algorithm>
#include <numeric>

#include "parallel/sequence/attention_on_shapes.hpp"

namespace weft {
namespace {

AttentionBytes bytes_of(const Ledger& ledger) {
  AttentionBytes sum;
  for (const auto& [key, bytes] : ledger.entries()) {
    (key.tag.pass == Tag::Pass::forward ? sum.forward : sum.backward) += bytes;
  }
  return sum;
}

double latest(const std::vector<double>& seconds) {
  return *std::max_element(seconds.begin(), seconds.end());
}

}  // namespace

double SimulatedAttention::forward() const {
  return latest(forward_s);
}
double SimulatedAttention::step() const {
  return latest(step_s);
}

SimulatedAttention simulate_attention(const AttentionStrategy& strategy,
                                      const AttentionSetting& setting,
                                      const SimulatedMachine& machine, SimulatedTime time) {
  const int ranks = setting.cuts.pieces();
  SimulatedAttention result;
  for (auto* seconds : {&result.forward_s, &result.step_s, &result.kernels_s}) {
    seconds->resize(ranks);
  }
  for (auto* bytes : {&result.sent, &result.booked}) bytes->resize(ranks);
  simulate(ranks, machine, time, [&](const SimulatedRank& rank) {
    const int here = rank.world.rank();
    Ledger predicted, counted;
    AttentionOnShapes attention(strategy, setting, rank.world, rank.compute,
                                {&predicted, &counted});
    attention.forward();
    result.forward_s[here] = rank.now();
    attention.backward();
    result.step_s[here] = rank.now();
    result.kernels_s[here] = result.step_s[here] - rank.compute.waited_s();
    result.sent[here] = bytes_of(counted);
    result.booked[here] = bytes_of(predicted);
  });
  return result;
}

AttentionOverlap overlap_of(const AttentionStrategy& strategy, const AttentionSetting& setting,
                            const SimulatedMachine& machine) {
  const auto run = [&](const SimulatedMachine& m) {
    return simulate_attention(strategy, setting, m, SimulatedTime::critical_path);
  };
  const SimulatedAttention kernels = run(machine.without_transfers());
  const SimulatedAttention transfers = run(machine.without_kernels());
  const SimulatedAttention both = run(machine);
  const double busy_s = std::accumulate(both.kernels_s.begin(), both.kernels_s.end(), 0.0);
  return {.forward = {kernels.forward(), transfers.forward(), both.forward()},
          .step = {kernels.step(), transfers.step(), both.step()},
          .busy = both.step() > 0 ? busy_s / setting.cuts.pieces() / both.step() : 0};
}

}  // namespace weft
