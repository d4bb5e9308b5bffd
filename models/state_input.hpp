#pragma once

#include "models/linear.hpp"
#include "models/state_family.hpp"

namespace weft {

/// The queries, the keys or the values of a state mixer, [B, T, H, D], of the rank's H heads:
///   projection -> short convolution with silu, or silu alone -> feature map, rotation, unit length
/// What stands before the first arrow's silu is kept for backward, what comes after it is computed
/// in place. Reads the frame's "positions", and "state cos" and "state sin" where it rotates.
class StateInput {
 public:
  enum class Role { query, key, value };

  /// `prefix`: "model.layers.<layer>.linear_attn."
  StateInput(const std::string& prefix, Role role, const ModelConfig& config,
             const StateLayout& layout, const Piece& heads);

  /// The slots of one micro-batch.
  struct Slots {
    Tensor value;   // [B, T, H, D], what the mixer reads
    Tensor raw;     // the same before silu; the value itself where there is none
    Tensor before;  // [n, B, H, D], raw, of the tokens before the shard; absent without convolution
    Tensor rnorm;   // [B T H]; absent where the length is free
  };
  /// Pushes them; `halo`: n. "before" is kept whatever is computed again.
  Slots push(Frame& frame, int64_t halo, DType dtype) const;
  Slots peek(const Frame& frame) const;
  void pop(Frame& frame) const;

  /// Fills slots.raw from x [R, C].
  void project(const Slots& slots, const Tensor& x, StepContext& ctx) const;
  /// Fills the rest, once slots.before has arrived.
  void finish(const Slots& slots, const Frame& frame, StepContext& ctx) const;

  /// From d [B, T, H, D], the gradient of slots.value, to that of slots.raw, which is returned: d
  /// itself, or `other` of the same shape and type. dbefore, like slots.before, is overwritten.
  Tensor backward_in_place(const Tensor& d, const Tensor& other, const Tensor& dbefore,
                           const Slots& slots, const Frame& frame, StepContext& ctx) const;
  /// Adds to dx [R, C] and to the projection's gradient what comes from the gradient of slots.raw.
  void backward_projection(const Tensor& dx, const Tensor& draw, const Tensor& x,
                           StepContext& ctx) const;

  void visit(const std::function<void(Parameter&)>& f);

 private:
  bool convolves() const { return taps_ > 0; }
  bool has_raw() const { return convolves() || silu_; }

  Role role_;
  Piece heads_;
  int64_t width_, taps_;
  bool silu_, rotary_, unit_;
  FeatureMap map_;
  Linear projection_;
  Parameter convolution_;  // [H D, 1, W]
};

}  // namespace weft
