// State mixers under test: problems with documents and decays of every sort, and all six passes
// run on a shard as a layer runs them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "src/kernels/naive/state_mixer.hpp"
#include "src/kernels/state_mixer.hpp"
#include "tests/testing.hpp"

namespace weft {

inline constexpr StateKind kStateKinds[] = {StateKind::none, StateKind::fixed, StateKind::scalar,
                                            StateKind::vector, StateKind::delta};
const char* name(StateKind kind);

struct MixerSizes {
  int64_t batch = 2, tokens = 0, heads = 2, key_dim = 5, value_dim = 3;
};

/// Inputs whose every number is one of f32, so that one oracle serves both types: normals, keys of
/// length 1, beta in (0, 1), decays from 1 to 0.5 with now and then 0 and 1e-3; no documents.
naive::StateMixerInputs mixer_problem(StateKind kind, const MixerSizes& sizes);

/// The shape of the log decays, of no dims for a kind without.
std::vector<int64_t> log_decay_shape(const naive::StateMixerInputs& in);

/// Every log decay the same.
void set_decay(naive::StateMixerInputs& in, double log_decay);

/// Nothing is forgotten within a few hundred tokens: log decays in [-0.03, -0.001], beta below 0.1.
void make_lasting(naive::StateMixerInputs& in);

/// Documents start before these tokens of every sequence (those past the end are none); of sequence
/// b > 0 each b tokens later.
void set_documents(naive::StateMixerInputs& in, const std::vector<int64_t>& starts);

/// Tokens [begin, end) of all sequences, with the same states and gradients of states.
naive::StateMixerInputs cut(const naive::StateMixerInputs& in, int64_t begin, int64_t end);

/// Every field of a result by its name.
template <class F>
void for_fields(F&& f) {
  f("out", &naive::StateMixerResult::out);
  f("hT", &naive::StateMixerResult::hT);
  f("dq", &naive::StateMixerResult::dq);
  f("dk", &naive::StateMixerResult::dk);
  f("dv", &naive::StateMixerResult::dv);
  f("dlog_decay", &naive::StateMixerResult::dlog_decay);
  f("dbeta", &naive::StateMixerResult::dbeta);
  f("dh0", &naive::StateMixerResult::dh0);
}

/// Relative RMS that a field may be off by; docs/numerics.md derives it.
inline double tolerance(DType dtype, std::string_view field) {
  if (dtype == DType::f64) return 1e-12;
  return field == "dlog_decay" ? 1e-4 : 1e-5;
}

/// What all passes of one shard give.
struct MixerRun {
  naive::StateMixerResult result;
  std::vector<double> transition, state;      // of state_summarize
  std::vector<double> cotransition, costate;  // of state_cosummarize
};

struct MixerOptions {
  DType dtype = DType::f64;
  bool boundaries = true;  // h0 and dhT are handed over; else absent, and hT, dh0 and the
                           // cosummary's transition are not asked for
  bool packed = false;     // q, k and v are views of one tensor, and so are their gradients
};

/// The six passes in order. Every output starts as NaN, scratch is exactly as long as asked for.
MixerRun run_mixer(const naive::StateMixerInputs& in, const MixerOptions& options = {});

/// y = A x for every (batch, head), or A^T x; A by the kind's form of transition, x is
/// [B, H, K, columns].
std::vector<double> apply_transition(const naive::StateMixerInputs& in,
                                     const std::vector<double>& transition,
                                     const std::vector<double>& x, int64_t columns,
                                     bool transposed = false);

}  // namespace weft
