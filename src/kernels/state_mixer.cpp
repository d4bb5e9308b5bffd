#include "src/kernels/state_mixer.hpp"

#include <algorithm>

#include "src/kernels/cuda/state_scratch.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

bool diagonal(const StateTokens& tokens) {
  return tokens.kind != StateKind::delta;
}

// ---- Checks

void check_log_decay(const Tensor& log_decay, const StateTokens& tokens) {
  const StateShape s = StateShape::of(tokens);
  switch (tokens.kind) {
    case StateKind::none:
      WEFT_CHECK(!log_decay, log_decay.text(), " for a kind without decay");
      return;
    case StateKind::fixed:
      WEFT_CHECK(log_decay.has_shape({s.heads}), log_decay.text());
      break;
    case StateKind::scalar:
    case StateKind::delta:
      WEFT_CHECK(log_decay.has_shape({s.batch, s.tokens, s.heads}), log_decay.text());
      break;
    case StateKind::vector:
      WEFT_CHECK(same_shape(log_decay, tokens.k), log_decay.text(), " for ", tokens.k.text());
      break;
  }
  WEFT_CHECK(log_decay.dtype == accumulator_of(tokens.k.dtype), log_decay.text());
}

void check(const StateTokens& tokens, const Tensor& scratch) {
  const auto& [kind, k, v, log_decay, beta, positions] = tokens;
  WEFT_CHECK(k.ndim == 4 && v.ndim == 4 && k.dtype == v.dtype, k.text(), " ", v.text());
  const StateShape s = StateShape::of(tokens);
  WEFT_CHECK(s.key_dim > 0 && s.value_dim > 0, k.text(), " ", v.text());
  WEFT_CHECK(v.has_shape({s.batch, s.tokens, s.heads, s.value_dim}), k.text(), " ", v.text());
  check_log_decay(log_decay, tokens);
  if (kind == StateKind::delta) {
    WEFT_CHECK(
        beta.has_shape({s.batch, s.tokens, s.heads}) && beta.dtype == accumulator_of(k.dtype),
        beta.text(), " for ", k.text());
  } else {
    WEFT_CHECK(!beta, beta.text(), " for a kind without beta");
  }
  WEFT_CHECK(positions.has_shape({s.batch, s.tokens}) && positions.dtype == DType::i64,
             positions.text());
  const bool planned = k.device == Device::meta;  // for a device that the kernel is not told
  WEFT_CHECK(scratch.dtype == DType::u8 &&
                 (planned || scratch.nbytes() >= state_scratch_bytes(k.device, kind, k.dtype, s)),
             scratch.text());
}

/// [B, T, H, K] like k or [B, T, H, V] like v.
void check_rows(const Tensor& rows, const Tensor& like, DType dtype) {
  WEFT_CHECK(same_shape(rows, like) && rows.dtype == dtype, rows.text(), " for ", like.text());
}

void check_state(const Tensor& state, const StateTokens& tokens) {
  const StateShape s = StateShape::of(tokens);
  WEFT_CHECK(state.has_shape({s.batch, s.heads, s.key_dim, s.value_dim}) &&
                 state.dtype == accumulator_of(tokens.k.dtype) && state.contiguous(),
             state.text(), " for ", tokens.k.text(), " ", tokens.v.text());
}

/// States that passes hand on. On meta the device is not known that they are planned for, nor how
/// many there have to be.
void check_handed(const Tensor& states, const std::optional<HandedStates>& wanted,
                  const StateTokens& tokens) {
  if (tokens.k.device == Device::meta) return;
  const StateShape s = StateShape::of(tokens);
  const bool fits =
      !wanted ? !states
              : states.has_shape({s.batch, s.heads, wanted->count, s.key_dim, s.value_dim}) &&
                    states.dtype == wanted->dtype && states.contiguous();
  WEFT_CHECK(fits, states.text(), " for ", tokens.k.text(), " ", tokens.v.text());
}

void check_chunk_states(const Tensor& states, const StateTokens& tokens) {
  check_handed(
      states, chunk_states_of(tokens.k.device, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
      tokens);
}

void check_entering(const Tensor& states, const StateTokens& tokens) {
  check_handed(
      states,
      entering_states_of(tokens.k.device, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
      tokens);
}

void check_transition(const Tensor& transition, const StateTokens& tokens) {
  const StateShape s = StateShape::of(tokens);
  const bool fits = tokens.kind == StateKind::vector
                        ? transition.has_shape({s.batch, s.heads, s.key_dim})
                    : tokens.kind == StateKind::delta
                        ? transition.has_shape({s.batch, s.heads, s.key_dim, s.key_dim})
                        : transition.has_shape({s.batch, s.heads});
  WEFT_CHECK(fits && transition.dtype == accumulator_of(tokens.k.dtype) && transition.contiguous(),
             transition.text(), " for ", tokens.k.text());
}

void check_gradients(const StateGradients& gradients, const StateTokens& tokens) {
  const DType dtype = accumulator_of(tokens.k.dtype);
  check_rows(gradients.dq, tokens.k, dtype);
  check_rows(gradients.dk, tokens.k, dtype);
  check_rows(gradients.dv, tokens.v, dtype);
  if (tokens.kind == StateKind::none || tokens.kind == StateKind::fixed) {
    WEFT_CHECK(!gradients.dlog_decay, "a decay that is not trained has no gradient");
  } else {
    check_log_decay(gradients.dlog_decay, tokens);
  }
  WEFT_CHECK(same_shape(gradients.dbeta, tokens.beta) &&
                 (!gradients.dbeta || gradients.dbeta.dtype == dtype),
             gradients.dbeta.text());
}

// ---- Costs: the chunks' products, each chunk's squares of pairs whole, as they are computed

/// The products of a pass over all chunks and heads, by how they are shaped.
class ChunkProducts {
 public:
  explicit ChunkProducts(const StateTokens& tokens)
      : vector_(tokens.kind == StateKind::vector), sizes_(StateShape::of(tokens)) {}

  /// [chunk, chunk] from rows of `width`: scores. Of the vector kind, blocks of 16 tokens against
  /// those before them.
  ChunkProducts& pairs(int64_t width, bool decay_inside = false) {
    const int64_t rows = decay_inside && vector_ ? std::min<int64_t>(chunk(), 16) : chunk();
    return add({.m = rows, .n = chunk(), .k = width, .transpose_b = true}, width * chunk());
  }
  /// [chunk, width] from [chunk, chunk]
  ChunkProducts& spread(int64_t width, bool transposed = false) {
    return add({.m = chunk(), .n = width, .k = chunk(), .transpose_a = transposed},
               width * chunk());
  }
  /// [chunk, columns] from rows of `width` and a state
  ChunkProducts& read(int64_t width, int64_t columns, bool transposed = false) {
    return add({.m = chunk(), .n = columns, .k = width, .transpose_b = transposed},
               width * columns);
  }
  /// A state [K, width] from the rows of a chunk
  ChunkProducts& write(int64_t width) {
    return add({.m = sizes_.key_dim, .n = width, .k = chunk(), .transpose_a = true},
               sizes_.key_dim * width);
  }
  /// A triangular solve for `width` columns: half a square, in blocks of 16 rows
  ChunkProducts& solve(int64_t width) {
    return add({.m = std::min<int64_t>(chunk(), 16),
                .n = width,
                .k = (chunk() + 1) / 2,
                .accumulate = true},
               width * chunk() / 2);
  }

  std::vector<Product> list() const { return products_; }

 private:
  int64_t chunk() const { return std::min(sizes_.tokens, kStateChunk); }

  ChunkProducts& add(Product product, int64_t multiply_adds_of_a_token) {
    product.flops = 2.0 * static_cast<double>(sizes_.batch * sizes_.heads * sizes_.tokens) *
                    static_cast<double>(multiply_adds_of_a_token);
    if (product.flops > 0) products_.push_back(product);
    return *this;
  }

  bool vector_;
  StateShape sizes_;
  std::vector<Product> products_;
};

int64_t bytes_of(const StateTokens& tokens) {
  return tokens.k.nbytes() + tokens.v.nbytes() +
         (tokens.log_decay ? tokens.log_decay.nbytes() : 0) +
         (tokens.beta ? tokens.beta.nbytes() : 0) + tokens.positions.nbytes();
}

int64_t bytes_of(const StateGradients& g) {
  return g.dq.nbytes() + g.dk.nbytes() + g.dv.nbytes() +
         (g.dlog_decay ? g.dlog_decay.nbytes() : 0) + (g.dbeta ? g.dbeta.nbytes() : 0);
}

/// FLOPs of the products, and the bytes of the tensors that are there.
template <class Args>
Cost cost_of(const Args& args, int64_t bytes, std::initializer_list<const Tensor*> tensors) {
  Cost cost{0, static_cast<double>(bytes)};
  for (const Product& product : products(args)) cost.flops += product.flops;
  for (const Tensor* t : tensors) cost.bytes += *t ? static_cast<double>(t->nbytes()) : 0.0;
  return cost;
}

}  // namespace

int64_t state_chunks(int64_t tokens) {
  return (tokens + kStateChunk - 1) / kStateChunk;
}

StateShape StateShape::of(const StateTokens& t) {
  return {t.k.dim(0), t.k.dim(1), t.k.dim(2), t.k.dim(3), t.v.dim(3)};
}

int64_t state_scratch_bytes(Device device, StateKind kind, DType dtype, const StateShape& shape) {
  if (device == Device::cuda) {
    return cuda::state::Scratch(nullptr, kind, dtype, shape).bytes;
  }
  return state_scratch_bytes(kind, dtype, shape.key_dim, shape.value_dim);
}

std::optional<HandedStates> chunk_states_of(Device device, StateKind kind, DType dtype,
                                            const StateShape& shape) {
  if (kind == StateKind::delta) return {};
  if (device == Device::cuda) return cuda::state::chunk_states_of(kind, dtype, shape);
  return HandedStates{state_chunks(shape.tokens), accumulator_of(dtype)};
}

std::optional<HandedStates> entering_states_of(Device device, StateKind kind, DType dtype,
                                               const StateShape& shape) {
  if (device == Device::cuda) return cuda::state::entering_states_of(kind, dtype, shape);
  return HandedStates{state_chunks(shape.tokens), accumulator_of(dtype)};
}

// ---- The passes

std::vector<Product> products(const StateSummaryArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  ChunkProducts p(args.tokens);
  if (diagonal(args.tokens)) return p.write(V).list();
  p.pairs(K);
  for (const int64_t width : {V, K}) p.read(K, width).solve(width).write(width);
  return p.list();
}

Cost cost(const StateSummaryArgs& a) {
  return cost_of(a, bytes_of(a.tokens), {&a.transition, &a.state, &a.chunk_states});
}

void state_summarize(const StateSummaryArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  check_transition(args.transition, args.tokens);
  check_state(args.state, args.tokens);
  check_chunk_states(args.chunk_states, args.tokens);
  WEFT_DISPATCH(state_summarize, args, stream);
}

std::vector<Product> products(const StateLocalArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  if (!diagonal(args.tokens)) return {};
  return ChunkProducts(args.tokens).pairs(K, true).spread(V).list();
}

Cost cost(const StateLocalArgs& a) {
  if (!diagonal(a.tokens)) return {};
  return cost_of(a, bytes_of(a.tokens), {&a.q, &a.out});
}

void state_local(const StateLocalArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  check_rows(args.q, args.tokens.k, args.tokens.k.dtype);
  check_rows(args.out, args.tokens.v, accumulator_of(args.tokens.k.dtype));
  if (!diagonal(args.tokens)) return;
  WEFT_DISPATCH(state_local, args, stream);
}

std::vector<Product> products(const StateApplyArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  ChunkProducts p(args.tokens);
  if (diagonal(args.tokens)) return p.read(K, V).list();
  return p.pairs(K).pairs(K).read(K, V).solve(V).read(K, V).spread(V).write(V).list();
}

Cost cost(const StateApplyArgs& a) {
  const int64_t bytes = diagonal(a.tokens) ? a.out.nbytes() : bytes_of(a.tokens);  // out: read too
  return cost_of(a, bytes, {&a.q, &a.out, &a.hT, &a.h0, &a.chunk_states});
}

void state_apply(const StateApplyArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  check_rows(args.q, args.tokens.k, args.tokens.k.dtype);
  check_rows(args.out, args.tokens.v, accumulator_of(args.tokens.k.dtype));
  if (args.hT) check_state(args.hT, args.tokens);
  if (args.h0) check_state(args.h0, args.tokens);
  check_chunk_states(args.chunk_states, args.tokens);
  WEFT_DISPATCH(state_apply, args, stream);
}

std::vector<Product> products(const StateCosummaryArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  ChunkProducts p(args.tokens);
  if (diagonal(args.tokens)) return p.write(V).list();
  p.pairs(K).pairs(K).spread(V, true).write(V).read(K, V).solve(V).write(V);
  if (args.transition) p.read(K, K).solve(K).write(K);
  return p.list();
}

Cost cost(const StateCosummaryArgs& a) {
  return cost_of(a, bytes_of(a.tokens) - a.tokens.v.nbytes(),
                 {&a.transition, &a.state, &a.chunk_costates, &a.q, &a.dout});
}

void state_cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  if (args.transition) check_transition(args.transition, args.tokens);
  check_state(args.state, args.tokens);
  check_chunk_states(args.chunk_costates, args.tokens);
  check_rows(args.q, args.tokens.k, args.tokens.k.dtype);
  check_rows(args.dout, args.tokens.v, args.tokens.k.dtype);
  WEFT_DISPATCH(state_cosummarize, args, stream);
}

std::vector<Product> products(const StateBackwardLocalArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  ChunkProducts p(args.tokens);
  if (!diagonal(args.tokens)) return p.pairs(K).read(K, V).solve(V).write(V).list();
  p.pairs(V).pairs(K, true).spread(K).spread(K, true).spread(V, true);
  return p.read(V, K, true).write(V).list();
}

Cost cost(const StateBackwardLocalArgs& a) {
  const int64_t bytes =
      bytes_of(a.tokens) +
      (diagonal(a.tokens) ? bytes_of(a.gradients) + a.q.nbytes() + a.dout.nbytes() : 0);
  return cost_of(a, bytes, {&a.entering, &a.h0});
}

void state_backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  check_gradients(args.gradients, args.tokens);
  check_entering(args.entering, args.tokens);
  if (args.h0) check_state(args.h0, args.tokens);
  check_rows(args.q, args.tokens.k, args.tokens.k.dtype);
  check_rows(args.dout, args.tokens.v, args.tokens.k.dtype);
  WEFT_DISPATCH(state_backward_local, args, stream);
}

std::vector<Product> products(const StateBackwardApplyArgs& args) {
  const auto [B, T, H, K, V] = StateShape::of(args.tokens);
  ChunkProducts p(args.tokens);
  if (diagonal(args.tokens)) return p.read(K, V).read(V, K, true).list();
  p.pairs(K).pairs(K).read(K, V).solve(V);                  // L, P, R, U
  p.read(K, V).spread(V, true).solve(V).pairs(V).pairs(V);  // dR, dP, dL
  p.spread(K).spread(K, true).spread(K).spread(K, true);    // q k^T and k k^T to dq, dk
  for (int i = 0; i < 3; ++i) p.read(V, K, true);           // through S and D to dq, dk
  return p.write(V).write(V).list();                        // D'
}

Cost cost(const StateBackwardApplyArgs& a) {
  const int64_t gradients = bytes_of(a.gradients);
  const int64_t bytes = diagonal(a.tokens)  // adds to dk, dv, dlog_decay; needs neither q nor dout
                            ? 2 * (gradients - a.gradients.dq.nbytes())
                            : gradients + a.q.nbytes() + a.dout.nbytes();
  return cost_of(a, bytes_of(a.tokens) + bytes, {&a.dh0, &a.dhT, &a.entering, &a.chunk_costates});
}

void state_backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  check(args.tokens, args.scratch);
  check_gradients(args.gradients, args.tokens);
  if (args.dh0) check_state(args.dh0, args.tokens);
  if (args.dhT) check_state(args.dhT, args.tokens);
  check_entering(args.entering, args.tokens);
  check_chunk_states(args.chunk_costates, args.tokens);
  check_rows(args.q, args.tokens.k, args.tokens.k.dtype);
  check_rows(args.dout, args.tokens.v, args.tokens.k.dtype);
  WEFT_DISPATCH(state_backward_apply, args, stream);
}

}  // namespace weft
