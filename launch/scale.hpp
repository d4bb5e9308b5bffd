// How training scales along the sequence axis: real steps of a config's model at lengths of the
// sequence, with strategies, on numbers of ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launch/config.hpp"
#include "launch/reference_step.hpp"
#include "launch/trainer.hpp"

namespace weft {

/// What crosses the ranks of the sequence axis: sequence.attention and sequence.state, each empty
/// where the model has no layer of that kind.
struct StrategyPair {
  std::vector<std::string> attention, state;
  bool operator==(const StrategyPair&) const = default;
};

/// The pairs that the model of `config` makes use of, out of `names`: of attention strategies, of
/// state scans, or "all". A model that has both takes every strategy named with the config's scan,
/// and every scan named with the config's strategy, or with `product` each with each; of a kind
/// that is not named it takes the config's. Throws Error(config), naming `flag`, for a name that is
/// in no table, comes twice, or is of a kind that the model has no layer of.
std::vector<StrategyPair> strategy_pairs(const Config& config,
                                         const std::vector<std::string>& names, bool product,
                                         const std::string& flag);

/// One length, pair and number of ranks, and what was measured there.
struct ScaleCell {
  int64_t tokens = 0;       // of the sequence
  StrategyPair strategies;  // both empty on one rank, where they make no difference
  int ranks = 0;

  std::string skipped;  // why it cannot run; what follows is then zero
  std::string failed;   // what is not as it must be: bytes, memory, the error against one rank

  std::vector<double> seconds;       // of the steps that were timed
  int64_t tokens_of_step = 0;        // of the batch
  int64_t planned_peak_bytes = 0;    // of the fullest rank's arenas
  int64_t peak_bytes = 0;            // as they were
  int64_t predicted_bytes = 0;       // all ranks' along the sequence axis in a step
  int64_t sent_bytes = 0;            // as the transports counted
  std::optional<StepErrors> errors;  // of the first step, against one rank

  /// Both against the fewest ranks of the list, tokens/s of a rank over those there: strong at the
  /// same length, weak at the length that gives a rank as many tokens. None where that did not run.
  std::optional<double> strong_efficiency, weak_efficiency;

  double step_s() const;  // the fastest
  double tokens_per_s() const { return static_cast<double>(tokens_of_step) / step_s(); }
  double tokens_per_s_per_rank() const { return tokens_per_s() / ranks; }
  bool measured() const { return skipped.empty() && !seconds.empty(); }
};

struct ScaleGrid {
  std::vector<int64_t> lengths;     // ascending
  std::vector<StrategyPair> pairs;  // not empty
  std::vector<int> ranks;           // ascending
  int repeats = 2;                  // steps that are timed
  int64_t memory_bytes = 0;         // limit of the arenas of all ranks, or of those on one GPU
  bool errors = true;               // compare with one rank
};

/// Runs the cells of the grid, by length, pair and ranks, and shows each to `report` as soon as it
/// is done. The one on one rank comes first and is run once a length; where one is not in the list
/// and errors are wanted, a single step of it is, and in bf16 a single step of it in f32 besides:
/// these are shown only if they are skipped or fail, and then nothing is compared.
/// `config_at` gives the config at a length and may throw Error(config); its mesh and strategies
/// are replaced. A cell that the config, its place or the limit of memory rules out is skipped. One
/// that ends with an error, or does not keep to what was planned and to what one rank computes, is
/// failed. `stand_ins` as in time_steps, on more than one rank.
void run_scale(const ScaleGrid& grid, const std::function<Config(int64_t tokens)>& config_at,
               const std::function<void(const ScaleCell&)>& report, const StandIns& stand_ins = {});

}  // namespace weft
