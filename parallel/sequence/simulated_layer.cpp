#include "parallel/sequence/simulated_layer.hpp"

#include <limits>
#include <numeric>

namespace weft {
namespace {

PassBytes bytes_of(const Ledger& ledger) {
  PassBytes sum;
  for (const auto& [key, bytes] : ledger.entries()) {
    (key.tag.pass == Tag::Pass::forward ? sum.forward : sum.backward) += bytes;
  }
  return sum;
}

double latest(const std::vector<double>& seconds) {
  return *std::max_element(seconds.begin(), seconds.end());
}

}  // namespace

double SimulatedLayer::forward() const {
  return latest(forward_s);
}
double SimulatedLayer::step() const {
  return latest(step_s);
}

SimulatedLayer simulate_layer(const SimulatedProgram& program, const SimulatedMachine& machine,
                              SimulatedTime time) {
  SimulatedLayer result;
  for (auto* seconds : {&result.forward_s, &result.step_s, &result.kernels_s}) {
    seconds->resize(program.ranks);
  }
  for (auto* bytes : {&result.sent, &result.booked}) bytes->resize(program.ranks);
  simulate(program.ranks, machine, time, [&](const SimulatedRank& rank) {
    const int here = rank.world.rank();
    Ledger predicted, counted;
    program.run(rank, {&predicted, &counted}, [&] { result.forward_s[here] = rank.now(); });
    result.step_s[here] = rank.now();
    result.kernels_s[here] = result.step_s[here] - rank.compute.waited_s();
    result.sent[here] = bytes_of(counted);
    result.booked[here] = bytes_of(predicted);
  });
  return result;
}

LayerOverlap overlap_of(const SimulatedProgram& program, const SimulatedMachine& machine) {
  const auto run = [&](const SimulatedMachine& m) {
    return simulate_layer(program, m, SimulatedTime::critical_path);
  };
  const SimulatedLayer kernels = run(machine.without_transfers());
  const SimulatedLayer transfers = run(machine.without_kernels());
  const SimulatedLayer both = run(machine);
  const double busy_s = std::accumulate(both.kernels_s.begin(), both.kernels_s.end(), 0.0);
  return {.forward = {kernels.forward(), transfers.forward(), both.forward()},
          .step = {kernels.step(), transfers.step(), both.step()},
          .busy = both.step() > 0 ? busy_s / program.ranks / both.step() : 0};
}

double attained_step_s(const SimulatedProgram& program, const SimulatedMachine& machine,
                       double critical_s, double real_s, int repeats) {
  const double factor = real_s / critical_s;
  double fastest = std::numeric_limits<double>::infinity();
  for (int run = 0; run < repeats; ++run) {
    fastest = std::min(
        fastest, simulate_layer(program, machine.slower(factor), SimulatedTime::attained).step());
  }
  return fastest / factor;
}

}  // namespace weft
