// Linear recurrences over the sequence axis: the interface behind which every scan lives.
//
// A shard of tokens is an affine map of the state that crosses it, S_out = A . S_in + b. What
// enters rank p is the exclusive scan of those maps, and the gradient's way back is the scan of
// their adjoints from the other end:
//
//   prefix   S(0) = 0,      S(p) = A(p-1)   . S(p-1) + b(p-1)
//   suffix   D(P-1) = 0,    D(p) = A(p+1)^T . D(p+1) + e(p+1)
//
// Everything else about a recurrence is a kernel of one rank between those two values.
#pragma once

#include <memory>

#include "parallel/layer.hpp"

namespace weft {

/// What one shard does to a state [B, H, K, V], f32 or f64. An empty shard is the identity; one in
/// which a document starts has the transition 0. Neither changes what travels.
struct ScanElement {
  /// As in src/kernels/state_combine.hpp: absent (1), log decays [B, H] or [B, H, K], or dense
  /// [B, H, K, K]. All ranks have the same kind. The suffix applies it transposed: both directions
  /// take the same.
  Tensor transition;
  Tensor state;  // [B, H, K, V]: b of a prefix, e of a suffix
};

enum class ScanDirection {
  prefix,  // on Lane::forward
  suffix   // on Lane::backward: one of each may be in flight
};

/// A scan under way. The element, the entering state and what begin() took from the scratch belong
/// to it until finish(), so the caller's Scope encloses both.
class PendingScan {
 public:
  PendingScan(const Tensor& entering, Event done, Stream& compute)
      : entering_(entering), done_(std::move(done)), compute_(&compute) {}
  PendingScan(PendingScan&& other) noexcept
      : entering_(std::exchange(other.entering_, {})),
        done_(std::exchange(other.done_, {})),
        compute_(other.compute_) {}
  PendingScan& operator=(PendingScan&&) = delete;
  /// Waits where nobody has finished, an error being on its way: the memory is about to go.
  ~PendingScan();

  /// The entering state, once `compute` has waited for it and for every transfer. Once only.
  Tensor finish();

 private:
  Tensor entering_;
  Event done_;
  Stream* compute_;
};

class StateScan {
 public:
  virtual ~StateScan() = default;

  /// Enqueues the scan and returns: what compute does until finish() runs beside it. `entering`
  /// [B, H, K, V], of the state's type, is overwritten with the state that enters this shard, exact
  /// zeros where none does. Every rank of the sequence axis makes the call, with equal shapes; all
  /// begin their scans in the same order. `tag` says what the ledger books it under.
  virtual PendingScan begin(const ScanElement& element, const Tensor& entering,
                            ScanDirection direction, const Tag& tag, StepContext& ctx) = 0;
};

inline Tag state_tag(int layer, int micro_batch, Tag::Pass pass) {
  return {layer, Tag::Purpose::state, pass, micro_batch};
}

}  // namespace weft
