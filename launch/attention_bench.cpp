#include "launch/attention_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "launch/attention_layer.hpp"
#include "launch/kernels_bench.hpp"
#include "launch/parity.hpp"
#include "launch/trainer.hpp"
#include "parallel/comm/recording.hpp"
#include "src/kernels/attention.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {
namespace {

struct RankPlan {
  int64_t bytes;
  SentBytes sent;
};

/// What one rank leaves for the table.
struct RankOutcome {
  std::vector<RankAttention::Seconds> pairs;
  std::array<Squares, 4> squares;
};

/// Throws Error(comparison) where the pair takes other memory or sends other bytes than planned.
RankAttention::Seconds run_as_planned(RankAttention& layer, int64_t number, const RankPlan& plan) {
  RankAttention::Seconds spent;
  try {
    spent = layer.run();
  } catch (const Error& error) {  // more memory than planned is no lack of it
    throw Error(error.code() == ExitCode::memory ? ExitCode::comparison : error.code(),
                error.what(), error.where());
  }
  check_sent_bytes(number, plan.sent, layer.booked(), layer.counted());
  WEFT_REQUIRE(layer.memory_peak() == plan.bytes, ExitCode::comparison, "the arena's peak is ",
               layer.memory_peak(), " bytes, planned ", plan.bytes);
  return spent;
}

/// See MeasuredAttention::flops.
double flops_of(const AttentionSetting& s) {
  const int64_t N = s.cuts.total();
  const double pairs = s.causal ? causal_pairs(0, N, 0, N) : static_cast<double>(N) * N;
  return (2 + 5) * 2 * pairs * static_cast<double>(s.batch * s.heads * s.head_dim);
}

/// See MeasuredAttention::error; infinite where something is not a number.
std::array<double, 4> errors_of(const std::array<Squares, 4>& means) {
  constexpr double kFloor = 1e-6 * 1e-6;  // of squares
  const double largest = std::ranges::max(means, {}, &Squares::reference).reference;
  std::array<double, 4> errors{};
  for (size_t i = 0; i < errors.size(); ++i) {
    const auto& [difference, reference] = means[i];
    if (difference == 0) continue;
    errors[i] = std::sqrt(difference / std::max(reference, kFloor * largest));
    if (!std::isfinite(errors[i])) errors[i] = std::numeric_limits<double>::infinity();
  }
  return errors;
}

class AttentionBench {
 public:
  AttentionBench(const Config& config, const AttentionRuns& runs)
      : config_(config),
        runs_(runs),
        whole_(attention_setting(config, 1), config.train.seed, runs.errors) {
    cpu::set_blas_threads(1);
    if (runs.errors) compute_on_one_rank();
  }

  MeasuredAttention measure(const StrategyOnRanks& which) {
    MeasuredAttention row;
    static_cast<StrategyOnRanks&>(row) = which;
    try {
      measure(row);
    } catch (const Error& error) {
      switch (error.code()) {
        case ExitCode::config:
        case ExitCode::memory:
          row.refused = error.what();
          break;
        case ExitCode::comparison:
        case ExitCode::mismatch:
        case ExitCode::hang:
          row.failed = error.what();
          break;
        default:
          throw;
      }
    }
    return row;
  }

 private:
  std::vector<RankPlan> plan(const AttentionStrategy& strategy,
                             const AttentionSetting& setting) const {
    std::vector<RankPlan> plans;
    int64_t together = 0;
    for (int rank = 0; rank < setting.cuts.pieces(); ++rank) {
      const auto world = make_recording_world(rank, setting.cuts.pieces());
      RankAttention layer(strategy, setting, deterministic(), runs_.place.device, *world, 0);
      layer.forward();
      layer.backward();
      plans.push_back({layer.memory_peak(), layer.booked()});
      together += layer.memory_peak();
    }
    if (runs_.place.device == Device::cpu) require_host_memory(together, "the arenas of all ranks");
    return plans;
  }

  /// Calls body(layer) once a rank, its tokens loaded.
  void on_ranks(const AttentionStrategy& strategy, const AttentionSetting& setting,
                const std::vector<RankPlan>& plans, const RankChoice& place,
                const std::function<void(RankAttention&, int rank)>& body) {
    start_threads(place, [&](World& world) {
      RankAttention layer(strategy, setting, deterministic(), place.device, world,
                          plans[world.rank()].bytes);
      layer.load(whole_);
      body(layer, world.rank());
    });
  }

  /// One block of all queries and all keys.
  void compute_on_one_rank() {
    const AttentionStrategy& strategy = attention_strategy("ring");
    const AttentionSetting setting = attention_setting(config_, 1);
    RankChoice place = runs_.place;
    place.comm = "threads";
    place.ranks = 1;
    on_ranks(strategy, setting, plan(strategy, setting), place, [&](RankAttention& layer, int) {
      layer.run();
      layer.store(whole_);
    });
  }

  void measure(MeasuredAttention& row) {
    const AttentionSetting setting = attention_setting(config_, row.ranks);
    const std::vector<RankPlan> plans = plan(*row.strategy, setting);
    RankChoice place = runs_.place;
    place.ranks = row.ranks;
    std::vector<RankOutcome> outcomes(row.ranks);
    on_ranks(*row.strategy, setting, plans, place, [&](RankAttention& layer, int rank) {
      const int warm_ups = place.device == Device::cuda ? 2 : 1;
      for (int pair = -warm_ups; pair < runs_.repeats; ++pair) {
        const RankAttention::Seconds spent = run_as_planned(layer, pair + warm_ups, plans[rank]);
        if (pair >= 0) outcomes[rank].pairs.push_back(spent);
      }
      if (runs_.errors) outcomes[rank].squares = layer.compare_with(whole_);
    });
    set_times(setting, outcomes, row);
    if (runs_.errors) set_error(setting, outcomes, row);
  }

  void set_times(const AttentionSetting& s, const std::vector<RankOutcome>& outcomes,
                 MeasuredAttention& row) {
    std::vector<double> forward, backward, both;
    for (int pair = 0; pair < runs_.repeats; ++pair) {
      RankAttention::Seconds slowest;
      for (const RankOutcome& rank : outcomes) {
        slowest.forward = std::max(slowest.forward, rank.pairs[pair].forward);
        slowest.both = std::max(slowest.both, rank.pairs[pair].both);
      }
      forward.push_back(slowest.forward);
      backward.push_back(slowest.both - slowest.forward);
      both.push_back(slowest.both);
    }
    row.forward_s = median(std::move(forward));
    row.backward_s = median(std::move(backward));
    row.both_s = median(std::move(both));
    row.flops = flops_of(s);
    if (std::string_view(row.strategy->name) == "ring") ring_s_[row.ranks] = row.both_s;
    const auto ring = ring_s_.find(row.ranks);
    if (ring != ring_s_.end()) row.over_ring = ring->second / row.both_s;
  }

  void set_error(const AttentionSetting& s, const std::vector<RankOutcome>& outcomes,
                 MeasuredAttention& row) const {
    std::array<Squares, 4> means;
    for (size_t i = 0; i < means.size(); ++i) {
      const auto numbers = static_cast<double>(whole_.results()[i].numel());
      for (const RankOutcome& rank : outcomes) {
        means[i].difference += rank.squares[i].difference / numbers;
        means[i].reference += rank.squares[i].reference / numbers;
      }
    }
    const std::array<double, 4> errors = errors_of(means);
    const auto worst = std::ranges::max_element(errors);
    row.error = *worst;
    row.worst = kAttentionResults[worst - errors.begin()];
    const double tolerance = oracle_tolerance(s.dtype);
    if (*worst > tolerance) {
      row.failed =
          fmt::format("{} is off by {:.2e}, the tolerance is {:.0e}", row.worst, *worst, tolerance);
    }
  }

  bool deterministic() const { return config_.train.deterministic; }

  const Config& config_;
  const AttentionRuns& runs_;
  WholeAttention whole_;
  std::map<int, double> ring_s_;  // by ranks
};

}  // namespace

void measure_attention(const Config& config, std::span<const StrategyOnRanks> cases,
                       const AttentionRuns& runs,
                       const std::function<void(const MeasuredAttention&)>& report) {
  AttentionBench bench(config, runs);
  for (const StrategyOnRanks& which : cases) report(bench.measure(which));
}

}  // namespace weft
