// Diagonal kinds. The state runs through the chunks as S <- through o S + (leave o k)^T v, its
// gradient the other way as D <- through o D + (enter o scale q)^T dout; what is inside a chunk is
// in state_pairs.cpp.
#include "src/kernels/state_mixer.hpp"

#include "src/kernels/cpu/state_chunk.hpp"
#include "src/kernels/cpu/state_delta.hpp"
#include "src/kernels/cpu/state_pairs.hpp"

namespace weft {
namespace cpu {
namespace {

int64_t lanes_of(StateKind kind, int64_t key_dim) {
  return kind == StateKind::vector ? key_dim : 1;
}

/// What the diagonal passes need besides their arguments.
template <class T>
struct Workspace {
  Workspace(Slab slab, StateKind kind, int64_t key_dim, int64_t value_dim)
      : decays(slab, lanes_of(kind, key_dim)),
        crossings(slab, lanes_of(kind, key_dim)),
        state(slab.take<T>(key_dim * value_dim)),
        added(slab.take<T>(key_dim * value_dim)),
        rows(slab.take<T>(kStateChunk * std::max(key_dim, value_dim))),
        scores(slab.take<T>(kStateChunk * kStateChunk)),
        products(slab.take<T>(kStateChunk * kStateChunk)),
        log_through(slab.take<double>(lanes_of(kind, key_dim))),
        rest(slab) {}

  ChunkDecays<T> decays;
  Crossings<T> crossings;
  T* state;             // [K, V]: runs through the chunks
  T* added;             // [K, V]
  T* rows;              // [kStateChunk, K or V]
  T* scores;            // [kStateChunk, kStateChunk]
  T* products;          // [kStateChunk, kStateChunk]
  double* log_through;  // [lanes]
  Slab rest;            // for the pairs
};

template <class T>
int64_t diagonal_scratch(StateKind kind, int64_t key_dim, int64_t value_dim) {
  Slab slab = Workspace<T>(Slab(nullptr), kind, key_dim, value_dim).rest;
  if (kind == StateKind::vector) {
    VectorPairs<T>(slab, key_dim);
  } else {
    ScalarPairs<T>(slab, key_dim);
  }
  return slab.used();
}

template <class T>
Workspace<T> workspace(const Tensor& scratch, const StateTokens& tokens) {
  return Workspace<T>(Slab(bytes(scratch)), tokens.kind, tokens.k.dim(3), tokens.v.dim(3));
}

/// added = (factor o x)^T y over a chunk, [K, V]: what its tokens write, or send back, to the
/// state.
template <class T>
void outer(const Workspace<T>& w, const Chunk& chunk, const T* factor, T alpha, const Rows<T>& x,
           int64_t key_dim, const Rows<T>& y, int64_t value_dim, T* added) {
  scale_rows(chunk.count, key_dim, alpha, factor, w.decays.lanes, x.row(chunk.begin), x.step,
             w.rows);
  gemm(Gemm<T>{true, false, key_dim, value_dim, chunk.count, 1, w.rows, key_dim, y.row(chunk.begin),
               y.step, 0, added, value_dim});
}

template <class T>
void clear_transition(const Workspace<T>& w) {
  std::fill_n(w.log_through, w.decays.lanes, 0.0);
}

/// The decay of one more chunk; a reset makes its lane -inf for good.
template <class T>
void extend_transition(const Workspace<T>& w) {
  for (int64_t lane = 0; lane < w.decays.lanes; ++lane) {
    w.log_through[lane] += w.decays.log_through(lane);
  }
}

template <class T>
void store_transition(const Workspace<T>& w, const Tensor& transition, int64_t b, int64_t h) {
  T* out = matrix<T>(transition, b, h);
  for (int64_t lane = 0; lane < w.decays.lanes; ++lane) {
    out[lane] = static_cast<T>(w.log_through[lane]);
  }
}

template <class T>
void summarize(const StateSummaryArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> k(tokens.k, b, h), v(tokens.v, b, h);
    T* state = matrix<T>(args.state, b, h);
    std::fill_n(state, key_dim * value_dim, T(0));
    clear_transition(w);
    for_chunks(tokens, [&](const Chunk& chunk) {
      w.decays.load(tokens, b, h, chunk);
      T* added = matrix<T>(args.chunk_states, b, h, chunk.index);
      outer<T>(w, chunk, w.decays.leave, 1, k, key_dim, v, value_dim, added);
      carry(key_dim, value_dim, w.decays.through, w.decays.lanes, added, state);
      extend_transition(w);
    });
    store_transition(w, args.transition, b, h);
  });
}

template <class T, class Pairs>
void local(const StateLocalArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  Pairs pairs(w.rest, key_dim);
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> q(args.q, b, h), k(tokens.k, b, h), v(tokens.v, b, h), out(args.out, b, h);
    for_chunks(tokens, [&](const Chunk& chunk) {
      w.decays.load(tokens, b, h, chunk);
      pairs.scores(w.decays, chunk, q, k, key_dim, static_cast<T>(args.scale), w.scores);
      gemm(Gemm<T>{false, false, chunk.count, value_dim, chunk.count, 1, w.scores, kStateChunk,
                   v.row(chunk.begin), v.step, 0, out.row(chunk.begin), out.step});
    });
  });
}

template <class T>
void apply(const StateApplyArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> q(args.q, b, h), out(args.out, b, h);
    load_state(args.h0, b, h, key_dim * value_dim, w.state);
    for_chunks(tokens, [&](const Chunk& chunk) {
      w.decays.load(tokens, b, h, chunk);
      scale_rows(chunk.count, key_dim, static_cast<T>(args.scale), w.decays.enter, w.decays.lanes,
                 q.row(chunk.begin), q.step, w.rows);
      gemm(Gemm<T>{false, false, chunk.count, value_dim, key_dim, 1, w.rows, key_dim, w.state,
                   value_dim, 1, out.row(chunk.begin), out.step});
      carry(key_dim, value_dim, w.decays.through, w.decays.lanes,
            matrix<T>(args.chunk_states, b, h, chunk.index), w.state);
    });
    if (args.hT) std::copy_n(w.state, key_dim * value_dim, matrix<T>(args.hT, b, h));
  });
}

template <class T>
void cosummarize(const StateCosummaryArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> q(args.q, b, h), dout(args.dout, b, h);
    T* costate = matrix<T>(args.state, b, h);
    std::fill_n(costate, key_dim * value_dim, T(0));
    clear_transition(w);
    for_chunks_backwards(tokens, [&](const Chunk& chunk) {
      w.decays.load(tokens, b, h, chunk);
      T* added = matrix<T>(args.chunk_costates, b, h, chunk.index);
      outer(w, chunk, w.decays.enter, static_cast<T>(args.scale), q, key_dim, dout, value_dim,
            added);
      carry(key_dim, value_dim, w.decays.through, w.decays.lanes, added, costate);
      extend_transition(w);
    });
    if (args.transition) store_transition(w, args.transition, b, h);
  });
}

/// dq of what enters the chunk: rows = enter o scale (dout S^T), added to dq.
template <class T>
void read_entering(const Workspace<T>& w, const Chunk& chunk, const Rows<T>& dout, T scale,
                   int64_t key_dim, int64_t value_dim, const Rows<T>& dq) {
  gemm(Gemm<T>{false, true, chunk.count, key_dim, value_dim, 1, dout.row(chunk.begin), dout.step,
               w.state, value_dim, 0, w.rows, key_dim});
  scale_rows(chunk.count, key_dim, scale, w.decays.enter, w.decays.lanes, w.rows, key_dim, w.rows);
  for (int64_t t = 0; t < chunk.count; ++t) {
    T* row = dq.row(chunk.begin + t);
    for (int64_t d = 0; d < key_dim; ++d) row[d] += w.rows[t * key_dim + d];
  }
}

template <class T, class Pairs>
void backward_local(const StateBackwardLocalArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  const T scale = static_cast<T>(args.scale);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  Pairs pairs(w.rest, key_dim);
  const Tensor& dlog_decay = args.gradients.dlog_decay;
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> q(args.q, b, h), k(tokens.k, b, h), v(tokens.v, b, h), dout(args.dout, b, h);
    const Rows<T> dq(args.gradients.dq, b, h), dk(args.gradients.dk, b, h);
    const Rows<T> dv(args.gradients.dv, b, h);
    load_state(args.h0, b, h, key_dim * value_dim, w.state);
    for_chunks(tokens, [&](const Chunk& chunk) {
      const int64_t n = chunk.count, begin = chunk.begin;
      w.decays.load(tokens, b, h, chunk);
      w.crossings.clear(n);
      gemm(Gemm<T>{false, true, n, n, value_dim, 1, dout.row(begin), dout.step, v.row(begin),
                   v.step, 0, w.products, kStateChunk});
      pairs.gradients(w.decays, chunk, PairOperands<T>{q, k, dq, dk, key_dim, scale}, w.scores,
                      w.products, dlog_decay ? &w.crossings : nullptr);
      gemm(Gemm<T>{true, false, n, value_dim, n, 1, w.scores, kStateChunk, dout.row(begin),
                   dout.step, 0, dv.row(begin), dv.step});
      read_entering(w, chunk, dout, scale, key_dim, value_dim, dq);
      if (dlog_decay) {
        w.crossings.add_entering(key_dim, [&](int64_t t, int64_t d) {
          return static_cast<double>(q.row(begin + t)[d]) * w.rows[t * key_dim + d];
        });
        w.crossings.store(Rows<T>(dlog_decay, b, h), begin, false);
      }
      T* entering = matrix<T>(args.entering, b, h, chunk.index);
      std::copy_n(w.state, key_dim * value_dim, entering);
      outer<T>(w, chunk, w.decays.leave, 1, k, key_dim, v, value_dim, w.added);
      carry(key_dim, value_dim, w.decays.through, w.decays.lanes, w.added, w.state);
    });
  });
}

/// dk and dv of what leaves the chunk, added: rows = leave o (v D^T), and (leave o k) D.
template <class T>
void write_leaving(const Workspace<T>& w, const Chunk& chunk, const Rows<T>& k, const Rows<T>& v,
                   int64_t key_dim, int64_t value_dim, const Rows<T>& dk, const Rows<T>& dv) {
  const int64_t n = chunk.count, begin = chunk.begin;
  scale_rows(n, key_dim, T(1), w.decays.leave, w.decays.lanes, k.row(begin), k.step, w.rows);
  gemm(Gemm<T>{false, false, n, value_dim, key_dim, 1, w.rows, key_dim, w.state, value_dim, 1,
               dv.row(begin), dv.step});
  gemm(Gemm<T>{false, true, n, key_dim, value_dim, 1, v.row(begin), v.step, w.state, value_dim, 0,
               w.rows, key_dim});
  scale_rows(n, key_dim, T(1), w.decays.leave, w.decays.lanes, w.rows, key_dim, w.rows);
  for (int64_t t = 0; t < n; ++t) {
    T* row = dk.row(begin + t);
    for (int64_t d = 0; d < key_dim; ++d) row[d] += w.rows[t * key_dim + d];
  }
}

/// <through o S, D> of a lane: all rows of the state, or one.
template <class T>
double passing(const ChunkDecays<T>& decays, int64_t lane, const T* state, const T* costate,
               int64_t key_dim, int64_t value_dim) {
  const int64_t count = (decays.lanes == 1 ? key_dim : 1) * value_dim;
  const T* s = state + lane * value_dim;
  const T* d = costate + lane * value_dim;
  return decays.through[lane] *
         sum_of<double>(count, [&](int64_t j) { return static_cast<double>(s[j]) * d[j]; });
}

template <class T>
void backward_apply(const StateBackwardApplyArgs& args) {
  const StateTokens& tokens = args.tokens;
  const int64_t key_dim = tokens.k.dim(3), value_dim = tokens.v.dim(3);
  Workspace<T> w = workspace<T>(args.scratch, tokens);
  const Tensor& dlog_decay = args.gradients.dlog_decay;
  for_heads(tokens, [&](int64_t b, int64_t h) {
    const Rows<T> k(tokens.k, b, h), v(tokens.v, b, h);
    load_state(args.dhT, b, h, key_dim * value_dim, w.state);
    for_chunks_backwards(tokens, [&](const Chunk& chunk) {
      w.decays.load(tokens, b, h, chunk);
      write_leaving(w, chunk, k, v, key_dim, value_dim, Rows<T>(args.gradients.dk, b, h),
                    Rows<T>(args.gradients.dv, b, h));
      if (dlog_decay) {
        const T* entering = matrix<T>(args.entering, b, h, chunk.index);
        w.crossings.clear(chunk.count);
        w.crossings.add_leaving(
            key_dim,
            [&](int64_t t, int64_t d) {
              return static_cast<double>(k.row(chunk.begin + t)[d]) * w.rows[t * key_dim + d];
            },
            [&](int64_t lane) {
              return passing(w.decays, lane, entering, w.state, key_dim, value_dim);
            });
        w.crossings.store(Rows<T>(dlog_decay, b, h), chunk.begin, true);
      }
      carry(key_dim, value_dim, w.decays.through, w.decays.lanes,
            matrix<T>(args.chunk_costates, b, h, chunk.index), w.state);
    });
    if (args.dh0) std::copy_n(w.state, key_dim * value_dim, matrix<T>(args.dh0, b, h));
  });
}

}  // namespace

void state_summarize(const StateSummaryArgs& args) {
  if (args.tokens.kind == StateKind::delta) return delta::summarize(args);
  visit_float(args.tokens.k.dtype, [&](auto zero) { summarize<decltype(zero)>(args); });
}

void state_local(const StateLocalArgs& args) {
  if (args.tokens.kind == StateKind::delta) return;
  visit_float(args.tokens.k.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.tokens.kind == StateKind::vector ? local<T, VectorPairs<T>>(args)
                                          : local<T, ScalarPairs<T>>(args);
  });
}

void state_apply(const StateApplyArgs& args) {
  if (args.tokens.kind == StateKind::delta) return delta::apply(args);
  visit_float(args.tokens.k.dtype, [&](auto zero) { apply<decltype(zero)>(args); });
}

void state_cosummarize(const StateCosummaryArgs& args) {
  if (args.tokens.kind == StateKind::delta) return delta::cosummarize(args);
  visit_float(args.tokens.k.dtype, [&](auto zero) { cosummarize<decltype(zero)>(args); });
}

void state_backward_local(const StateBackwardLocalArgs& args) {
  if (args.tokens.kind == StateKind::delta) return delta::backward_local(args);
  visit_float(args.tokens.k.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.tokens.kind == StateKind::vector ? backward_local<T, VectorPairs<T>>(args)
                                          : backward_local<T, ScalarPairs<T>>(args);
  });
}

void state_backward_apply(const StateBackwardApplyArgs& args) {
  if (args.tokens.kind == StateKind::delta) return delta::backward_apply(args);
  visit_float(args.tokens.k.dtype, [&](auto zero) { backward_apply<decltype(zero)>(args); });
}

}  // namespace cpu

int64_t state_scratch_bytes(StateKind kind, DType dtype, int64_t key_dim, int64_t value_dim) {
  if (kind == StateKind::delta) return cpu::delta::scratch_bytes(dtype, key_dim, value_dim);
  return accumulator_of(dtype) == DType::f64
             ? cpu::diagonal_scratch<double>(kind, key_dim, value_dim)
             : cpu::diagonal_scratch<float>(kind, key_dim, value_dim);
}

}  // namespace weft
