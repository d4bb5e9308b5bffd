// What the passes of every state mixer share on the CPU: scratch, the decays inside one chunk of
// one head, and gradients of decays by counting what crosses a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "src/kernels/cpu/rows.hpp"
#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/slab.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft::cpu {

inline std::byte* bytes(const Tensor& scratch) {
  return reinterpret_cast<std::byte*>(scratch.as<uint8_t>());
}

/// Tokens [begin, begin + count) of a shard.
struct Chunk {
  int64_t index, begin, count;

  static Chunk at(int64_t index, int64_t tokens) {
    const int64_t begin = index * kStateChunk;
    return {index, begin, std::min(kStateChunk, tokens - begin)};
  }
};

/// Calls f(b, h) for every head of every sequence.
template <class F>
void for_heads(const StateTokens& tokens, F&& f) {
  for (int64_t b = 0; b < tokens.k.dim(0); ++b) {
    for (int64_t h = 0; h < tokens.k.dim(2); ++h) f(b, h);
  }
}

/// Calls f(chunk) for the chunks of the shard, in order or from the last to the first.
template <class F>
void for_chunks(const StateTokens& tokens, F&& f) {
  const int64_t count = tokens.k.dim(1);
  for (int64_t n = 0; n < state_chunks(count); ++n) f(Chunk::at(n, count));
}

template <class F>
void for_chunks_backwards(const StateTokens& tokens, F&& f) {
  const int64_t count = tokens.k.dim(1);
  for (int64_t n = state_chunks(count) - 1; n >= 0; --n) f(Chunk::at(n, count));
}

/// The [K, V] (or [K, K]) matrix of one (batch, head) of a contiguous state; with `chunk` of a
/// [B, H, chunks, K, V] one.
template <class T>
T* matrix(const Tensor& state, int64_t b, int64_t h) {
  return state.as<T>() + b * state.stride[0] + h * state.stride[1];
}
template <class T>
T* matrix(const Tensor& states, int64_t b, int64_t h, int64_t chunk) {
  return matrix<T>(states, b, h) + chunk * states.stride[2];
}

/// Decays inside a chunk. There is one lane, or for the vector kind one a row of the state. A lane
/// falls into *runs* of tokens that nothing resets in between; sums of logs start again with each,
/// so that no run's rounding reaches the next, and only differences inside a run, which are <= 0,
/// are ever exponentiated. Place 0 is before the chunk, place t + 1 after its token t.
template <class T>
class ChunkDecays {
 public:
  ChunkDecays(Slab& slab, int64_t lane_count)
      : lanes(lane_count),
        enter(slab.take<T>(kStateChunk * lanes)),
        leave(slab.take<T>(kStateChunk * lanes)),
        through(slab.take<T>(lanes)),
        sum_(slab.take<double>((kStateChunk + 1) * lanes)),
        run_(slab.take<double>((kStateChunk + 1) * lanes)) {}

  void load(const StateTokens& tokens, int64_t b, int64_t h, const Chunk& chunk) {
    count_ = chunk.count;
    std::fill_n(sum_, lanes, 0.0);
    std::fill_n(run_, lanes, 0.0);
    const int64_t* position = tokens.positions.as<int64_t>() + b * tokens.positions.stride[0] +
                              chunk.begin * tokens.positions.stride[1];
    for (int64_t t = 0; t < count_; ++t) {
      const T* log = log_decay(tokens, b, h, chunk.begin + t);
      const bool starts = position[t * tokens.positions.stride[1]] == 0;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const double value = log == nullptr ? 0.0 : static_cast<double>(log[lane]);
        const bool resets = starts || value < kLogOfZero;
        const int64_t before = t * lanes + lane, after = before + lanes;
        sum_[after] = resets ? 0.0 : sum_[before] + value;
        run_[after] = run_[before] + (resets ? 1.0 : 0.0);
      }
    }
    for (int64_t t = 0; t < count_; ++t) {
      between(t + 1, 0, enter + t * lanes);
      between(count_, t + 1, leave + t * lanes);
    }
    between(count_, 0, through);
  }

  /// The decay from one place to a later one, for every lane; 0 where a reset lies between.
  void between(int64_t later, int64_t earlier, T* decay) const {
    const double* sum_l = sum_ + later * lanes;
    const double* sum_e = sum_ + earlier * lanes;
    const double* run_l = run_ + later * lanes;
    const double* run_e = run_ + earlier * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const double exponent = run_l[lane] == run_e[lane] ? sum_l[lane] - sum_e[lane] : -INFINITY;
      decay[lane] = cpu::exp(static_cast<T>(exponent));
    }
  }

  /// One lane: the decays to place `later` from the places 1..later, which are after tokens.
  void to(int64_t later, T* decay) const {
    for (int64_t t = 0; t < later; ++t) {
      const double exponent = run_[t + 1] == run_[later] ? sum_[later] - sum_[t + 1] : -INFINITY;
      decay[t] = cpu::exp(static_cast<T>(exponent));
    }
  }

  /// The log of `through`, -inf where something resets the lane.
  double log_through(int64_t lane) const {
    return run_[count_ * lanes + lane] == 0 ? sum_[count_ * lanes + lane] : -INFINITY;
  }

  /// Whether the lane is reset just before token t, so that its log decay has no gradient.
  bool resets(int64_t t, int64_t lane) const {
    return run_[(t + 1) * lanes + lane] != run_[t * lanes + lane];
  }

  int64_t lanes;
  T* enter;    // [count, lanes]: from before the chunk to after token t
  T* leave;    // [count, lanes]: from after token t to the end of the chunk
  T* through;  // [lanes]: from before the chunk to its end

 private:
  static constexpr double kLogOfZero = -745.2;  // e^x is 0 in f64 below

  /// The lanes of token t, none for a kind without decay.
  static const T* log_decay(const StateTokens& tokens, int64_t b, int64_t h, int64_t t) {
    if (tokens.kind == StateKind::none) return nullptr;
    if (tokens.kind == StateKind::fixed) return tokens.log_decay.as<T>() + h;
    return Rows<T>(tokens.log_decay, b, h).row(t);
  }

  int64_t count_ = 0;
  double* sum_;  // [count + 1, lanes]: of the log decays since the run began
  double* run_;  // [count + 1, lanes]: how many resets there were
};

/// out[t, :] = alpha factor[t, :] x[t, :], the factor with one lane or `width` of them.
template <class T>
void scale_rows(int64_t count, int64_t width, T alpha, const T* factor, int64_t lanes, const T* x,
                int64_t step, T* out) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < width; ++d) {
      out[t * width + d] = alpha * factor[lanes == 1 ? t : t * lanes + d] * x[t * step + d];
    }
  }
}

/// state = diag(through) state + added, all [K, V].
template <class T>
void carry(int64_t key_dim, int64_t value_dim, const T* through, int64_t lanes, const T* added,
           T* state) {
  for (int64_t k = 0; k < key_dim; ++k) {
    const T decay = through[lanes == 1 ? 0 : k];
    for (int64_t j = k * value_dim; j < (k + 1) * value_dim; ++j) {
      state[j] = decay * state[j] + added[j];
    }
  }
}

/// The state or its gradient that comes in, 0 where the tensor is absent.
template <class T>
void load_state(const Tensor& from, int64_t b, int64_t h, int64_t count, T* state) {
  if (from) {
    std::copy_n(matrix<T>(from, b, h), count, state);
  } else {
    std::fill_n(state, count, T(0));
  }
}

/// The gradient of log alpha_i is the sum of everything that decays *across* token i: pairs of a
/// token before it and one from it on, what enters the chunk and is read from it on, what is
/// written before it and leaves, and what passes the whole chunk. Each is a product with the decay
/// itself in it, so that nothing large cancels and what a reset separates adds exact zeros.
template <class T>
class Crossings {
 public:
  Crossings(Slab& slab, int64_t lane_count)
      : lanes_(lane_count),
        sums_(slab.take<double>(kStateChunk * lanes_)),
        running_(slab.take<double>(std::max(kStateChunk, lanes_))) {}

  void clear(int64_t count) {
    count_ = count;
    std::fill_n(sums_, count_ * lanes_, 0.0);
  }

  /// One lane: pair(r, j) is what token j < r writes and token r reads.
  template <class F>
  void add_pairs(F&& pair) {
    std::fill_n(running_, count_, 0.0);
    for (int64_t i = count_ - 1; i > 0; --i) {
      for (int64_t j = 0; j < i; ++j) running_[j] += pair(i, j);
      sums_[i] += sum_of<double>(i, [&](int64_t j) { return running_[j]; });
    }
  }

  /// entering(t, d) over `width` d belongs to what enters the chunk and is read at token t.
  template <class F>
  void add_entering(int64_t width, F&& entering) {
    std::fill_n(running_, lanes_, 0.0);
    for (int64_t t = count_ - 1; t >= 0; --t) {
      add_token(t, width, entering);
      for (int64_t lane = 0; lane < lanes_; ++lane) sums_[t * lanes_ + lane] += running_[lane];
    }
  }

  /// leaving(t, d): written at token t, and leaves. passing(lane): enters and leaves.
  template <class F, class G>
  void add_leaving(int64_t width, F&& leaving, G&& passing) {
    for (int64_t lane = 0; lane < lanes_; ++lane) running_[lane] = passing(lane);
    for (int64_t t = 0; t < count_; ++t) {
      for (int64_t lane = 0; lane < lanes_; ++lane) sums_[t * lanes_ + lane] += running_[lane];
      add_token(t, width, leaving);
    }
  }

  /// The sums of token t, one a lane; pairs of the vector kind are added here.
  double* row(int64_t t) { return sums_ + t * lanes_; }

  /// Writes the sums of a chunk that begins at token `begin`, or adds them.
  void store(const Rows<T>& dlog_decay, int64_t begin, bool add) const {
    for (int64_t t = 0; t < count_; ++t) {
      T* out = dlog_decay.row(begin + t);
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        const double sum = sums_[t * lanes_ + lane];
        out[lane] = static_cast<T>(add ? out[lane] + sum : sum);
      }
    }
  }

 private:
  template <class F>
  void add_token(int64_t t, int64_t width, F&& term) {
    if (lanes_ == 1) {
      running_[0] += sum_of<double>(width, [&](int64_t d) { return term(t, d); });
    } else {
      for (int64_t d = 0; d < width; ++d) running_[d] += term(t, d);
    }
  }

  int64_t lanes_;
  int64_t count_ = 0;
  double* sums_;     // [count, lanes]
  double* running_;  // [count], or [lanes]
};

}  // namespace weft::cpu
