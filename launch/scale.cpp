#include "launch/scale.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <span>
#include <string_view>

#include "launch/parity.hpp"
#include "launch/quote.hpp"
#include "launch/scale_steps.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

using Names = std::vector<std::string>;

// ---- Pairs

/// Picks out of the flag's names those of one table.
class NamedRows {
 public:
  NamedRows(const Names& names, const std::string& flag) : names_(names), flag_(flag) {
    for (const std::string& name : names) {
      WEFT_REQUIRE(std::ranges::count(names, name) == 1, ExitCode::config, flag, ": expected ",
                   quote(name), " once, got it twice");
    }
  }

  /// The rows that were named, in the order of their table; none where the model has no `layer`.
  template <class Row>
  Names of(std::span<const Row> table, bool used, const char* kind, const char* layer) {
    Names found;
    for (const Row& row : table) {
      known_.push_back(row.name);
      const bool named = among(row.name);
      WEFT_REQUIRE(used || !named, ExitCode::config, flag_, ": ", row.name, " is ", kind,
                   ", and the model has no ", layer);
      if (used && (named || among("all"))) found.push_back(row.name);
    }
    return found;
  }

  /// After the last table: a name that none of them has.
  void check_known() const {
    for (const std::string& name : names_) {
      const bool known = name == "all" || std::ranges::find(known_, name) != known_.end();
      std::string list = "all";
      for (const std::string& row : known_) list += ", " + row;
      WEFT_REQUIRE(known, ExitCode::config, flag_, ": expected some of ", list, ", got ",
                   quote(name));
    }
  }

 private:
  bool among(std::string_view name) const {
    return std::ranges::find(names_, name) != names_.end();
  }

  const Names& names_;
  const std::string& flag_;
  Names known_;
};

// ---- Cells

Config on_ranks(Config config, const StrategyPair& pair, int ranks) {
  config.mesh = mesh_along(Axis::sequence, ranks);
  if (!pair.attention.empty()) config.sequence.attention = pair.attention;
  if (!pair.state.empty()) config.sequence.state = pair.state;
  return config;
}

std::string gib(int64_t bytes) {
  return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30));
}

/// The cells of one length.
class ScaleLength {
 public:
  ScaleLength(const ScaleGrid& grid, int64_t tokens, const StandIns& stand_ins)
      : grid_(grid), tokens_(tokens), stand_ins_(stand_ins) {}

  /// Runs a cell. What one rank computes is kept, and what more ranks compute after it is held
  /// against that.
  ScaleCell run(const std::function<Config(int64_t)>& config_at, const StrategyPair& pair,
                int ranks, int repeats) {
    ScaleCell cell;
    cell.tokens = tokens_;
    cell.strategies = pair;
    cell.ranks = ranks;
    Config config;
    std::vector<StepPlan> plans;
    try {
      config = on_ranks(config_at(tokens_), pair, ranks);
      plans = plan_ranks(config);
    } catch (const Error& error) {
      if (error.code() != ExitCode::config) throw;
      cell.skipped = error.what();
      return cell;
    }
    if (fits(plans, cell)) measure(config, plans, repeats, cell);
    return cell;
  }

 private:
  bool fits(const std::vector<StepPlan>& plans, ScaleCell& cell) const {
    int64_t together = 0;
    for (const StepPlan& plan : plans) together += plan.memory.peak();
    if (together <= grid_.memory_bytes) return true;
    cell.skipped = concat("the arenas of all ranks take ", gib(together), ", the limit is ",
                          gib(grid_.memory_bytes));
    return false;
  }

  /// What was planned and does not hold is the cell's failure, an arena that is too small too.
  void measure(const Config& config, const std::vector<StepPlan>& plans, int repeats,
               ScaleCell& cell) {
    cell.tokens_of_step = config.train.global_batch_size * cell.tokens;
    cell.predicted_bytes = sequence_bytes(plans);
    for (const StepPlan& plan : plans) {
      cell.planned_peak_bytes = std::max(cell.planned_peak_bytes, plan.memory.peak());
    }
    const bool alone = cell.ranks == 1;
    StepTimes times;
    try {
      times = time_steps(config, plans, repeats, grid_.errors && (alone || reference_),
                         alone ? StandIns{} : stand_ins_);
    } catch (const Error& error) {
      constexpr ExitCode kOfTheCell[] = {ExitCode::comparison, ExitCode::diverged, ExitCode::memory,
                                         ExitCode::mismatch, ExitCode::hang};
      if (std::ranges::find(kOfTheCell, error.code()) == std::end(kOfTheCell)) throw;
      cell.failed = error.what();
      return;
    } catch (const std::bad_alloc&) {
      cell.failed = "out of host memory";
      return;
    }
    cell.seconds = times.seconds;
    cell.peak_bytes = times.peak_bytes;
    cell.sent_bytes = times.sequence_bytes;
    if (!grid_.errors) return;
    if (alone) {
      reference_ = std::move(times.first);
    } else if (reference_) {
      compare(times.first, parity_tolerance(config.train.precision), cell);
    }
  }

  void compare(const FirstStep& first, double tolerance, ScaleCell& cell) const {
    const std::vector<double> errors = gradient_errors(reference_->gradients, first.gradients);
    const auto worst = std::ranges::max_element(errors);
    cell.worst_gradient = first.gradients[worst - errors.begin()].name;
    cell.gradient_error = *worst;
    cell.loss_error = loss_error(reference_->loss, first.loss);
    if (*cell.loss_error > tolerance) {
      cell.failed = fmt::format("the loss is off by {:.2e}, the tolerance is {:.0e}",
                                *cell.loss_error, tolerance);
    } else if (*worst > tolerance) {
      cell.failed = fmt::format("the gradient of {} is off by {:.2e}, the tolerance is {:.0e}",
                                cell.worst_gradient, *worst, tolerance);
    }
  }

  const ScaleGrid& grid_;
  int64_t tokens_;
  const StandIns& stand_ins_;
  std::optional<FirstStep> reference_;  // what one rank computes
};

/// Tokens/s of a rank of the cell over those at `tokens` on the fewest ranks, where that ran.
std::optional<double> efficiency(const std::vector<ScaleCell>& cells, const ScaleCell& cell,
                                 int64_t tokens, int fewest) {
  if (!cell.measured()) return std::nullopt;
  for (const ScaleCell& base : cells) {
    const bool same_pair = base.ranks == 1 || base.strategies == cell.strategies;
    if (base.tokens != tokens || base.ranks != fewest || !same_pair) continue;
    if (!base.measured()) return std::nullopt;
    return cell.tokens_per_s_per_rank() / base.tokens_per_s_per_rank();
  }
  return std::nullopt;
}

}  // namespace

double ScaleCell::step_s() const {
  WEFT_CHECK(!seconds.empty());
  return *std::ranges::min_element(seconds);
}

std::vector<StrategyPair> strategy_pairs(const Config& config, const Names& names, bool product,
                                         const std::string& flag) {
  const auto uses = [&](std::string_view letters) {
    return config.model.mixers(letters, config.model.num_hidden_layers) > 0;
  };
  const bool softmax = uses("*"), states = uses("LG");
  NamedRows rows(names, flag);
  Names strategies =
      rows.of(attention_strategies(), softmax, "an attention strategy", "softmax layer");
  Names scans = rows.of(state_scans(), states, "a scan of states", "layer with a state");
  rows.check_known();

  std::vector<StrategyPair> pairs;
  const auto add = [&](const Names& attention, const Names& state) {
    const StrategyPair pair{attention, state};
    if (std::ranges::find(pairs, pair) == pairs.end()) pairs.push_back(pair);
  };
  const Names own_attention = softmax ? config.sequence.attention : Names{};
  const Names own_state = states ? config.sequence.state : Names{};
  for (const std::string& strategy : strategies) {
    if (!product || scans.empty()) add({strategy}, own_state);
    for (const std::string& scan : product ? scans : Names{}) add({strategy}, {scan});
  }
  for (const std::string& scan : scans) {
    if (!product || strategies.empty()) add(own_attention, {scan});
  }
  if (pairs.empty()) add(own_attention, own_state);  // windows alone
  return pairs;
}

void run_scale(const ScaleGrid& grid, const std::function<Config(int64_t tokens)>& config_at,
               const std::function<void(const ScaleCell&)>& report, const StandIns& stand_ins) {
  const int fewest = grid.ranks.front();
  std::vector<ScaleCell> cells;
  for (const int64_t tokens : grid.lengths) {
    ScaleLength length(grid, tokens, stand_ins);
    const auto run = [&](const StrategyPair& pair, int ranks) {
      ScaleCell& cell = cells.emplace_back(length.run(config_at, pair, ranks, grid.repeats));
      cell.strong_efficiency = efficiency(cells, cell, tokens, fewest);
      if (tokens * fewest % cell.ranks == 0) {
        cell.weak_efficiency = efficiency(cells, cell, tokens * fewest / cell.ranks, fewest);
      }
      report(cell);
    };
    if (fewest == 1) {
      run({}, 1);
    } else if (grid.errors) {
      const ScaleCell reference = length.run(config_at, {}, 1, 0);
      if (!reference.failed.empty() || !reference.skipped.empty()) report(reference);
    }
    for (const StrategyPair& pair : grid.pairs) {
      for (const int ranks : grid.ranks) {
        if (ranks > 1) run(pair, ranks);
      }
    }
  }
}

}  // namespace weft
