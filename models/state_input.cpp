#include "models/state_input.hpp"

#include <cmath>

#include "models/head_projection.hpp"
#include "src/kernels/rope.hpp"
#include "src/kernels/short_convolution.hpp"

namespace weft {
namespace {

using Role = StateInput::Role;

/// Names by role.
struct Names {
  const char *letter, *value, *raw, *before, *rnorm;
};
constexpr Names kNames[] = {{"q", "q", "q raw", "q before", "q rnorm"},
                            {"k", "k", "k raw", "k before", "k rnorm"},
                            {"v", "v", "v raw", "v before", "v rnorm"}};
const Names& names_of(Role role) {
  return kNames[static_cast<int>(role)];
}

/// [B, T, H, D] as [B, T, H D]; the halo's [n, B, H, D] alike.
Tensor channels(const Tensor& t) {
  return t ? t.reshape({t.dim(0), t.dim(1), t.dim(2) * t.dim(3)}) : t;
}

/// [B, T, H, D] as [B T H, D].
Tensor by_head(const Tensor& t) {
  return t.reshape({t.dim(0) * t.dim(1) * t.dim(2), t.dim(3)});
}

/// As PyTorch draws the taps of a convolution: uniform below W^-1/2, here normal of that variance.
double tap_std(int64_t taps) {
  return 1 / std::sqrt(3.0 * static_cast<double>(taps));
}

}  // namespace

StateInput::StateInput(const std::string& prefix, Role role, const ModelConfig& config,
                       const StateLayout& layout, const Piece& heads)
    : role_(role),
      heads_(heads),
      width_(role == Role::value ? layout.value_dim : layout.key_dim),
      taps_(layout.taps),
      silu_(layout.family->silu && layout.taps == 0),
      rotary_(layout.family->rotary && role != Role::value),
      unit_(layout.family->unit_keys && role != Role::value),
      map_(role == Role::value ? FeatureMap::identity : layout.feature_map),
      projection_(concat(prefix, names_of(role).letter, "_proj.weight"), config.hidden_size,
                  heads_.times(width_), fan_in_std(config.hidden_size)),
      convolution_(cut({.name = concat(prefix, names_of(role).letter, "_conv1d.weight"),
                        .shape = {heads_.total * width_, 1, taps_},
                        .init_std = taps_ > 0 ? tap_std(taps_) : 0},
                       0, heads_.times(width_))) {}

StateInput::Slots StateInput::push(Frame& frame, int64_t halo, DType dtype) const {
  const int64_t B = frame.batch(), T = frame.tokens(), H = heads_.size();
  const Names& names = names_of(role_);
  Slots slots;
  if (has_raw()) slots.raw = frame.push(names.raw, dtype, {B, T, H, width_});
  if (convolves()) {
    slots.before = frame.push(names.before, dtype, {halo, B, H, width_}, Recompute::layer);
  }
  slots.value = frame.push(names.value, dtype, {B, T, H, width_});
  if (unit_) slots.rnorm = frame.push(names.rnorm, accumulator_of(dtype), {B * T * H});
  if (!has_raw()) slots.raw = slots.value;
  return slots;
}

StateInput::Slots StateInput::peek(const Frame& frame) const {
  const Names& names = names_of(role_);
  Slots slots{.value = frame.peek(names.value), .raw = {}, .before = {}, .rnorm = {}};
  slots.raw = has_raw() ? frame.peek(names.raw) : slots.value;
  if (convolves()) slots.before = frame.peek(names.before);
  if (unit_) slots.rnorm = frame.peek(names.rnorm);
  return slots;
}

void StateInput::pop(Frame& frame) const {
  const Names& names = names_of(role_);
  if (unit_) frame.pop(names.rnorm);
  frame.pop(names.value);
  if (convolves()) frame.pop(names.before);
  if (has_raw()) frame.pop(names.raw);
}

void StateInput::project(const Slots& slots, const Tensor& x, StepContext& ctx) const {
  projection_.forward(flat_heads(slots.raw), x, ctx);
}

void StateInput::finish(const Slots& slots, const Frame& frame, StepContext& ctx) const {
  if (convolves()) {
    short_convolution_forward({.y = channels(slots.value),
                               .x = channels(slots.raw),
                               .before = channels(slots.before),
                               .weight = ctx.weight(convolution_),
                               .positions = frame.peek("positions")},
                              ctx.compute);
  } else if (silu_) {
    silu_forward({.y = slots.value, .x = slots.raw}, ctx.compute);
  }
  feature_map_forward({.x = slots.value, .map = map_}, ctx.compute);
  if (rotary_) {
    rope({.x = slots.value, .cos = frame.peek("state cos"), .sin = frame.peek("state sin")},
         ctx.compute);
  }
  if (unit_) unit_norm_forward({.x = by_head(slots.value), .rnorm = slots.rnorm}, ctx.compute);
}

Tensor StateInput::backward_in_place(const Tensor& d, const Tensor& other, const Tensor& dbefore,
                                     const Slots& slots, const Frame& frame,
                                     StepContext& ctx) const {
  if (unit_) {
    unit_norm_backward({.dy = by_head(d), .y = by_head(slots.value), .rnorm = slots.rnorm},
                       ctx.compute);
  }
  if (rotary_) {
    rope({.x = d, .cos = frame.peek("state cos"), .sin = frame.peek("state sin"), .inverse = true},
         ctx.compute);
  }
  feature_map_backward({.dy = d, .y = slots.value, .map = map_}, ctx.compute);
  if (convolves()) {
    short_convolution_backward({.dx = channels(other),
                                .dbefore = channels(dbefore),
                                .dweight = ctx.gradient(convolution_),
                                .dy = channels(d),
                                .x = channels(slots.raw),
                                .before = channels(slots.before),
                                .weight = ctx.weight(convolution_),
                                .positions = frame.peek("positions")},
                               ctx.compute);
    return other;
  }
  if (silu_) silu_backward({.dx = d, .dy = d, .x = slots.raw}, ctx.compute);
  return d;
}

void StateInput::backward_projection(const Tensor& dx, const Tensor& draw, const Tensor& x,
                                     StepContext& ctx) const {
  projection_.backward(dx, flat_heads(draw), x, ctx, /*accumulate=*/true);
}

void StateInput::visit(const std::function<void(Parameter&)>& f) {
  f(projection_.weight);
  if (convolves()) f(convolution_);
}

}  // namespace weft
