// State mixers: every pass of every kind against the recurrence in f64, token by token, and against
// what the algebra says of shards.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "src/kernels/state_combine.hpp"
#include "tests/state_mixer_testing.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;
using Result = naive::StateMixerResult;

const std::vector<std::vector<int64_t>> kDocuments = {
    {}, {0}, {1}, {63}, {64}, {65}, {20, 21, 22, 40}, {0, 30, 62, 100, 127, 128, 190}};

void expect_result(const Result& got, const Result& expected, DType dtype) {
  for_fields([&](const char* field, auto member) {
    if ((got.*member).empty()) return;  // hT and dh0 that were not asked for
    EXPECT_LE(relative_rms(got.*member, expected.*member), tolerance(dtype, field)) << field;
  });
}

void expect_same_bits(const Result& got, const Result& expected) {
  for_fields([&](const char* field, auto member) {
    EXPECT_TRUE(same_bits(got.*member, expected.*member)) << field;
  });
}

/// The results of two shards as those of the whole.
Result join(const Inputs& in, const Result& left, const Result& right) {
  Result whole;
  for_fields([&](const char*, auto member) {
    const std::vector<double>& a = left.*member;
    const std::vector<double>& b = right.*member;
    for (int64_t s = 0; s < in.batch; ++s) {
      const int64_t of_a = std::ssize(a) / in.batch, of_b = std::ssize(b) / in.batch;
      (whole.*member)
          .insert((whole.*member).end(), a.begin() + s * of_a, a.begin() + (s + 1) * of_a);
      (whole.*member)
          .insert((whole.*member).end(), b.begin() + s * of_b, b.begin() + (s + 1) * of_b);
    }
  });
  whole.hT = right.hT;
  whole.dh0 = left.dh0;
  return whole;
}

std::vector<double> plus(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

/// How far two transitions are apart, logs or matrices.
double transition_error(const Inputs& in, const std::vector<double>& got,
                        const std::vector<double>& expected) {
  return in.kind == StateKind::delta ? relative_rms(got, expected)
                                     : relative_rms_of_logs(got, expected);
}

class StateMixer : public ::testing::TestWithParam<std::tuple<StateKind, DType>> {
 protected:
  StateKind kind() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  bool decays() const { return kind() != StateKind::none; }
  MixerRun run(const Inputs& in) const { return run_mixer(in, {.dtype = dtype()}); }
};
INSTANTIATE_TEST_SUITE_P(Kinds, StateMixer,
                         ::testing::Combine(::testing::ValuesIn(kStateKinds),
                                            ::testing::Values(DType::f64, DType::f32)),
                         [](const auto& param) {
                           return concat(name(std::get<0>(param.param)), "_",
                                         name(std::get<1>(param.param)));
                         });

// ---- Against the recurrence

TEST_P(StateMixer, EqualsTheRecurrence) {
  for (const int64_t tokens : {0, 1, 2, 63, 64, 65, 130, 200}) {
    for (size_t d = 0; d < kDocuments.size(); ++d) {
      SCOPED_TRACE(concat(tokens, " tokens, documents ", d));
      Inputs in = mixer_problem(kind(), {.tokens = tokens});
      set_documents(in, kDocuments[d]);
      expect_result(run(in).result, naive::state_mixer(in), dtype());
      in.h0.assign(in.h0.size(), 0.0);
      in.dhT.assign(in.dhT.size(), 0.0);
      expect_result(run_mixer(in, {.dtype = dtype(), .boundaries = false}).result,
                    naive::state_mixer(in), dtype());
    }
  }
}

TEST_P(StateMixer, AnyWidthsAndViews) {
  const std::vector<MixerSizes> sizes = {{1, 70, 1, 1, 1},
                                         {2, 70, 3, 1, 9},
                                         {1, 70, 2, 16, 1},
                                         {1, 140, 1, 33, 17},
                                         {1, 90, 2, 16, 40}};
  for (const MixerSizes& size : sizes) {
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(concat("K ", size.key_dim, " V ", size.value_dim, " packed ", packed));
      Inputs in = mixer_problem(kind(), size);
      // With one row to a state, a delta rule that forgets leaves of it what 1 - beta rounds to.
      make_lasting(in);
      set_documents(in, {33, 66});
      expect_result(run_mixer(in, {.dtype = dtype(), .packed = packed}).result,
                    naive::state_mixer(in), dtype());
    }
  }
}

TEST_P(StateMixer, AnyDecay) {
  for (const double decay : {1.0, 0.999, 0.9, 1e-3, 0.0}) {
    SCOPED_TRACE(concat("decay ", decay));
    Inputs in = mixer_problem(kind(), {.tokens = 200});
    set_decay(in, std::log(decay));
    expect_result(run(in).result, naive::state_mixer(in), dtype());
  }
}

TEST_P(StateMixer, DecaysWhosePowerIsNothing) {  // over a chunk, and from one token to the next
  for (const double log_decay : {-2.0, -20.0, -90.0, -700.0}) {
    SCOPED_TRACE(concat("log decay ", log_decay));
    Inputs in = mixer_problem(kind(), {.tokens = 200});
    for (size_t i = 0; i < in.log_decay.size(); i += 2) in.log_decay[i] = log_decay;
    Inputs same = in;
    set_decay(same, log_decay);
    expect_result(run(in).result, naive::state_mixer(in), dtype());
    const Result got = run(same).result, expected = naive::state_mixer(same);
    EXPECT_LE(relative_rms(got.out, expected.out), tolerance(dtype(), "out"));
    EXPECT_LE(relative_rms(got.dk, expected.dk), tolerance(dtype(), "dk"));
    // Gradients of decays underflow where the decays do; at the scale of the other gradients they
    // are right.
    EXPECT_LE(relative_rms(got.dlog_decay, expected.dlog_decay, 1e-30),
              tolerance(dtype(), "dlog_decay"));
  }
}

TEST(StateMixerDelta, BetaFromNothingToAll) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const double beta : {0.0, 1.0, 2.0}) {
      Inputs in = mixer_problem(StateKind::delta, {.tokens = 150});
      for (size_t i = 0; i < in.beta.size(); ++i) in.beta[i] = beta == 2.0 ? i % 2 : beta;
      expect_result(run_mixer(in, {.dtype = dtype}).result, naive::state_mixer(in), dtype);
    }
  }
}

TEST(StateMixerReset, IsADecayOfNothing) {  // to the bit, however the decay says so
  for (const StateKind kind : {StateKind::scalar, StateKind::vector, StateKind::delta}) {
    Inputs documents = mixer_problem(kind, {.tokens = 150});
    set_documents(documents, {0, 1, 40, 63, 64, 100});
    Inputs decay = documents;
    decay.positions.assign(decay.positions.size(), 1);
    const int64_t lanes = std::ssize(decay.log_decay) / std::ssize(decay.positions);
    for (const double zero : {-kInfinity, -1e30, -746.0}) {
      for (size_t i = 0; i < decay.log_decay.size(); ++i) {
        if (documents.positions[i / lanes] == 0) decay.log_decay[i] = zero;
      }
      for (const DType dtype : {DType::f64, DType::f32}) {
        SCOPED_TRACE(concat(name(kind), " ", name(dtype), " ", zero));
        expect_same_bits(run_mixer(decay, {.dtype = dtype}).result,
                         run_mixer(documents, {.dtype = dtype}).result);
      }
    }
  }
}

// ---- Shards

TEST_P(StateMixer, CutAnywhereGivesTheWhole) {
  constexpr int64_t kTokens = 140;
  for (const bool lasting : {true, false}) {
    Inputs in = mixer_problem(kind(), {.tokens = kTokens});
    if (lasting) make_lasting(in);
    if (!lasting) set_documents(in, {37, 90});
    const Result whole = run(in).result;
    for (const int64_t at : {0, 1, 36, 37, 38, 63, 64, 65, 127, 128, 139, 140}) {
      SCOPED_TRACE(concat("cut at ", at));
      Inputs left = cut(in, 0, at), right = cut(in, at, kTokens);
      right.h0 = run(left).result.hT;
      left.dhT = run(right).result.dh0;
      const Result joined = join(in, run(left).result, run(right).result);
      expect_result(joined, whole, dtype());
      if (at % kStateChunk == 0) expect_same_bits(joined, whole);
    }
  }
}

TEST_P(StateMixer, SummaryIsTheShardAsAMap) {
  for (const int64_t tokens : {0, 1, 64, 130}) {
    for (const std::vector<int64_t>& documents : {std::vector<int64_t>{}, {0}, {50}}) {
      SCOPED_TRACE(concat(tokens, " tokens, ", documents.size(), " documents"));
      Inputs in = mixer_problem(kind(), {.tokens = tokens});
      make_lasting(in);
      set_documents(in, documents);
      const MixerRun r = run(in);
      // S_out = A S_in + b and D_in = A^T D_out + E
      EXPECT_LE(
          relative_rms(r.result.hT, plus(apply_transition(in, r.transition, in.h0, 3), r.state)),
          tolerance(dtype(), "hT"));
      EXPECT_LE(
          relative_rms(r.result.dh0,
                       plus(apply_transition(in, r.cotransition, in.dhT, 3, true), r.costate)),
          tolerance(dtype(), "dh0"));
      // b and E are what comes out when nothing goes in, to the bit.
      Inputs alone = in;
      alone.h0.assign(in.h0.size(), 0.0);
      alone.dhT.assign(in.dhT.size(), 0.0);
      const Result nothing = run(alone).result;
      EXPECT_TRUE(same_bits(nothing.hT, r.state));
      EXPECT_TRUE(same_bits(nothing.dh0, r.costate));
      EXPECT_LE(transition_error(in, r.cotransition, r.transition), tolerance(dtype(), "hT"));
    }
  }
}

/// A . entering + local, or A^T, by the kernel that the scans over ranks are made of.
std::vector<double> combine(const Inputs& in, DType dtype, const std::vector<double>& transition,
                            const std::vector<double>& entering, const std::vector<double>& local,
                            bool transposed) {
  const int64_t R = in.batch * in.heads, K = in.key_dim, V = in.value_dim;
  std::vector<int64_t> shape = {R};
  if (in.kind == StateKind::vector) shape = {R, K};
  if (in.kind == StateKind::delta) shape = {R, K, K};
  const Owned a = from_values(dtype, shape, transition);
  const Owned s = from_values(dtype, {R, K, V}, entering), b = from_values(dtype, {R, K, V}, local);
  const Owned out(dtype, {R, K, V});
  state_combine({out, a, s, b, transposed}, cpu_stream());
  return values(out);
}

/// As ranks do it: summaries first, states and their gradients by a scan, then the rest.
TEST_P(StateMixer, ShardsBetweenTwoScansGiveTheWhole) {
  const std::vector<int64_t> cuts = {0, 0, 17, 81, 82, 150, 150};
  for (const std::vector<int64_t>& documents :
       {std::vector<int64_t>{}, {17}, {16}, {18}, {40, 81, 100}}) {
    Inputs in = mixer_problem(kind(), {.tokens = 150});
    make_lasting(in);
    set_documents(in, documents);
    std::vector<Inputs> shards;
    std::vector<MixerRun> summaries;
    for (size_t p = 0; p + 1 < cuts.size(); ++p) {
      shards.push_back(cut(in, cuts[p], cuts[p + 1]));
      summaries.push_back(run(shards.back()));
    }
    for (size_t p = 0; p + 1 < shards.size(); ++p) {
      shards[p + 1].h0 =
          combine(in, dtype(), summaries[p].transition, shards[p].h0, summaries[p].state, false);
    }
    for (size_t p = shards.size() - 1; p > 0; --p) {
      shards[p - 1].dhT = combine(in, dtype(), summaries[p].cotransition, shards[p].dhT,
                                  summaries[p].costate, true);
    }
    Result joined = run(shards[0]).result;
    for (size_t p = 1; p < shards.size(); ++p) joined = join(in, joined, run(shards[p]).result);
    expect_result(joined, naive::state_mixer(in), dtype());
  }
}

/// (A2 A1, A2 b1 + b2), logs of A added: whatever is joined first.
TEST_P(StateMixer, SummariesCompose) {
  Inputs in = mixer_problem(kind(), {.tokens = 150});
  make_lasting(in);
  const MixerRun whole = run(in);
  const MixerRun first = run(cut(in, 0, 31)), second = run(cut(in, 31, 95));
  const MixerRun third = run(cut(in, 95, 150));
  const auto composed = [&](const MixerRun& later, const MixerRun& earlier) {
    MixerRun r;
    r.transition = kind() == StateKind::delta
                       ? apply_transition(in, later.transition, earlier.transition, in.key_dim)
                       : plus(later.transition, earlier.transition);
    r.state =
        plus(apply_transition(in, later.transition, earlier.state, in.value_dim), later.state);
    return r;
  };
  for (const MixerRun& r :
       {composed(third, composed(second, first)), composed(composed(third, second), first)}) {
    EXPECT_LE(transition_error(in, r.transition, whole.transition), tolerance(dtype(), "hT"));
    EXPECT_LE(relative_rms(r.state, whole.state), tolerance(dtype(), "hT"));
  }
}

TEST_P(StateMixer, AnEmptyShardIsTheIdentity) {
  const Inputs in = mixer_problem(kind(), {.tokens = 0});
  const MixerRun r = run(in);
  EXPECT_EQ(r.result.hT, in.h0);
  EXPECT_EQ(r.result.dh0, in.dhT);
  EXPECT_EQ(apply_transition(in, r.transition, in.h0, in.value_dim), in.h0);
  EXPECT_EQ(apply_transition(in, r.cotransition, in.h0, in.value_dim), in.h0);
  EXPECT_EQ(rms(r.state), 0.0);
  EXPECT_EQ(rms(r.costate), 0.0);
}

TEST_P(StateMixer, ADocumentThatStartsInsideCutsTheShard) {
  for (const int64_t start : {0, 1, 63, 64, 65, 129}) {
    Inputs in = mixer_problem(kind(), {.batch = 1, .tokens = 130});
    set_documents(in, {start});
    const MixerRun r = run(in);
    const double nothing = kind() == StateKind::delta ? 0.0 : -kInfinity;
    EXPECT_EQ(r.transition, std::vector<double>(r.transition.size(), nothing));
    EXPECT_EQ(r.cotransition, r.transition);
  }
}

// ---- Documents

TEST_P(StateMixer, NothingLeaksBetweenDocuments) {          // not a bit
  constexpr int64_t kTokens = 150, kBegin = 50, kEnd = 70;  // the middle document changes
  Inputs in = mixer_problem(kind(), {.batch = 1, .tokens = kTokens});
  set_documents(in, {kBegin, kEnd});
  const Result before = run(in).result;
  std::vector<std::vector<double>*> changed = {&in.q, &in.k, &in.v, &in.dout, &in.beta};
  if (kind() != StateKind::fixed) changed.push_back(&in.log_decay);
  for (std::vector<double>* x : changed) {
    const int64_t width = std::ssize(*x) / kTokens;
    for (int64_t i = kBegin * width; i < kEnd * width; ++i) (*x)[i] *= 1.37;
  }
  const Result after = run(in).result;
  const auto without = [&](const std::vector<double>& rows) {
    std::vector<double> rest = rows;
    const int64_t width = std::ssize(rows) / kTokens;
    rest.erase(rest.begin() + kBegin * width, rest.begin() + kEnd * width);
    return rest;
  };
  EXPECT_GT(rms(minus(after.out, before.out)), 1e-3);
  for_fields([&](const char* field, auto member) {
    const bool state = member == &Result::hT || member == &Result::dh0;
    EXPECT_TRUE(state ? same_bits(after.*member, before.*member)
                      : same_bits(without(after.*member), without(before.*member)))
        << field;
  });
}

// ---- Exact arithmetic

/// Small integers, keys that are unit vectors, no decay, beta 0 or 1: every sum is exact in f32, so
/// every way to compute it gives the same bits.
TEST_P(StateMixer, IntegersAreExactHoweverCut) {
  constexpr int64_t kTokens = 150;
  Inputs in = mixer_problem(kind(), {.tokens = kTokens});
  for (auto rows : {&Inputs::q, &Inputs::v, &Inputs::dout, &Inputs::h0, &Inputs::dhT}) {
    for (double& x : in.*rows) x = std::round(2 * x);
  }
  for (size_t i = 0; i < in.k.size(); ++i) {
    in.k[i] = static_cast<int64_t>(i) % in.key_dim == static_cast<int64_t>(i) / in.key_dim * 7 % 5;
  }
  for (size_t i = 0; i < in.beta.size(); ++i) in.beta[i] = i % 3 != 0;
  set_decay(in, 0.0);
  set_documents(in, {80});
  const Result expected = naive::state_mixer(in);
  const Result whole = run(in).result;
  for_fields(
      [&](const char* field, auto member) { EXPECT_EQ(whole.*member, expected.*member) << field; });
  for (const int64_t at : {1, 40, 80, 101}) {
    Inputs left = cut(in, 0, at), right = cut(in, at, kTokens);
    right.h0 = run(left).result.hT;
    left.dhT = run(right).result.dh0;
    const Result joined = join(in, run(left).result, run(right).result);
    for_fields(
        [&](const char* field, auto member) { EXPECT_EQ(joined.*member, whole.*member) << field; });
  }
}

// ---- Gradients

TEST(StateMixerGradients, EqualFiniteDifferences) {
  for (const StateKind kind : kStateKinds) {
    SCOPED_TRACE(name(kind));
    Inputs in =
        mixer_problem(kind, {.batch = 1, .tokens = 70, .heads = 1, .key_dim = 3, .value_dim = 2});
    set_documents(in, {41});
    for (double& log : in.log_decay) log = std::max(log, -7.0) - 1e-3;  // two-sided differences
    const Result r = run_mixer(in).result;
    const auto loss = [&] {
      const Result at = run_mixer(in).result;
      return dot(at.out, in.dout) + dot(at.hT, in.dhT);
    };
    const auto expect_gradient = [&](const char* field, std::vector<double>& x,
                                     const std::vector<double>& gradient) {
      if (gradient.empty()) return;
      const Tensor view =
          Tensor::view(x.data(), DType::f64, Device::cpu, std::vector<int64_t>{std::ssize(x)});
      EXPECT_LE(finite_difference(loss, view, gradient), 1e-7) << field;
    };
    expect_gradient("q", in.q, r.dq);
    expect_gradient("k", in.k, r.dk);
    expect_gradient("v", in.v, r.dv);
    expect_gradient("log_decay", in.log_decay, r.dlog_decay);
    expect_gradient("beta", in.beta, r.dbeta);
    expect_gradient("h0", in.h0, r.dh0);
  }
}

// ---- Mistakes that the comparisons above must see

TEST_P(StateMixer, MistakesAreSeen) {
  Inputs in = mixer_problem(kind(), {.tokens = 100});
  make_lasting(in);
  const MixerRun r = run(in);
  const Result expected = naive::state_mixer(in);
  EXPECT_GT(relative_rms(r.state, expected.hT), 1e-2) << "the transition left out";
  if (kind() == StateKind::delta) {
    EXPECT_GT(
        relative_rms(plus(apply_transition(in, r.transition, in.dhT, 3), r.costate), expected.dh0),
        1e-3)
        << "the transition not transposed";
  }
  if (kind() == StateKind::fixed || !decays()) return;
  Inputs late = in;  // every token decays by its neighbour's gate
  const int64_t step = std::ssize(in.log_decay) / (in.batch * in.tokens);
  std::rotate(late.log_decay.begin(), late.log_decay.begin() + step, late.log_decay.end());
  EXPECT_GT(relative_rms(run(late).result.out, expected.out), 1e-3) << "decays late by a token";
}

TEST(StateMixerArguments, ThatDoNotFitAreRefused) {
  const Owned k = normals(DType::f32, {1, 4, 2, 8}, "k"),
              v = normals(DType::f32, {1, 4, 2, 6}, "v");
  const Owned positions = filled(DType::i64, {1, 4}, 1), log = filled(DType::f32, {1, 4, 2}, -1);
  const Owned state(DType::f32, {1, 2, 8, 6}), decay(DType::f32, {1, 2});
  const Owned chunks(DType::f32, {1, 2, 1, 8, 6});
  const Owned scratch(DType::u8, {state_scratch_bytes(StateKind::scalar, DType::f32, 8, 6)});
  const StateSummaryArgs good{
      decay, state, chunks, scratch, {StateKind::scalar, k, v, log, {}, positions}};
  EXPECT_NO_THROW(state_summarize(good, cpu_stream()));
  const auto refused = [&](auto&& change) {
    StateSummaryArgs args = good;
    change(args);
    EXPECT_THROW(state_summarize(args, cpu_stream()), Error);
  };
  refused([&](auto& a) { a.tokens.kind = StateKind::none; });
  refused([&](auto& a) { a.tokens.kind = StateKind::vector; });
  refused([&](auto& a) { a.tokens.kind = StateKind::delta; });
  refused([&](auto& a) { a.tokens.log_decay = {}; });
  refused([&](auto& a) { a.tokens.beta = log; });
  refused([&](auto& a) { a.tokens.positions = {}; });
  refused([&](auto& a) { a.tokens.v = k.view().slice(1, 0, 3); });
  refused([&](auto& a) { a.state = chunks; });
  refused([&](auto& a) { a.transition = state; });
  refused([&](auto& a) { a.chunk_states = state; });
  refused([&](auto& a) { a.scratch = scratch.view().slice(0, 0, 64); });
}

}  // namespace
}  // namespace weft
