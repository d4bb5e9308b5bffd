// Runs one state scan on ranks that are threads, both ways, and a naive fold in f64 beside it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/sequence_testing.hpp"

namespace weft {

enum class TransitionKind { none, scalar, vector, dense };
inline constexpr TransitionKind kTransitionKinds[] = {
    TransitionKind::none, TransitionKind::scalar, TransitionKind::vector, TransitionKind::dense};
const char* name(TransitionKind kind);

/// How much of a state passes a shard.
struct Decay {
  const char* name;
  /// The factor of entry i of a rank's transition.
  double (*factor)(int rank, int64_t i);
  /// Which ranks are identities, as empty shards are.
  bool (*identity)(int rank) = [](int) { return false; };
};

struct ScanShape {
  int64_t batch, heads, K, V;
  int64_t states() const { return batch * heads; }
};
inline constexpr ScanShape kScanShape{.batch = 2, .heads = 3, .K = 4, .V = 7};

/// A shard a rank: its transition, b of the prefix and e of the suffix.
struct ScanProblem {
  int ranks;
  TransitionKind kind;
  ScanShape shape;
  DType dtype;
  std::vector<Owned> transitions;  // absent ones where the kind is none
  std::vector<Owned> states, costates;
};

/// Random states. A dense transition is near a factor times the identity.
ScanProblem scan_problem(int ranks, TransitionKind kind, const Decay& decay, DType dtype,
                         const ScanShape& shape = kScanShape);
extern const Decay kMixedDecay;

/// What enters each rank, [B, H, K, V].
using EnteringStates = std::vector<std::vector<double>>;

/// S(p) = A(p-1) S(p-1) + b(p-1) and D(p) = A(p+1)^T D(p+1) + e(p+1), naively in f64.
EnteringStates naive_prefix(const ScanProblem& p);
EnteringStates naive_suffix(const ScanProblem& p);

struct ScanRun {
  EnteringStates prefix, suffix;
  std::vector<int64_t> prefix_bytes, suffix_bytes;  // counted, per rank
  bool ledgers_agree = true;
};

using MakeScan = std::function<std::unique_ptr<StateScan>()>;

/// A prefix, then a suffix. Outputs are poisoned first, and what the scratch has left is written
/// over while a scan is under way.
ScanRun run_scan(const MakeScan& make, const ScanProblem& p, const StartRanks& start = {});

/// Every scan of the table, and what its options make of it.
struct ScanVariant {
  std::string name;
  MakeScan make;
  friend void PrintTo(const ScanVariant& variant, std::ostream* out) { *out << variant.name; }
};
std::vector<ScanVariant> scan_variants();
std::vector<ScanVariant> scans_of_the_table();  // alone, as a config without options makes them

/// What a layer does while a scan is under way: all that the scratch has left is its own.
void use_scratch(StepContext& ctx);

/// Whether every transfer was booked as it was counted.
bool same_entries(const Ledger& predicted, const Ledger& counted);

/// The largest relative error of any rank, both ways.
double error_of(const ScanRun& run, const ScanProblem& p);

}  // namespace weft
