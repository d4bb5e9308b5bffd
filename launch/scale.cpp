#include "launch/scale.hpp"

#include <algorithm>
#include <new>
#include <span>
#include <string_view>

#include "launch/parity.hpp"
#include "launch/quantity.hpp"
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

/// The cells of one length.
class ScaleLength {
 public:
  ScaleLength(const ScaleGrid& grid, const std::function<Config(int64_t)>& config_at,
              int64_t tokens, const StandIns& stand_ins)
      : grid_(grid), config_at_(config_at), tokens_(tokens), stand_ins_(stand_ins) {}

  /// Runs a cell. What one rank computes is kept, and what more ranks compute after it is held
  /// against that.
  ScaleCell run(const StrategyPair& pair, int ranks, int repeats) {
    ScaleCell cell = make_cell(pair, ranks);
    const auto step = plan([&] { return on_ranks(config_at_(tokens_), pair, ranks); }, cell);
    if (!step) return cell;
    cell.tokens_of_step = step->config.train.global_batch_size * tokens_;
    cell.predicted_bytes = step->sequence_bytes();
    cell.planned_peak_bytes = step->peak_bytes();
    const bool alone = ranks == 1;
    auto times = measure(*step, repeats, grid_.errors && (alone || reference_), cell);
    if (!times) return cell;
    cell.seconds = times->seconds;
    cell.peak_bytes = times->peak_bytes;
    cell.sent_bytes = times->sequence_bytes;
    if (grid_.errors && alone) {
      reference_.emplace(std::move(times->first), step->config.train.precision);
    } else if (reference_) {
      cell.errors = reference_->errors_of(times->first);
      cell.failed = cell.errors->excess;
    }
    return cell;
  }

  /// After the one rank's: what the rounding of bf16 makes of it, by a step in f32 that is not
  /// timed. Without that there is nothing to compare with. Of other precisions nothing is run.
  ScaleCell weigh_rounding() {
    ScaleCell cell = make_cell({}, 1);
    if (!reference_ || reference_->dtype() != DType::bf16) return cell;
    const auto step = plan([&] { return in_f32(on_ranks(config_at_(tokens_), {}, 1)); }, cell);
    const auto times = step ? measure(*step, 0, true, cell) : std::nullopt;
    if (times) {
      reference_->allow_rounding(times->first);
    } else {
      reference_.reset();
      std::string& why = cell.skipped.empty() ? cell.failed : cell.skipped;
      why = "in f32, which errors in bf16 are weighed by: " + why;
    }
    return cell;
  }

 private:
  ScaleCell make_cell(const StrategyPair& pair, int ranks) const {
    ScaleCell cell;
    cell.tokens = tokens_;
    cell.strategies = pair;
    cell.ranks = ranks;
    return cell;
  }

  /// The step of a config, or none where the cell says what rules it out.
  std::optional<PlannedStep> plan(const std::function<Config()>& config, ScaleCell& cell) const {
    std::optional<PlannedStep> step;
    try {
      step = plan_ranks(config());
    } catch (const Error& error) {
      if (error.code() != ExitCode::config) throw;
      cell.skipped = error.what();
      return std::nullopt;
    }
    const bool on_gpus = step->choice.device == Device::cuda;
    const int64_t together = shared_bytes(step->plans, on_gpus ? step->choice.gpus : 1);
    if (together <= grid_.memory_bytes) return step;
    cell.skipped = concat("the arenas ", on_gpus ? "on one GPU" : "of all ranks", " take ",
                          gib_text(together), ", the limit is ", gib_text(grid_.memory_bytes));
    return std::nullopt;
  }

  /// What was planned and does not hold is the cell's failure, an arena that is too small too.
  std::optional<StepTimes> measure(const PlannedStep& step, int repeats, bool gradients,
                                   ScaleCell& cell) const {
    try {
      return time_steps(step, repeats, gradients, cell.ranks == 1 ? StandIns{} : stand_ins_);
    } catch (const Error& error) {
      constexpr ExitCode kOfTheCell[] = {ExitCode::comparison, ExitCode::diverged, ExitCode::memory,
                                         ExitCode::mismatch, ExitCode::hang};
      if (std::ranges::find(kOfTheCell, error.code()) == std::end(kOfTheCell)) throw;
      cell.failed = error.what();
    } catch (const std::bad_alloc&) {
      cell.failed = "out of host memory";
    }
    return std::nullopt;
  }

  const ScaleGrid& grid_;
  const std::function<Config(int64_t)>& config_at_;
  int64_t tokens_;
  const StandIns& stand_ins_;
  std::optional<ReferenceStep> reference_;  // what one rank computes
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
    ScaleLength length(grid, config_at, tokens, stand_ins);
    const auto run = [&](const StrategyPair& pair, int ranks) {
      ScaleCell& cell = cells.emplace_back(length.run(pair, ranks, grid.repeats));
      cell.strong_efficiency = efficiency(cells, cell, tokens, fewest);
      if (tokens * fewest % cell.ranks == 0) {
        cell.weak_efficiency = efficiency(cells, cell, tokens * fewest / cell.ranks, fewest);
      }
      report(cell);
    };
    const auto show_trouble = [&](const ScaleCell& cell) {
      if (!cell.failed.empty() || !cell.skipped.empty()) report(cell);
    };
    if (fewest == 1) run({}, 1);
    if (fewest > 1 && grid.errors) show_trouble(length.run({}, 1, 0));
    if (grid.ranks.back() > 1 && grid.errors) show_trouble(length.weigh_rounding());
    for (const StrategyPair& pair : grid.pairs) {
      for (const int ranks : grid.ranks) {
        if (ranks > 1) run(pair, ranks);
      }
    }
  }
}

}  // namespace weft
