#include "parallel/sequence/mix_states.hpp"

#include <optional>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// What a pass takes from the scratch arena.
class PassBuffers {
 public:
  PassBuffers(const StateShard& shard, StepContext& ctx)
      : shard_(shard), arena_(ctx.scratch), target_(ctx.target()) {}

  Tensor state(const char* name) const { return allocate_state(name, shard_, arena_); }

  Tensor chunk_states(const char* name) const {
    const StateTokens& tokens = shard_.tokens;
    return handed(name,
                  chunk_states_of(target_, tokens.kind, tokens.k.dtype, StateShape::of(tokens)));
  }
  Tensor entering_states(const char* name) const {
    const StateTokens& tokens = shard_.tokens;
    return handed(name,
                  entering_states_of(target_, tokens.kind, tokens.k.dtype, StateShape::of(tokens)));
  }

  Tensor transition() const {
    const Tensor& k = shard_.tokens.k;
    const char* name = "transition";
    switch (shard_.tokens.kind) {
      case StateKind::none:  // documents end its states too
      case StateKind::fixed:
      case StateKind::scalar:
        return arena_.allocate(name, wide(), {k.dim(0), k.dim(2)});
      case StateKind::vector:
        return arena_.allocate(name, wide(), {k.dim(0), k.dim(2), k.dim(3)});
      case StateKind::delta:
        return arena_.allocate(name, wide(), {k.dim(0), k.dim(2), k.dim(3), k.dim(3)});
    }
    return {};
  }

  Tensor kernel_scratch() const {
    const StateTokens& tokens = shard_.tokens;
    return arena_.allocate(
        "state scratch", DType::u8,
        {state_scratch_bytes(target_, tokens.kind, tokens.k.dtype, StateShape::of(tokens))});
  }

 private:
  Tensor handed(const char* name, const std::optional<HandedStates>& states) const {
    if (!states) return {};
    const StateShape s = StateShape::of(shard_.tokens);
    return arena_.allocate(name, states->dtype,
                           {s.batch, s.heads, states->count, s.key_dim, s.value_dim});
  }
  DType wide() const { return accumulator_of(shard_.tokens.k.dtype); }

  const StateShard& shard_;
  Arena& arena_;
  Device target_;
};

/// One rank has no boundary values: what only they need is left out.
bool crosses_ranks(StepContext& ctx) {
  return ctx.mesh.size(Axis::sequence) > 1;
}

}  // namespace

Tensor allocate_state(const char* name, const StateShard& shard, Arena& arena) {
  const Tensor &k = shard.tokens.k, &v = shard.tokens.v;
  return arena.allocate(name, accumulator_of(k.dtype), {k.dim(0), k.dim(2), k.dim(3), v.dim(3)});
}

void mix_states(const StateShard& shard, const Tensor& out, const Tensor& entering, StateScan* scan,
                StepContext& ctx, const std::function<void()>& meanwhile) {
  const Scope scope(ctx.scratch);
  const PassBuffers buffers(shard, ctx);
  const bool scans = scan != nullptr && crosses_ranks(ctx);
  const ScanElement element{.transition = buffers.transition(), .state = buffers.state("state")};
  const Tensor chunk_states = buffers.chunk_states("chunk states");
  const Tensor scratch = buffers.kernel_scratch();
  if (scans || chunk_states) {
    state_summarize({.transition = element.transition,
                     .state = element.state,
                     .chunk_states = chunk_states,
                     .scratch = scratch,
                     .tokens = shard.tokens},
                    ctx.compute);
  }
  std::optional<PendingScan> pending;
  if (scans) {
    pending.emplace(scan->begin(element, entering, ScanDirection::prefix,
                                state_tag(shard.layer, shard.micro_batch, Tag::Pass::forward),
                                ctx));
  } else if (scan != nullptr) {
    fill({.y = entering, .value = 0}, ctx.compute);
  }
  state_local(
      {.out = out, .scratch = scratch, .q = shard.q, .scale = shard.scale, .tokens = shard.tokens},
      ctx.compute);
  if (meanwhile) meanwhile();
  if (pending) pending->finish();
  state_apply({.out = out,
               .hT = {},
               .h0 = entering,
               .chunk_states = chunk_states,
               .scratch = scratch,
               .q = shard.q,
               .scale = shard.scale,
               .tokens = shard.tokens},
              ctx.compute);
}

void mix_states_backward(const StateShard& shard, const Tensor& entering, const Tensor& dout,
                         const StateGradients& gradients, const Tensor& dh0, StateScan& scan,
                         StepContext& ctx, const std::function<void()>& meanwhile) {
  const Scope scope(ctx.scratch);
  const PassBuffers buffers(shard, ctx);
  const ScanElement element{.transition = buffers.transition(), .state = buffers.state("costate")};
  const Tensor chunk_costates = buffers.chunk_states("chunk costates");
  const Tensor chunk_entering = buffers.entering_states("chunk entering");
  const Tensor scratch = buffers.kernel_scratch();
  const bool scans = crosses_ranks(ctx);
  const Tensor leaving = scans ? buffers.state("leaving costate") : Tensor{};
  if (scans || chunk_costates) {
    state_cosummarize({.transition = element.transition,
                       .state = element.state,
                       .chunk_costates = chunk_costates,
                       .scratch = scratch,
                       .q = shard.q,
                       .dout = dout,
                       .scale = shard.scale,
                       .tokens = shard.tokens},
                      ctx.compute);
  }
  std::optional<PendingScan> pending;
  if (scans) {
    pending.emplace(scan.begin(element, leaving, ScanDirection::suffix,
                               state_tag(shard.layer, shard.micro_batch, Tag::Pass::backward),
                               ctx));
  }
  state_backward_local({.gradients = gradients,
                        .entering = chunk_entering,
                        .h0 = entering,
                        .scratch = scratch,
                        .q = shard.q,
                        .dout = dout,
                        .scale = shard.scale,
                        .tokens = shard.tokens},
                       ctx.compute);
  if (meanwhile) meanwhile();
  if (pending) pending->finish();
  state_backward_apply({.gradients = gradients,
                        .dh0 = dh0,
                        .dhT = leaving,
                        .entering = chunk_entering,
                        .chunk_costates = chunk_costates,
                        .scratch = scratch,
                        .q = shard.q,
                        .dout = dout,
                        .scale = shard.scale,
                        .tokens = shard.tokens},
                       ctx.compute);
}

}  // namespace weft
