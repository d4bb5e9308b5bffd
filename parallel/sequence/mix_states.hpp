// A state mixer over the sequence axis: the passes of a shard (src/kernels/state_mixer.hpp) around
// the scan that brings the state which enters it, or the gradient of the one which leaves it.
//
//   forward    summarize    begin prefix   local, meanwhile   finish   apply
//   backward   cosummarize  begin suffix   local, meanwhile   finish   apply
//
// The scan runs beside what stands between its begin and its finish. Nothing else crosses ranks.
#pragma once

#include <functional>

#include "parallel/sequence/state_scan.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft {

/// One layer's tokens of this rank.
struct StateShard {
  StateTokens tokens;
  Tensor q;  // [B, T, H, K]
  double scale = 1.0;
  int layer = 0, micro_batch = 0;  // for the ledger
};

/// The shape of a shard's states, [B, H, K, V]; their type is the accumulator of the tokens'.
Tensor allocate_state(const char* name, const StateShard& shard, Arena& arena);

/// Overwrites out [B, T, H, V], of the accumulator type, and `entering` [B, H, K, V] with the state
/// that enters the shard. With no `scan`, `entering` is known, from an earlier forward, and read:
/// nothing is communicated. `meanwhile` enqueues what else may run while the scan does, and may be
/// empty. Collective over the sequence axis where there is a scan.
void mix_states(const StateShard& shard, const Tensor& out, const Tensor& entering, StateScan* scan,
                StepContext& ctx, const std::function<void()>& meanwhile = {});

/// Overwrites the gradients, and dh0 [B, H, K, V] where it is asked for: the gradient of the state
/// that entered, which is what the scan hands to the rank before. `entering` is the forward's; dout
/// [B, T, H, V] has the tokens' type. Collective over the sequence axis.
void mix_states_backward(const StateShard& shard, const Tensor& entering, const Tensor& dout,
                         const StateGradients& gradients, const Tensor& dh0, StateScan& scan,
                         StepContext& ctx, const std::function<void()>& meanwhile = {});

}  // namespace weft
