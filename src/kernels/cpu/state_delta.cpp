// The gated delta rule in chunks (the WY form of Yang et al., arXiv 2406.06484 and 2412.06464).
// With S the state that enters a chunk, L strictly lower, P lower, both with the decay between the
// two tokens in them,
//   R = v - (enter o k) S             what a token would write if no other of its chunk had written
//   U = (I + L)^-1 (beta o R)         what it writes,        L_rj = beta_r decay(r, j) k_r.k_j
//   out = scale (enter o q) S + P U                          P_rj = scale decay(r, j) q_r.k_j
//   S' = through S + (leave o k)^T U
// and the gradient of the entering state from D, that of the leaving one,
//   dU = P^T dout + (leave o k) D,    dR = beta o (I + L)^-T dU
//   D' = through D + (enter o scale q)^T dout - (enter o k)^T dR.
// Columns of S never mix: the transition is what S' is when S = I and v = 0.
#include "src/kernels/cpu/state_delta.hpp"

#include <utility>

#include "src/kernels/cpu/state_chunk.hpp"

namespace weft::cpu::delta {
namespace {

constexpr int64_t kBlock = 16;  // rows of a triangular solve between two matrix products

template <class T>
struct Workspace {
  Workspace(Slab slab, int64_t key_dim, int64_t value_dim) : decays(slab, 1), crossings(slab, 1) {
    const int64_t widest = std::max(key_dim, value_dim);
    for (T** square : {&decay, &keys, &lower, &reads, &dreads, &dlower}) {
      *square = slab.take<T>(kStateChunk * kStateChunk);
    }
    for (T** rows : {&values, &written, &dwritten, &key_rows, &query_rows, &part}) {
      *rows = slab.take<T>(kStateChunk * widest);
    }
    beta = slab.take<T>(kStateChunk);
    state = slab.take<T>(key_dim * value_dim);
    bytes = slab.used();
  }

  ChunkDecays<T> decays;
  Crossings<T> crossings;
  // [kStateChunk, kStateChunk], rows kStateChunk apart
  T *decay, *keys;     // decay(r, j) and k_r.k_j
  T *lower, *reads;    // L, P
  T *dreads, *dlower;  // gradients of P, of L
  // [kStateChunk, K or V], rows K or V apart
  T* values;                 // R
  T *written, *dwritten;     // U, dR
  T *key_rows, *query_rows;  // decayed k and q
  T* part;
  T* beta;   // [kStateChunk]
  T* state;  // [K, V]: runs through the chunks
  int64_t bytes = 0;
};

/// X = (I + L)^-1 X for n rows of X, in place.
template <class T>
void solve(int64_t n, int64_t width, const T* lower, T* x) {
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    if (begin > 0) {
      gemm(Gemm<T>{false, false, end - begin, width, begin, -1, lower + begin * kStateChunk,
                   kStateChunk, x, width, 1, x + begin * width, width});
    }
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t j = begin; j < r; ++j) {
        const T factor = lower[r * kStateChunk + j];
        for (int64_t d = 0; d < width; ++d) x[r * width + d] -= factor * x[j * width + d];
      }
    }
  }
}

/// X = (I + L)^-T X.
template <class T>
void solve_transposed(int64_t n, int64_t width, const T* lower, T* x) {
  for (int64_t begin = (n - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    if (end < n) {
      gemm(Gemm<T>{true, false, end - begin, width, n - end, -1, lower + end * kStateChunk + begin,
                   kStateChunk, x + end * width, width, 1, x + begin * width, width});
    }
    for (int64_t r = end - 1; r >= begin; --r) {
      for (int64_t j = r + 1; j < end; ++j) {
        const T factor = lower[j * kStateChunk + r];
        for (int64_t d = 0; d < width; ++d) x[r * width + d] -= factor * x[j * width + d];
      }
    }
  }
}

/// One head: the passes, made of steps on one chunk, which are the lines at the top of this file.
template <class T>
class Head {
 public:
  Head(Workspace<T>& workspace, const StateTokens& tokens, int64_t b, int64_t h)
      : w_(workspace),
        tokens_(tokens),
        b_(b),
        h_(h),
        K_(tokens.k.dim(3)),
        V_(tokens.v.dim(3)),
        k_(tokens.k, b, h),
        v_(tokens.v, b, h) {}

  void summarize(const StateSummaryArgs& args) {
    T* state = matrix<T>(args.state, b_, h_);
    T* transition = matrix<T>(args.transition, b_, h_);
    std::fill_n(state, K_ * V_, T(0));
    set_identity(transition);
    for_chunks(tokens_, [&](const Chunk& chunk) {
      load(chunk);
      write(state, V_, true);
      advance(state, V_);
      write(transition, K_, false);
      advance(transition, K_);
    });
  }

  void apply(const StateApplyArgs& args) {
    const T scale = static_cast<T>(args.scale);
    const Rows<T> q(args.q, b_, h_), out(args.out, b_, h_);
    load_state(args.h0, b_, h_, K_ * V_, w_.state);
    for_chunks(tokens_, [&](const Chunk& chunk) {
      load(chunk);
      load_reads(q, scale);
      write(w_.state, V_, true);
      read(q, scale, w_.state, out);
      advance(w_.state, V_);
    });
    if (args.hT) std::copy_n(w_.state, K_ * V_, matrix<T>(args.hT, b_, h_));
  }

  void cosummarize(const StateCosummaryArgs& args) {
    const T scale = static_cast<T>(args.scale);
    const Rows<T> q(args.q, b_, h_), dout(args.dout, b_, h_);
    T* costate = matrix<T>(args.state, b_, h_);
    T* transition = args.transition ? matrix<T>(args.transition, b_, h_) : nullptr;
    std::fill_n(costate, K_ * V_, T(0));
    if (transition) set_identity(transition);
    for_chunks_backwards(tokens_, [&](const Chunk& chunk) {
      load(chunk);
      load_reads(q, scale);
      write_backwards(costate, V_, &dout);
      scale_by_beta(V_);
      advance_backwards(costate, V_, q, scale, &dout);
      if (!transition) return;
      write_backwards(transition, K_, nullptr);
      scale_by_beta(K_);
      advance_backwards(transition, K_, q, scale, nullptr);
    });
    for (int64_t i = 0; transition && i < K_; ++i) {  // backwards it is A^T that comes out
      for (int64_t j = 0; j < i; ++j) std::swap(transition[i * K_ + j], transition[j * K_ + i]);
    }
  }

  void backward_local(const StateBackwardLocalArgs& args) {
    load_state(args.h0, b_, h_, K_ * V_, w_.state);
    for_chunks(tokens_, [&](const Chunk& chunk) {
      std::copy_n(w_.state, K_ * V_, matrix<T>(args.entering, b_, h_, chunk.index));
      load(chunk);
      write(w_.state, V_, true);
      advance(w_.state, V_);
    });
  }

  void backward_apply(const StateBackwardApplyArgs& args) {
    load_state(args.dhT, b_, h_, K_ * V_, w_.state);
    for_chunks_backwards(tokens_, [&](const Chunk& chunk) {
      load(chunk);
      gradients(args, matrix<T>(args.entering, b_, h_, chunk.index), w_.state);
    });
    if (args.dh0) std::copy_n(w_.state, K_ * V_, matrix<T>(args.dh0, b_, h_));
  }

 private:
  /// Decays, beta and L of a chunk.
  void load(const Chunk& chunk) {
    at_ = chunk.begin, n_ = chunk.count;
    w_.decays.load(tokens_, b_, h_, chunk);
    const Rows<T> beta(tokens_.beta, b_, h_);
    multiply(k_, k_, w_.keys);
    for (int64_t r = 0; r < n_; ++r) {
      const int64_t row = r * kStateChunk;
      w_.beta[r] = *beta.row(at_ + r);
      w_.decays.to(r + 1, w_.decay + row);
      for (int64_t j = 0; j < r; ++j) {
        w_.lower[row + j] = w_.beta[r] * w_.decay[row + j] * w_.keys[row + j];
      }
      std::fill(w_.lower + row + r, w_.lower + row + n_, T(0));
    }
  }

  /// P.
  void load_reads(const Rows<T>& q, T scale) {
    multiply(q, k_, w_.reads);
    for (int64_t r = 0; r < n_; ++r) {
      T* row = w_.reads + r * kStateChunk;
      for (int64_t j = 0; j <= r; ++j) row[j] *= scale * w_.decay[r * kStateChunk + j];
      std::fill(row + r + 1, row + n_, T(0));
    }
  }

  /// R and U from the entering state [K, width]; `with_values`: v is not 0.
  void write(const T* state, int64_t width, bool with_values) {
    scale_rows(n_, K_, T(-1), w_.decays.enter, 1, k_.row(at_), k_.step, w_.key_rows);
    if (with_values) {
      for (int64_t r = 0; r < n_; ++r) std::copy_n(v_.row(at_ + r), V_, w_.values + r * V_);
    }
    gemm(Gemm<T>{false, false, n_, width, K_, 1, w_.key_rows, K_, state, width,
                 with_values ? T(1) : T(0), w_.values, width});
    scale_rows(n_, width, T(1), w_.beta, 1, w_.values, width, w_.written);
    solve(n_, width, w_.lower, w_.written);
  }

  /// out = scale (enter o q) S + P U.
  void read(const Rows<T>& q, T scale, const T* state, const Rows<T>& out) {
    scale_rows(n_, K_, scale, w_.decays.enter, 1, q.row(at_), q.step, w_.query_rows);
    gemm(Gemm<T>{false, false, n_, V_, K_, 1, w_.query_rows, K_, state, V_, 0, out.row(at_),
                 out.step});
    gemm(Gemm<T>{false, false, n_, V_, n_, 1, w_.reads, kStateChunk, w_.written, V_, 1,
                 out.row(at_), out.step});
  }

  /// S' in place of S, after `write`.
  void advance(T* state, int64_t width) {
    scale_rows(n_, K_, T(1), w_.decays.leave, 1, k_.row(at_), k_.step, w_.key_rows);
    gemm(Gemm<T>{true, false, K_, width, n_, 1, w_.key_rows, K_, w_.written, width,
                 *w_.decays.through, state, width});
  }

  /// dR from the gradient of the leaving state [K, width]; without `dout` it is taken as 0.
  void write_backwards(const T* costate, int64_t width, const Rows<T>* dout) {
    scale_rows(n_, K_, T(1), w_.decays.leave, 1, k_.row(at_), k_.step, w_.key_rows);
    gemm(Gemm<T>{false, false, n_, width, K_, 1, w_.key_rows, K_, costate, width, 0, w_.dwritten,
                 width});
    if (dout) {
      gemm(Gemm<T>{true, false, n_, width, n_, 1, w_.reads, kStateChunk, dout->row(at_), dout->step,
                   1, w_.dwritten, width});
    }
    solve_transposed(n_, width, w_.lower, w_.dwritten);
  }

  /// D' in place of D, after `write_backwards` and with dR = beta o of what that left.
  void advance_backwards(T* costate, int64_t width, const Rows<T>& q, T scale,
                         const Rows<T>* dout) {
    scale_rows(n_, K_, T(-1), w_.decays.enter, 1, k_.row(at_), k_.step, w_.key_rows);
    gemm(Gemm<T>{true, false, K_, width, n_, 1, w_.key_rows, K_, w_.dwritten, width,
                 *w_.decays.through, costate, width});
    if (!dout) return;
    scale_rows(n_, K_, scale, w_.decays.enter, 1, q.row(at_), q.step, w_.query_rows);
    gemm(Gemm<T>{true, false, K_, width, n_, 1, w_.query_rows, K_, dout->row(at_), dout->step, 1,
                 costate, width});
  }

  /// (I + L)^-T dU becomes dR.
  void scale_by_beta(int64_t width) {
    scale_rows(n_, width, T(1), w_.beta, 1, w_.dwritten, width, w_.dwritten);
  }

  /// All gradients of the chunk's inputs, from the state S that enters it and the gradient D of the
  /// one that leaves, which becomes that of the entering one.
  void gradients(const StateBackwardApplyArgs& args, const T* state, T* costate) {
    const T scale = static_cast<T>(args.scale);
    const Rows<T> q(args.q, b_, h_), dout(args.dout, b_, h_);
    load_reads(q, scale);
    write(state, V_, true);
    write_backwards(costate, V_, &dout);
    w_.crossings.clear(n_);
    gradients_of_pairs(dout, Rows<T>(args.gradients.dbeta, b_, h_), scale);
    scale_by_beta(V_);
    const Rows<T> dq(args.gradients.dq, b_, h_), dk(args.gradients.dk, b_, h_);
    const Rows<T> dv(args.gradients.dv, b_, h_);
    for (int64_t r = 0; r < n_; ++r) std::copy_n(w_.dwritten + r * V_, V_, dv.row(at_ + r));
    spread(q, dq, dk);
    from_entering(q, dout, scale, state, dq, dk);
    from_leaving(state, costate, dk);
    w_.crossings.store(Rows<T>(args.gradients.dlog_decay, b_, h_), at_, false);
    advance_backwards(costate, V_, q, scale, &dout);
  }

  void set_identity(T* a) const {
    std::fill_n(a, K_ * K_, T(0));
    for (int64_t i = 0; i < K_; ++i) a[i * K_ + i] = 1;
  }

  /// out[r, j] = x_r.y_j
  void multiply(const Rows<T>& x, const Rows<T>& y, T* out) {
    gemm(Gemm<T>{false, true, n_, n_, K_, 1, x.row(at_), x.step, y.row(at_), y.step, 0, out,
                 kStateChunk});
  }

  /// dP = dout U^T and dL = -(I + L)^-T dU U^T become the gradients of q k^T and of k k^T; dbeta.
  void gradients_of_pairs(const Rows<T>& dout, const Rows<T>& dbeta, T scale) {
    gemm(Gemm<T>{false, true, n_, n_, V_, 1, dout.row(at_), dout.step, w_.written, V_, 0, w_.dreads,
                 kStateChunk});
    gemm(Gemm<T>{false, true, n_, n_, V_, -1, w_.dwritten, V_, w_.written, V_, 0, w_.dlower,
                 kStateChunk});
    w_.crossings.add_pairs([&](int64_t r, int64_t j) {
      const int64_t at = r * kStateChunk + j;
      return w_.reads[at] * w_.dreads[at] + w_.lower[at] * w_.dlower[at];
    });
    for (int64_t r = 0; r < n_; ++r) {
      const T* decay = w_.decay + r * kStateChunk;
      const T* keys = w_.keys + r * kStateChunk;
      T* dreads = w_.dreads + r * kStateChunk;
      T* dlower = w_.dlower + r * kStateChunk;
      *dbeta.row(at_ + r) =
          sum_of<T>(V_,
                    [&](int64_t d) { return w_.dwritten[r * V_ + d] * w_.values[r * V_ + d]; }) +
          sum_of<T>(r, [&](int64_t j) { return dlower[j] * decay[j] * keys[j]; });
      for (int64_t j = 0; j <= r; ++j) dreads[j] *= scale * decay[j];
      for (int64_t j = 0; j < r; ++j) dlower[j] *= w_.beta[r] * decay[j];
      std::fill(dreads + r + 1, dreads + n_, T(0));
      std::fill(dlower + r, dlower + n_, T(0));
    }
  }

  /// What the gradients of q k^T and k k^T give to q and k.
  void spread(const Rows<T>& q, const Rows<T>& dq, const Rows<T>& dk) {
    gemm(Gemm<T>{false, false, n_, K_, n_, 1, w_.dreads, kStateChunk, k_.row(at_), k_.step, 0,
                 dq.row(at_), dq.step});
    gemm(Gemm<T>{true, false, n_, K_, n_, 1, w_.dreads, kStateChunk, q.row(at_), q.step, 0,
                 dk.row(at_), dk.step});
    gemm(Gemm<T>{false, false, n_, K_, n_, 1, w_.dlower, kStateChunk, k_.row(at_), k_.step, 1,
                 dk.row(at_), dk.step});
    gemm(Gemm<T>{true, false, n_, K_, n_, 1, w_.dlower, kStateChunk, k_.row(at_), k_.step, 1,
                 dk.row(at_), dk.step});
  }

  /// part = alpha factor o (x M^T) for rows x [V] and a matrix M [K, V], added to dx.
  void through_matrix(const T* x, int64_t step, T alpha, const T* factor, const T* state,
                      const Rows<T>& dx) {
    gemm(Gemm<T>{false, true, n_, K_, V_, alpha, x, step, state, V_, 0, w_.part, K_});
    scale_rows(n_, K_, T(1), factor, 1, w_.part, K_, w_.part);
    for (int64_t r = 0; r < n_; ++r) {
      T* row = dx.row(at_ + r);
      for (int64_t d = 0; d < K_; ++d) row[d] += w_.part[r * K_ + d];
    }
  }

  auto products_with_part(const Rows<T>& x) {
    return [this, x](int64_t t, int64_t d) {
      return static_cast<double>(x.row(at_ + t)[d]) * w_.part[t * K_ + d];
    };
  }

  void from_entering(const Rows<T>& q, const Rows<T>& dout, T scale, const T* state,
                     const Rows<T>& dq, const Rows<T>& dk) {
    through_matrix(dout.row(at_), dout.step, scale, w_.decays.enter, state, dq);
    w_.crossings.add_entering(K_, products_with_part(q));
    through_matrix(w_.dwritten, V_, -1, w_.decays.enter, state, dk);
    w_.crossings.add_entering(K_, products_with_part(k_));
  }

  void from_leaving(const T* state, const T* costate, const Rows<T>& dk) {
    through_matrix(w_.written, V_, 1, w_.decays.leave, costate, dk);
    w_.crossings.add_leaving(K_, products_with_part(k_), [&](int64_t) {
      return *w_.decays.through * sum_of<double>(K_ * V_, [&](int64_t j) {
        return static_cast<double>(state[j]) * costate[j];
      });
    });
  }

  Workspace<T>& w_;
  const StateTokens& tokens_;
  int64_t b_, h_, K_, V_;
  Rows<T> k_, v_;
  int64_t at_ = 0, n_ = 0;  // the chunk
};

/// Calls f(head) for every head of a call.
template <class Args, class F>
void visit_heads(const Args& args, F&& f) {
  visit_float(args.tokens.k.dtype, [&](auto zero) {
    using T = decltype(zero);
    Workspace<T> w(Slab(bytes(args.scratch)), args.tokens.k.dim(3), args.tokens.v.dim(3));
    for_heads(args.tokens, [&](int64_t b, int64_t h) {
      Head<T> head(w, args.tokens, b, h);
      f(head);
    });
  });
}

}  // namespace

void summarize(const StateSummaryArgs& args) {
  visit_heads(args, [&](auto& head) { head.summarize(args); });
}

void apply(const StateApplyArgs& args) {
  visit_heads(args, [&](auto& head) { head.apply(args); });
}

void cosummarize(const StateCosummaryArgs& args) {
  visit_heads(args, [&](auto& head) { head.cosummarize(args); });
}

void backward_local(const StateBackwardLocalArgs& args) {
  visit_heads(args, [&](auto& head) { head.backward_local(args); });
}

void backward_apply(const StateBackwardApplyArgs& args) {
  visit_heads(args, [&](auto& head) { head.backward_apply(args); });
}

int64_t scratch_bytes(DType dtype, int64_t key_dim, int64_t value_dim) {
  return accumulator_of(dtype) == DType::f64
             ? Workspace<double>(Slab(nullptr), key_dim, value_dim).bytes
             : Workspace<float>(Slab(nullptr), key_dim, value_dim).bytes;
}

}  // namespace weft::cpu::delta
