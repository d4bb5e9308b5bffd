// The state scans of one recurrent layer on simulated ranks: the program of a scan as it is, on
// shapes, alone or among the passes of the layer.
#pragma once

#include "parallel/sequence/simulated_layer.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft {

/// One recurrent layer.
struct ScanSetting {
  int64_t batch, heads, key_dim, value_dim;  // B, H, K, V
  DType dtype;                               // of the tokens; states are of its accumulator type
  StateKind kind;
  Cuts cuts;  // of the sequence; with no token in it there is no layer: the scans alone
  StateScanOptions options = {};

  bool scans_alone() const { return cuts.total() == 0; }
  /// Bytes of one shard's state, and of its transition: [B, H, K, V]; [B, H], for vector [B, H, K],
  /// for delta [B, H, K, K]. A scan alone has none where nothing decays; in a layer documents end
  /// such states too.
  int64_t state_bytes() const;
  int64_t transition_bytes() const;
};

/// A prefix, and a suffix: alone, or in mix_states() and mix_states_backward(). There are no
/// documents: what crosses ranks does not depend on them.
SimulatedProgram scan_program(const StateScanKind& scan, const ScanSetting& setting);

/// The same layer's largest shard on one rank, which has no boundary values to wait for, or to
/// make.
SimulatedProgram one_shard_program(const ScanSetting& setting);

}  // namespace weft
