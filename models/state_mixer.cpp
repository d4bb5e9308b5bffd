#include "models/state_mixer.hpp"

#include "models/head_projection.hpp"
#include "src/kernels/decay_gates.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

constexpr const char* kGateActivations[] = {"gate a", "gate b"};

Parameter norm_weight(std::string name, const Piece& columns) {
  return cut({.name = std::move(name), .shape = {columns.total}, .init = Parameter::Init::ones}, 0,
             columns);
}

}  // namespace

StateMixer::StateMixer(const std::string& prefix, int layer, const ModelConfig& config,
                       const StateLayout& layout, const TensorPlace& place,
                       std::unique_ptr<StateScan> scan)
    : layer_(layer),
      layout_(layout),
      heads_(place.piece(layout.heads)),
      q_(prefix, StateInput::Role::query, config, layout, heads_),
      k_(prefix, StateInput::Role::key, config, layout, heads_),
      v_(prefix, StateInput::Role::value, config, layout, heads_),
      output_gate_(prefix + "g_proj.weight", config.hidden_size, heads_.times(layout.value_dim),
                   fan_in_std(config.hidden_size)),
      norm_(norm_weight(prefix + "o_norm.weight", norms_tokens() ? heads_.times(layout.value_dim)
                                                                 : place.whole(layout.value_dim))),
      eps_(config.rms_norm_eps),
      o_(prefix + "o_proj.weight", heads_.times(layout.value_dim), config.hidden_size,
         output_std(layout.heads * layout.value_dim, config)),
      scan_(std::move(scan)) {
  const StateFamily& family = *layout.family;
  if (family.fixed_log_decay != nullptr) {
    const std::vector<double> all =
        family.fixed_log_decay(layer, config.num_hidden_layers, layout.heads);
    fixed_log_decay_.assign(all.begin() + heads_.begin, all.begin() + heads_.end);
  }
  if (family.make_gate != nullptr) gate_ = family.make_gate(prefix, config, layout, place);
}

Tensor StateMixer::norm_rows(const Tensor& heads) const {
  const int64_t width = norm_.numel();
  return heads.reshape({heads.numel() / width, width});
}

void StateMixer::sum_over_heads(const Tensor& sums, Tag::Pass pass, const Frame& frame,
                                StepContext& ctx) const {
  Communicator& group =
      ctx.mesh.along(Axis::tensor, pass == Tag::Pass::forward ? Lane::forward : Lane::backward);
  const Scope scope(ctx.scratch);
  const int64_t piece = (sums.numel() + group.size() - 1) / group.size();
  const Tensor received =
      group.size() == 1 ? Tensor{} : ctx.scratch.allocate("sums over heads", sums.dtype, {piece});
  ctx.compute.wait(group.all_reduce(
      sums, received, {layer_, Tag::Purpose::activation, pass, frame.micro_batch()}, ctx.compute));
}

StateMixer::Slots StateMixer::push(Frame& frame, int64_t halo, DType dtype) const {
  const int64_t B = frame.batch(), T = frame.tokens();
  const int64_t H = heads_.size(), K = layout_.key_dim, V = layout_.value_dim;
  const DType wide = accumulator_of(dtype);
  Slots slots;
  slots.q = q_.push(frame, halo, dtype);
  slots.k = k_.push(frame, halo, dtype);
  slots.v = v_.push(frame, halo, dtype);
  switch (layout_.family->kind) {
    case StateKind::none:
      break;
    case StateKind::fixed:
      slots.gates.log_decay = frame.push("log decay", wide, {H});
      break;
    case StateKind::vector:
      slots.gates.log_decay = frame.push("log decay", wide, {B, T, H, K});
      break;
    case StateKind::delta:
      slots.gates.beta = frame.push("beta", wide, {B, T, H});
      [[fallthrough]];
    case StateKind::scalar:
      slots.gates.log_decay = frame.push("log decay", wide, {B, T, H});
      break;
  }
  for (int i = 0; gate_ && i < 2; ++i) {
    const int64_t width = gate_->widths()[i];
    if (width == 0) continue;
    slots.gate_activations[i] = frame.push(kGateActivations[i], dtype, {frame.rows(), width});
  }
  if (gated()) slots.output_gate = frame.push("output gate", dtype, {B, T, H, V});
  slots.entering = frame.push("entering", wide, {B, H, K, V}, Recompute::layer);
  slots.out = frame.push("out", wide, {B, T, H, V}, Recompute::attention_output);
  if (norms_tokens()) {
    slots.squares = frame.push("out squares", wide, {frame.rows()}, Recompute::layer);
  }
  slots.rstd = frame.push("out rstd", wide, {B * T * H * V / norm_.numel()});
  return slots;
}

StateMixer::Slots StateMixer::peek(const Frame& frame) const {
  Slots slots{.q = q_.peek(frame),
              .k = k_.peek(frame),
              .v = v_.peek(frame),
              .gates = {},
              .gate_activations = {},
              .output_gate = {},
              .entering = frame.peek("entering"),
              .out = frame.peek("out"),
              .squares = {},
              .rstd = frame.peek("out rstd")};
  if (layout_.family->kind != StateKind::none) slots.gates.log_decay = frame.peek("log decay");
  if (layout_.family->kind == StateKind::delta) slots.gates.beta = frame.peek("beta");
  for (int i = 0; gate_ && i < 2; ++i) {
    if (gate_->widths()[i] > 0) slots.gate_activations[i] = frame.peek(kGateActivations[i]);
  }
  if (gated()) slots.output_gate = frame.peek("output gate");
  if (norms_tokens()) slots.squares = frame.peek("out squares");
  return slots;
}

void StateMixer::pop(Frame& frame) const {
  frame.pop("out rstd");
  if (norms_tokens()) frame.pop("out squares");
  frame.pop("out");
  frame.pop("entering");
  if (gated()) frame.pop("output gate");
  for (int i = 1; gate_ && i >= 0; --i) {
    if (gate_->widths()[i] > 0) frame.pop(kGateActivations[i]);
  }
  if (layout_.family->kind != StateKind::none) frame.pop("log decay");
  if (layout_.family->kind == StateKind::delta) frame.pop("beta");
  v_.pop(frame);
  k_.pop(frame);
  q_.pop(frame);
}

TokenHalo StateMixer::halo(const Frame& frame, Tag::Pass pass, StepContext& ctx) const {
  const int64_t tokens = layout_.taps > 0 ? layout_.taps - 1 : 0;
  return TokenHalo(frame.cuts(), tokens,
                   {layer_, Tag::Purpose::convolution, pass, frame.micro_batch()}, ctx);
}

void StateMixer::make_gates(const Slots& slots, const Tensor& x, StepContext& ctx) const {
  if (!fixed_log_decay_.empty()) {
    fixed_decay({.log_decay = slots.gates.log_decay, .values = &fixed_log_decay_}, ctx.compute);
  }
  if (gate_) gate_->forward(slots.gates, slots.gate_activations, x, ctx);
}

void StateMixer::make_inputs(const Slots& slots, const Tensor& x, const TokenHalo& halo,
                             Frame& frame, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  q_.project(slots.q, x, ctx);
  k_.project(slots.k, x, ctx);
  v_.project(slots.v, x, ctx);
  Event arrived;
  if (layout_.taps > 1 && !frame.present("q before")) {
    arrived = halo.fetch({slots.q.before, slots.k.before, slots.v.before},
                         {slots.q.raw, slots.k.raw, slots.v.raw});
  }
  make_gates(slots, x, ctx);
  ctx.compute.wait(arrived);
  q_.finish(slots.q, frame, ctx);
  k_.finish(slots.k, frame, ctx);
  v_.finish(slots.v, frame, ctx);
}

void StateMixer::observe(const char* name, const Tensor& heads, const Frame& frame,
                         StepContext& ctx) const {
  const int64_t width = heads.ndim > 3 ? heads.dim(3) : 1;
  ctx.observe(frame, layer_, name, heads, place_of(heads_, width));
}

void StateMixer::observe(const Slots& slots, const Frame& frame, StepContext& ctx) const {
  observe("q", slots.q.value, frame, ctx);
  observe("k", slots.k.value, frame, ctx);
  observe("v", slots.v.value, frame, ctx);
  if (gate_) observe("log_decay", slots.gates.log_decay, frame, ctx);
  if (slots.gates.beta) observe("beta", slots.gates.beta, frame, ctx);
  observe("out", slots.out, frame, ctx);
}

StateShard StateMixer::shard(const Slots& slots, const Frame& frame) const {
  return {.tokens = {.kind = layout_.family->kind,
                     .k = slots.k.value,
                     .v = slots.v.value,
                     .log_decay = slots.gates.log_decay,
                     .beta = slots.gates.beta,
                     .positions = frame.peek("positions")},
          .q = slots.q.value,
          .scale = layout_.scale(),
          .layer = layer_,
          .micro_batch = frame.micro_batch()};
}

void StateMixer::forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) {
  const TokenHalo before = halo(frame, Tag::Pass::forward, ctx);
  const Slots slots = push(frame, before.tokens(), x.dtype);
  make_inputs(slots, x, before, frame, ctx);
  const auto project_gate = [&] {
    if (gated()) output_gate_.forward(flat_heads(slots.output_gate), x, ctx);
  };
  if (frame.present("out")) {
    project_gate();
  } else {
    StateScan* scan = frame.present("entering") ? nullptr : scan_.get();
    mix_states(shard(slots, frame), slots.out, slots.entering, scan, ctx, project_gate);
  }
  observe(slots, frame, ctx);
  if (norms_tokens() && !frame.present("out squares")) {
    row_squares({.squares = slots.squares, .x = norm_rows(slots.out)}, ctx.compute);
    sum_over_heads(slots.squares, Tag::Pass::forward, frame, ctx);
  }
  const Scope scope(ctx.scratch);
  const Tensor normed = ctx.scratch.allocate(
      "gated output", x.dtype,
      {slots.out.dim(0), slots.out.dim(1), slots.out.dim(2), slots.out.dim(3)});
  gated_norm_forward({.y = norm_rows(normed),
                      .rstd = slots.rstd,
                      .x = norm_rows(slots.out),
                      .gate = gated() ? norm_rows(slots.output_gate) : Tensor{},
                      .weight = ctx.weight(norm_),
                      .function = layout_.output_gate,
                      .eps = eps_,
                      .squares = slots.squares,
                      .whole = heads_.total * layout_.value_dim},
                     ctx.compute);
  if (y) o_.forward(y, flat_heads(normed), ctx);
}

StateGradients StateMixer::allocate_gradients(const Slots& slots, Arena& arena) const {
  const auto like = [&](const char* name, const Tensor& t) {
    const Tensor flat = arena.allocate(name, slots.out.dtype, {t.numel()});
    return Tensor::view(flat.data, flat.dtype, flat.device,
                        {t.shape.data(), static_cast<size_t>(t.ndim)});
  };
  return {.dq = like("dq", slots.q.value),
          .dk = like("dk", slots.k.value),
          .dv = like("dv", slots.v.value),
          .dlog_decay = gate_ ? like("dlog decay", slots.gates.log_decay) : Tensor{},
          .dbeta = slots.gates.beta ? like("dbeta", slots.gates.beta) : Tensor{}};
}

void StateMixer::backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                          StepContext& ctx) {
  const Slots slots = peek(frame);
  {
    const Scope scope(ctx.scratch);
    const auto like_out = [&](const char* name) {
      return ctx.scratch.allocate(
          name, dy.dtype, {slots.out.dim(0), slots.out.dim(1), slots.out.dim(2), slots.out.dim(3)});
    };
    const Tensor dout = like_out("dout"), normed = like_out("gated output");
    const Tensor dnormed = like_out("dgated output");
    const Tensor dgate = gated() ? like_out("doutput gate") : Tensor{};
    o_.backward_input(flat_heads(dnormed), dy, ctx);
    Tensor along;
    if (norms_tokens()) {
      along = ctx.scratch.allocate("out along", slots.out.dtype, {frame.rows()});
      gated_norm_along({.along = along,
                        .dy = norm_rows(dnormed),
                        .x = norm_rows(slots.out),
                        .gate = gated() ? norm_rows(slots.output_gate) : Tensor{},
                        .weight = ctx.weight(norm_),
                        .function = layout_.output_gate},
                       ctx.compute);
      sum_over_heads(along, Tag::Pass::backward, frame, ctx);
    }
    gated_norm_backward({.dx = norm_rows(dout),
                         .dgate = gated() ? norm_rows(dgate) : Tensor{},
                         .dweight = ctx.gradient(norm_),
                         .y = norm_rows(normed),
                         .dy = norm_rows(dnormed),
                         .x = norm_rows(slots.out),
                         .rstd = slots.rstd,
                         .gate = gated() ? norm_rows(slots.output_gate) : Tensor{},
                         .weight = ctx.weight(norm_),
                         .function = layout_.output_gate,
                         .along = along,
                         .whole = heads_.total * layout_.value_dim},
                        ctx.compute);
    observe("dout", dout, frame, ctx);
    const StateGradients d = allocate_gradients(slots, ctx.scratch);
    mix_states_backward(shard(slots, frame), slots.entering, dout, d, {}, *scan_, ctx, [&] {
      o_.backward_weight(dy, flat_heads(normed), ctx);
      if (gated()) {
        output_gate_.backward(dx, flat_heads(dgate), x.await(ctx.compute), ctx);
      } else {
        fill({.y = dx, .value = 0}, ctx.compute);
      }
    });
    observe("dq", d.dq, frame, ctx);
    observe("dk", d.dk, frame, ctx);
    observe("dv", d.dv, frame, ctx);
    if (d.dlog_decay) observe("dlog_decay", d.dlog_decay, frame, ctx);
    if (d.dbeta) observe("dbeta", d.dbeta, frame, ctx);
    backward_inputs(dx, d, slots, x.await(ctx.compute), frame, ctx);
  }
  pop(frame);
}

void StateMixer::backward_inputs(const Tensor& dx, const StateGradients& d, const Slots& slots,
                                 const Tensor& x, Frame& frame, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const TokenHalo before = halo(frame, Tag::Pass::backward, ctx);
  const auto like = [&](const char* name, const Tensor& t) {
    if (!t || layout_.taps == 0) return Tensor{};
    return ctx.scratch.allocate(name, d.dq.dtype, {t.dim(0), t.dim(1), t.dim(2), t.dim(3)});
  };
  const std::vector<Tensor> dbefore = {like("dbefore", slots.q.before),
                                       like("dbefore", slots.k.before),
                                       like("dbefore", slots.v.before)};
  const std::vector<Tensor> draw = {
      q_.backward_in_place(d.dq, like("draw", d.dq), dbefore[0], slots.q, frame, ctx),
      k_.backward_in_place(d.dk, like("draw", d.dk), dbefore[1], slots.k, frame, ctx),
      v_.backward_in_place(d.dv, like("draw", d.dv), dbefore[2], slots.v, frame, ctx)};
  TokenHalo::Returning returning;
  if (layout_.taps > 1) returning = before.give_back(dbefore);
  if (gate_) {
    gate_->backward(dx, {d.dlog_decay, d.dbeta}, slots.gates, slots.gate_activations, x, ctx);
  }
  if (layout_.taps > 1) before.add_returned(returning, draw);
  q_.backward_projection(dx, draw[0], x, ctx);
  k_.backward_projection(dx, draw[1], x, ctx);
  v_.backward_projection(dx, draw[2], x, ctx);
}

void StateMixer::visit(const std::function<void(Parameter&)>& f) {
  for (StateInput* input : {&q_, &k_, &v_}) input->visit(f);
  if (gate_) gate_->visit(f);
  if (gated()) f(output_gate_.weight);
  f(norm_);
  f(o_.weight);
}

}  // namespace weft
