// State mixers on the GPU: every pass of every kind against the recurrence in f64, token by token,
// and against the CPU twin where the recurrence would take too long.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cuda/cuda_testing.hpp"
#include "tests/state_mixer_testing.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;
using Result = naive::StateMixerResult;

/// Of f32 that of the CPU twin; of bf16, products of operands that round once (docs/numerics.md).
double bound(DType dtype, std::string_view field) {
  return dtype == DType::f32 ? tolerance(dtype, field) : tolerance_of(dtype);
}

void expect_result(const Result& got, const Result& expected, DType dtype, double floor = 0) {
  for_fields([&](const char* field, auto member) {
    if ((got.*member).empty()) return;  // hT and dh0 that were not asked for
    EXPECT_LE(relative_rms(got.*member, expected.*member, floor), bound(dtype, field)) << field;
  });
}

void expect_same_bits(const Result& got, const Result& expected) {
  for_fields([&](const char* field, auto member) {
    EXPECT_TRUE(same_bits(got.*member, expected.*member)) << field;
  });
}

/// The tensors of one shard on the GPU. Every output and the scratch start as NaN, scratch is
/// exactly as long as asked for.
class Shard {
 public:
  Shard(const Inputs& in, const MixerOptions& options)
      : in_(in),
        dtype_(options.dtype),
        key_rows_{in.batch, in.tokens, in.heads, in.key_dim},
        value_rows_{in.batch, in.tokens, in.heads, in.value_dim},
        state_{in.batch, in.heads, in.key_dim, in.value_dim},
        inputs_(rows(options.packed, dtype_, {in.q, in.k, in.v})),
        gradients_(rows(options.packed, DType::f32, {})),
        tokens_{in.kind, inputs_.k, inputs_.v, {}, {}, {}} {
    if (in.kind != StateKind::none) {
      tokens_.log_decay = keep(OnDevice(DType::f32, decay_shape(), in.log_decay));
    }
    if (in.kind == StateKind::delta) {
      tokens_.beta = keep(OnDevice(DType::f32, {in.batch, in.tokens, in.heads}, in.beta));
    }
    tokens_.positions = keep(
        OnDevice(DType::i64, {in.batch, in.tokens}, {in.positions.begin(), in.positions.end()}));
    dout_ = keep(OnDevice(dtype_, value_rows_, in.dout));
    if (options.boundaries) {
      h0_ = keep(OnDevice(DType::f32, state_, in.h0));
      dhT_ = keep(OnDevice(DType::f32, state_, in.dhT));
      hT_ = output(state_);
      dh0_ = output(state_);
    }
    scratch_ = keep(OnDevice(
        DType::u8, {state_scratch_bytes(Device::cuda, in.kind, dtype_, StateShape::of(tokens_))}));
  }

  MixerRun run() {
    MixerRun run;
    forward(run);
    backward(run);
    return run;
  }

 private:
  struct Rows {
    Tensor q, k, v;
  };

  Tensor keep(OnDevice tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }
  Tensor output(const std::vector<int64_t>& shape) { return keep(OnDevice(DType::f32, shape)); }

  std::vector<int64_t> decay_shape() const {
    if (in_.kind == StateKind::fixed) return {in_.heads};
    if (in_.kind == StateKind::vector) return key_rows_;
    return {in_.batch, in_.tokens, in_.heads};
  }

  /// Three tensors, or views of one whose rows start where no wide access may; NaN where no values.
  Rows rows(bool packed, DType dtype, const std::array<Values, 3>& given) {
    const auto made = [&](const std::vector<int64_t>& shape, const Values& values) {
      return keep(values.empty() ? OnDevice(dtype, shape) : OnDevice(dtype, shape, values));
    };
    if (!packed) {
      return {made(key_rows_, given[0]), made(key_rows_, given[1]), made(value_rows_, given[2])};
    }
    const int64_t k = in_.key_dim, width = 2 * k + in_.value_dim + 1;
    Values all;
    for (int64_t row = 0; !given[0].empty() && row < in_.batch * in_.tokens * in_.heads; ++row) {
      for (size_t i = 0; i < 3; ++i) {
        const int64_t n = i < 2 ? k : in_.value_dim;
        const auto first = given[i].begin() + row * n;
        all.insert(all.end(), first, first + n);
      }
      all.push_back(NAN);
    }
    const Tensor whole = made({in_.batch, in_.tokens, in_.heads, width}, all);
    return {whole.slice(3, 0, k), whole.slice(3, k, 2 * k), whole.slice(3, 2 * k, width - 1)};
  }

  Tensor transition() {
    if (in_.kind == StateKind::vector) return output({in_.batch, in_.heads, in_.key_dim});
    if (in_.kind != StateKind::delta) return output({in_.batch, in_.heads});
    return output({in_.batch, in_.heads, in_.key_dim, in_.key_dim});
  }

  Tensor handed(const std::optional<HandedStates>& states) {
    if (!states) return {};
    return keep(
        OnDevice(states->dtype, {in_.batch, in_.heads, states->count, in_.key_dim, in_.value_dim}));
  }
  Tensor chunk_states() {
    return handed(chunk_states_of(Device::cuda, in_.kind, dtype_, StateShape::of(tokens_)));
  }

  static Values values_of(const Tensor& t) { return t ? device_values(t) : Values(); }

  void forward(MixerRun& run) {
    Stream& stream = cuda_test_stream();
    const Tensor out = output(value_rows_);
    const StateSummaryArgs summary{transition(), output(state_), chunk_states(), scratch_, tokens_};
    state_summarize(summary, stream);
    poison_fill(scratch_, &stream);
    state_local({out, scratch_, inputs_.q, in_.scale, tokens_}, stream);
    state_apply({out, hT_, h0_, summary.chunk_states, scratch_, inputs_.q, in_.scale, tokens_},
                stream);
    run.transition = device_values(summary.transition);
    run.state = device_values(summary.state);
    run.result.out = device_values(out);
    run.result.hT = values_of(hT_);
  }

  void backward(MixerRun& run) {
    Stream& stream = cuda_test_stream();
    StateGradients gradients{gradients_.q, gradients_.k, gradients_.v, {}, {}};
    if (in_.kind != StateKind::none && in_.kind != StateKind::fixed) {
      gradients.dlog_decay = output(decay_shape());
    }
    if (tokens_.beta) gradients.dbeta = output({in_.batch, in_.tokens, in_.heads});
    poison_fill(scratch_, &stream);
    const StateCosummaryArgs summary{h0_ ? transition() : Tensor(),
                                     output(state_),
                                     chunk_states(),
                                     scratch_,
                                     inputs_.q,
                                     dout_,
                                     in_.scale,
                                     tokens_};
    state_cosummarize(summary, stream);
    const Tensor entering =
        handed(entering_states_of(Device::cuda, in_.kind, dtype_, StateShape::of(tokens_)));
    poison_fill(scratch_, &stream);
    state_backward_local({gradients, entering, h0_, scratch_, inputs_.q, dout_, in_.scale, tokens_},
                         stream);
    poison_fill(scratch_, &stream);
    state_backward_apply({gradients, dh0_, dhT_, entering, summary.chunk_costates, scratch_,
                          inputs_.q, dout_, in_.scale, tokens_},
                         stream);
    run.cotransition = values_of(summary.transition);
    run.costate = device_values(summary.state);
    run.result.dq = device_values(gradients.dq);
    run.result.dk = device_values(gradients.dk);
    run.result.dv = device_values(gradients.dv);
    run.result.dlog_decay = values_of(gradients.dlog_decay);
    run.result.dbeta = values_of(gradients.dbeta);
    run.result.dh0 = values_of(dh0_);
  }

  const Inputs& in_;
  DType dtype_;
  std::vector<OnDevice> kept_;
  std::vector<int64_t> key_rows_, value_rows_, state_;
  Rows inputs_, gradients_;
  StateTokens tokens_;
  Tensor dout_, h0_, hT_, dhT_, dh0_, scratch_;
};

/// What the data's type holds of q, k, v and dout; the rest is f32 anyway.
Inputs rounded_to(DType dtype, Inputs in) {
  for (auto rows : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout}) {
    in.*rows = rounded(dtype, std::move(in.*rows));
  }
  return in;
}

class CudaStateMixer : public testing::TestWithParam<std::tuple<StateKind, DType>> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
  StateKind kind() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  Inputs problem(const MixerSizes& sizes) const {
    return rounded_to(dtype(), mixer_problem(kind(), sizes));
  }
  MixerRun run(const Inputs& in, bool boundaries = true, bool packed = false) const {
    return Shard(in, {.dtype = dtype(), .boundaries = boundaries, .packed = packed}).run();
  }
};
INSTANTIATE_TEST_SUITE_P(Cuda, CudaStateMixer,
                         testing::Combine(testing::ValuesIn(kStateKinds),
                                          testing::Values(DType::f32, DType::bf16)),
                         [](const auto& param) {
                           return concat(name(std::get<0>(param.param)), "_",
                                         name(std::get<1>(param.param)));
                         });

TEST_P(CudaStateMixer, EqualsTheRecurrence) {
  const std::vector<std::vector<int64_t>> documents = {
      {}, {0}, {63}, {64}, {65}, {20, 21, 22, 40}, {0, 30, 62, 100, 127, 128, 190}};
  for (const int64_t tokens : {0, 1, 2, 63, 64, 65, 130, 200}) {
    for (size_t d = 0; d < documents.size(); ++d) {
      SCOPED_TRACE(concat(tokens, " tokens, documents ", d));
      Inputs in = problem({.tokens = tokens});
      set_documents(in, documents[d]);
      expect_result(run(in).result, naive::state_mixer(in), dtype());
      in.h0.assign(in.h0.size(), 0.0);
      in.dhT.assign(in.dhT.size(), 0.0);
      expect_result(run(in, false).result, naive::state_mixer(in), dtype());
    }
  }
}

TEST_P(CudaStateMixer, AnyWidthsAndViewsTwice) {
  const std::vector<MixerSizes> sizes = {
      {1, 70, 1, 1, 1},     {2, 70, 3, 1, 9},      {1, 140, 2, 33, 17}, {1, 90, 1, 72, 40},
      {1, 130, 2, 64, 128}, {2, 130, 1, 128, 128}, {1, 70, 1, 200, 130}};
  for (const MixerSizes& size : sizes) {
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(concat("K ", size.key_dim, " V ", size.value_dim, " packed ", packed));
      Inputs in = problem(size);
      // With one row to a state, a delta rule that forgets leaves of it what 1 - beta rounds to.
      make_lasting(in);
      set_documents(in, {33, 66});
      const Result got = run(in, true, packed).result;
      expect_result(got, naive::state_mixer(in), dtype());
      expect_same_bits(run(in, true, packed).result, got);
    }
  }
}

TEST_P(CudaStateMixer, AnyDecay) {
  for (const double decay : {1.0, 0.999, 0.9, 1e-3, 0.0}) {
    SCOPED_TRACE(concat("decay ", decay));
    Inputs in = problem({.tokens = 200, .key_dim = 16, .value_dim = 8});
    set_decay(in, std::log(decay));
    expect_result(run(in).result, naive::state_mixer(in), dtype());
  }
}

TEST_P(CudaStateMixer, DecaysWhosePowerIsNothing) {  // over a chunk, and from one token to the next
  for (const double log_decay : {-2.0, -20.0, -90.0, -700.0}) {
    SCOPED_TRACE(concat("log decay ", log_decay));
    Inputs in = problem({.tokens = 200});
    for (size_t i = 0; i < in.log_decay.size(); i += 2) in.log_decay[i] = log_decay;
    expect_result(run(in).result, naive::state_mixer(in), dtype());
    set_decay(in, log_decay);
    // Gradients of decays underflow where the decays do.
    expect_result(run(in).result, naive::state_mixer(in), dtype(), 1e-30);
  }
}

TEST_P(CudaStateMixer, AResetIsADecayOfNothing) {  // to the bit, however the decay says so
  if (kind() == StateKind::none || kind() == StateKind::fixed) return;
  Inputs documents = problem({.tokens = 150});
  set_documents(documents, {0, 1, 40, 63, 64, 100});
  const Result expected = run(documents).result;
  const int64_t lanes = std::ssize(documents.log_decay) / std::ssize(documents.positions);
  for (size_t i = 0; i < expected.dlog_decay.size(); ++i) {
    EXPECT_TRUE(documents.positions[i / lanes] != 0 || expected.dlog_decay[i] == 0);
  }
  Inputs decay = documents;
  decay.positions.assign(decay.positions.size(), 1);
  for (const double zero : {-kInfinity, -1e30, -746.0}) {
    for (size_t i = 0; i < decay.log_decay.size(); ++i) {
      if (documents.positions[i / lanes] == 0) decay.log_decay[i] = zero;
    }
    expect_same_bits(run(decay).result, expected);
  }
}

/// Shards that hand the state over, forward and back; cut after a whole chunk, to the bit.
TEST_P(CudaStateMixer, TwoShardsAreTheWhole) {
  constexpr int64_t kTokens = 140;
  Inputs in = problem({.tokens = kTokens, .key_dim = 24, .value_dim = 40});
  make_lasting(in);
  set_documents(in, {100});
  const Result whole = run(in).result;
  for (const int64_t at : {0, 1, 37, 64, 100, 128, 140}) {
    SCOPED_TRACE(concat("cut at ", at));
    Inputs left = cut(in, 0, at), right = cut(in, at, kTokens);
    right.h0 = run(left).result.hT;
    left.dhT = run(right).result.dh0;
    const Result a = run(left).result, b = run(right).result;
    Result joined;
    for_fields([&](const char*, auto member) {
      for (int64_t s = 0; s < in.batch; ++s) {
        for (const Values* part : {&(a.*member), &(b.*member)}) {
          const int64_t n = std::ssize(*part) / in.batch;
          (joined.*member)
              .insert((joined.*member).end(), part->begin() + s * n, part->begin() + (s + 1) * n);
        }
      }
    });
    joined.hT = b.hT;
    joined.dh0 = a.dh0;
    if (at % kStateChunk == 0) {
      expect_same_bits(joined, whole);
    } else {
      expect_result(joined, whole, dtype());
    }
  }
}

/// S_out = A S_in + b and D_in = A^T D_out + E.
TEST_P(CudaStateMixer, SummaryIsTheShardAsAMap) {
  const auto plus = [](Values a, const Values& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
  };
  for (const int64_t tokens : {0, 1, 64, 130, 300}) {
    for (const std::vector<int64_t>& documents : {std::vector<int64_t>{}, {0}, {50}}) {
      SCOPED_TRACE(concat(tokens, " tokens, ", documents.size(), " documents"));
      Inputs in = problem({.tokens = tokens, .key_dim = 40, .value_dim = 24});
      make_lasting(in);
      set_documents(in, documents);
      const MixerRun r = run(in);
      EXPECT_LE(relative_rms(plus(apply_transition(in, r.transition, in.h0, in.value_dim), r.state),
                             r.result.hT),
                bound(dtype(), "hT"));
      EXPECT_LE(relative_rms(plus(apply_transition(in, r.cotransition, in.dhT, in.value_dim, true),
                                  r.costate),
                             r.result.dh0),
                bound(dtype(), "dh0"));
      const double apart = kind() == StateKind::delta
                               ? relative_rms(r.cotransition, r.transition)
                               : relative_rms_of_logs(r.cotransition, r.transition);
      EXPECT_LE(apart, bound(dtype(), "hT"));
    }
  }
}

/// Shards of several segments, whose last has tokens for one chunk, for less, or for all of them,
/// and documents that start at their edges, inside and not at all.
TEST_P(CudaStateMixer, SegmentsAreTheShard) {
  for (const int64_t tokens : {1024, 1025, 2100, 3072}) {
    for (const std::vector<int64_t>& documents :
         {std::vector<int64_t>{}, {1023}, {1024}, {100, 2060}}) {
      SCOPED_TRACE(concat(tokens, " tokens, ", documents.size(), " documents"));
      Inputs in = problem({.batch = 1, .tokens = tokens, .key_dim = 24, .value_dim = 72});
      make_lasting(in);
      set_documents(in, documents);
      const Result got = run(in).result;
      expect_result(got, naive::state_mixer(in), dtype());
      expect_same_bits(run(in).result, got);
    }
  }
}

/// Roundings of many chunks, against the CPU twin in f64.
TEST_P(CudaStateMixer, LongShardsKeepTheirPrecision) {
  const std::vector<MixerSizes> sizes = {{1, 2000, 2, 64, 32}, {1, 131072, 1, 32, 8}};
  for (const MixerSizes& s : sizes) {
    SCOPED_TRACE(concat(s.tokens, " tokens"));
    Inputs in = problem(s);
    make_lasting(in);
    set_documents(in, {s.tokens / 2 - 100});
    expect_result(run(in).result, run_mixer(in, {.dtype = DType::f64}).result, dtype());
  }
}

/// More states than a piece of the shard has room for: every chunk is a piece of its own.
TEST(CudaStateMixerPieces, OfOneChunkAreTheShard) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  for (const StateKind kind : {StateKind::scalar, StateKind::delta}) {
    SCOPED_TRACE(name(kind));
    Inputs in = rounded_to(
        DType::bf16,
        mixer_problem(kind,
                      {.batch = 20, .tokens = 66, .heads = 30, .key_dim = 256, .value_dim = 256}));
    make_lasting(in);
    set_documents(in, {30});
    expect_result(Shard(in, {.dtype = DType::bf16}).run().result,
                  run_mixer(in, {.dtype = DType::f64}).result, DType::bf16);
  }
}

}  // namespace
}  // namespace weft
