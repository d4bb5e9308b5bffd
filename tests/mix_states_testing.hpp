// A state mixer over the sequence axis on ranks that are threads, on pieces of a whole problem.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "parallel/sequence/mix_states.hpp"
#include "tests/state_mixer_testing.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {

/// A problem into whose first token nothing enters, and whose last state nobody asks for.
naive::StateMixerInputs sequence_problem(StateKind kind, int64_t tokens,
                                         const std::vector<int64_t>& document_starts = {});

/// The tensors of one rank's shard. Outputs start as NaN.
class MixerShard {
 public:
  MixerShard(const naive::StateMixerInputs& part, DType dtype, Stream& stream);

  StateShard shard() const;
  StateGradients gradients() const;

 private:
  Placed input(const std::vector<int64_t>& shape, const std::vector<double>& values) const;
  Placed output(const std::vector<int64_t>& shape) const;

  std::vector<int64_t> keys_, values_, gates_, decays_, state_;  // shapes
  StateKind kind_;
  double scale_;
  DType dtype_;
  Stream& stream_;
  Placed q_, k_, v_, positions_;
  std::optional<Placed> log_decay_, beta_;

 public:
  Placed dout;           // [B, T, H, V]
  Placed out;            // the same
  Placed entering, dh0;  // [B, H, K, V]
  Placed dq, dk, dv;
  std::optional<Placed> dlog_decay, dbeta;  // where the kind has them
};

/// Makes the scan of one rank. It may look at the rank's shard, as mistakes do.
using MakeShardScan = std::function<std::unique_ptr<StateScan>(const StateShard&)>;
inline MakeShardScan for_any_shard(const MakeScan& make) {
  return [&make](const StateShard&) { return make(); };
}

struct MixRun {
  naive::StateMixerResult result;  // of the whole; dh0 of the first rank, no hT
  EnteringStates entering, dh0;
  std::vector<int64_t> forward_bytes, backward_bytes;  // counted, per rank
  bool ledgers_agree = true;
};

/// Forward and backward over `cuts`, one thread a rank. The boundary values of `in` are not used.
MixRun run_mix(const MakeShardScan& make, const naive::StateMixerInputs& in, const Cuts& cuts,
               DType dtype, const StartRanks& start = {});

/// The same on one rank, which needs no scan.
MixRun run_mix_alone(const naive::StateMixerInputs& in, DType dtype);

}  // namespace weft
