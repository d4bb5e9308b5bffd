// The tables of weft bench sequence: printed as they are measured, and filled into JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "launch/attention_bench.hpp"
#include "launch/scan_bench.hpp"
#include "launch/sequence_bench.hpp"

namespace weft {

using Json = nlohmann::ordered_json;

/// The machine of the overlap tables, and their real runs.
struct SimulatedRuns {
  SimulatedMachine machine;
  std::string machine_text;  // as it was given
  double real_s;
  int repeats;
};

// ---- Of attention strategies

/// Returns whether all predictions hold.
bool bytes_table(const Config& config, std::span<const StrategyOnRanks> cases, Json& json);
void overlap_table(const Config& config, std::span<const StrategyOnRanks> cases,
                   const SimulatedRuns& runs, Json& json);
void memory_table(const Config& config, std::span<const StrategyOnRanks> cases, int64_t limit_bytes,
                  const std::string& limit_text, Json& json);

/// Rows are printed as they are done. Returns whether none failed.
bool measured_table(const Config& config, std::span<const StrategyOnRanks> cases,
                    const AttentionRuns& runs, Json& json);

// ---- Of state scans

bool scan_bytes_table(const ScanBenchState& shape, std::span<const ScanOnRanks> cases,
                      std::span<const int64_t> tokens, Json& json);
void scan_overlap_table(const ScanBenchState& shape, std::span<const ScanOnRanks> cases,
                        std::span<const int64_t> tokens, const SimulatedRuns& runs, Json& json);
void scan_crossover_table(const ScanBenchState& shape, std::span<const StateScanKind* const> scans,
                          std::span<const TransitionKindName* const> transitions,
                          std::span<const int64_t> state_bytes, std::span<const int> ranks,
                          const SimulatedRuns& runs, Json& json);

// ---- What both are made of

Json to_json(const Overlap& overlap);
/// {"forward": [a rank], "backward": [a rank]}
Json to_json(const std::vector<PassBytes>& by_rank);

}  // namespace weft
