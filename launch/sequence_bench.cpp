#include "launch/sequence_bench.hpp"

#include <algorithm>
#include <set>

#include "launch/trainer.hpp"

namespace weft {
namespace {

/// A row of every case. Those whose strategy refuses the config say why.
template <class Row, class Measure>
std::vector<Row> measure_each(std::span<const StrategyOnRanks> cases, const Measure& measure) {
  std::vector<Row> rows;
  for (const StrategyOnRanks& which : cases) {
    Row& row = rows.emplace_back();
    static_cast<StrategyOnRanks&>(row) = which;
    try {
      measure(row);
    } catch (const Error& error) {
      if (error.code() != ExitCode::config) throw;
      row.refused = error.what();
    }
  }
  return rows;
}

/// Plans steps of one strategy on one mesh at any length.
class LengthPlanner {
 public:
  LengthPlanner(const Config& config, const StrategyOnRanks& which) : config_(config) {
    if (config_.mesh.along(Axis::data) == kAutoSize) config_.mesh.along(Axis::data) = 1;
    config_.mesh.along(Axis::sequence) = which.ranks;
    config_.sequence.attention = {which.strategy->name};
  }

  int ranks() const { return config_.mesh.ranks(); }
  StepPlan plan(int64_t tokens, int rank) {
    config_.data.seq_length = tokens;
    return plan_step(config_, rank);
  }

 private:
  Config config_;
};

/// The most tokens for which `fits`, to one part in 128; 0 when a single one does not fit.
template <class Fits>
int64_t longest(const Fits& fits) {
  constexpr int64_t kMost = 1000000000;  // as many as data.seq_length takes
  int64_t good = 0, bad = 1024;
  while (fits(bad)) {
    good = bad;
    if (good == kMost) return good;
    bad = std::min(2 * bad, kMost);
  }
  while (bad - good > std::max<int64_t>(1, good / 128)) {
    const int64_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good;
}

}  // namespace

std::vector<SequenceBytes> bench_bytes(const Config& config,
                                       std::span<const StrategyOnRanks> cases) {
  return measure_each<SequenceBytes>(cases, [&](SequenceBytes& row) {
    const AttentionSetting setting = attention_setting(config, row.ranks);
    SimulatedLayer run =
        simulate_layer(attention_program(*row.strategy, setting), {}, SimulatedTime::critical_path);
    row.sent = std::move(run.sent);
    row.booked = std::move(run.booked);
  });
}

std::vector<SequenceTime> bench_time(const Config& config, std::span<const StrategyOnRanks> cases,
                                     const SimulatedMachine& machine, double real_s, int repeats) {
  return measure_each<SequenceTime>(cases, [&](SequenceTime& row) {
    const SimulatedProgram program =
        attention_program(*row.strategy, attention_setting(config, row.ranks));
    row.overlap = overlap_of(program, machine);
    const double critical_s = row.overlap.step.both_s;
    if (critical_s == 0 || real_s == 0) return;
    row.attained_s = attained_step_s(program, machine, critical_s, real_s, repeats);
  });
}

std::vector<SequenceMemory> bench_memory(const Config& config,
                                         std::span<const StrategyOnRanks> cases,
                                         int64_t limit_bytes) {
  return measure_each<SequenceMemory>(cases, [&](SequenceMemory& row) {
    LengthPlanner planner(config, row);
    // The first and the last rank are usually the fullest. Another one that turns out to be fuller
    // joins them, and the search starts again.
    std::set<int> watched{0, planner.ranks() - 1};
    for (bool settled = false; !settled;) {
      row.tokens = longest([&](int64_t tokens) {
        return std::all_of(watched.begin(), watched.end(), [&](int rank) {
          return planner.plan(tokens, rank).memory.peak() <= limit_bytes;
        });
      });
      row.peak_bytes = 0;
      if (row.tokens == 0) return;
      settled = true;
      for (int rank = 0; rank < planner.ranks(); ++rank) {
        const StepPlan plan = planner.plan(row.tokens, rank);
        if (plan.memory.peak() > limit_bytes) {
          watched.insert(rank);
          settled = false;
        }
        if (plan.memory.peak() <= row.peak_bytes) continue;
        row.peak_bytes = plan.memory.peak();
        row.largest = plan.at_peak.front().name;
        row.largest_bytes = plan.at_peak.front().bytes;
      }
    }
  });
}

}  // namespace weft
