// Mistakes that a state mixer over the sequence axis invites, made with every scan and kind: each
// must show in the numbers. And documents, which must not touch one another by a bit.
#include <gtest/gtest.h>

#include <atomic>
#include <utility>

#include "src/kernels/pointwise.hpp"
#include "tests/flawed_worlds.hpp"
#include "tests/mix_states_testing.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;
using Result = naive::StateMixerResult;

constexpr int kRanks = 5;
constexpr ScanDirection kDirections[] = {ScanDirection::prefix, ScanDirection::suffix};

Cuts cuts() {
  return Cuts::even(5 * kRanks, kRanks);
}

/// Everything crosses every rank.
Inputs one_document(StateKind kind) {
  return sequence_problem(kind, cuts().total());
}
/// A document starts in the middle of the middle rank, in every sequence.
Inputs two_documents(StateKind kind) {
  return sequence_problem(kind, cuts().total(), {cuts().begin(kRanks / 2) + 2});
}

/// The largest error of a run, infinite when its ranks disagree.
double error_of(const MakeShardScan& make, const Inputs& in, const StartRanks& start = {}) {
  Result got;
  try {
    got = run_mix(make, in, cuts(), DType::f64, start).result;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::mismatch) << e.what();
    return kInfinity;
  }
  const Result expected = naive::state_mixer(in);
  double worst = 0;
  for_fields([&](const char*, auto member) {
    if (member == &Result::hT) return;
    worst = std::max(worst, relative_rms(got.*member, expected.*member));
  });
  return worst;
}

class MixMutants : public testing::TestWithParam<ScanVariant> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override { set_poison(false); }
  const MakeScan& make() const { return GetParam().make; }
};

const auto name_of_scan = [](const auto& test) { return test.param.name; };
INSTANTIATE_TEST_SUITE_P(Of, MixMutants, testing::ValuesIn(scans_of_the_table()), name_of_scan);
INSTANTIATE_TEST_SUITE_P(FullOf, MixMutants, testing::ValuesIn(scan_variants()), name_of_scan);

TEST_P(MixMutants, AreNotThereToBeginWith) {
  for (const StateKind kind : kStateKinds) {
    EXPECT_LE(error_of(for_any_shard(make()), one_document(kind)), 1e-12);
    EXPECT_LE(error_of(for_any_shard(make()), two_documents(kind)), 1e-12);
  }
}

// ---- Wrong summaries, in one direction

/// What a mistake makes of the element that a rank hands to the scan.
using Spoil = std::function<ScanElement(const ScanElement& sound, const StateShard&, StepContext&)>;

class Spoiled final : public StateScan {
 public:
  Spoiled(const MakeScan& make, const StateShard& shard, ScanDirection direction,
          const Spoil& spoil)
      : sound_(make()), shard_(shard), direction_(direction), spoil_(spoil) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    const ScanElement given = direction == direction_ ? spoil_(element, shard_, ctx) : element;
    return sound_->begin(given, entering, direction, tag, ctx);
  }

 private:
  std::unique_ptr<StateScan> sound_;
  StateShard shard_;
  ScanDirection direction_;
  Spoil spoil_;
};

/// The error with the mistake in one direction, the smaller of the two.
double error_of_spoiled(const MakeScan& make, const Inputs& in, const Spoil& spoil) {
  double least = kInfinity;
  for (const ScanDirection direction : kDirections) {
    least = std::min(least, error_of(
                                [&](const StateShard& shard) {
                                  return std::make_unique<Spoiled>(make, shard, direction, spoil);
                                },
                                in));
  }
  return least;
}

TEST_P(MixMutants, ADroppedTransitionIsFound) {
  for (const StateKind kind : kStateKinds) {
    const double error = error_of_spoiled(
        make(), two_documents(kind),
        [](const ScanElement& sound, const StateShard&, StepContext&) -> ScanElement {
          return {.transition = {}, .state = sound.state};
        });
    EXPECT_GT(error, 1e-3) << name(kind);
  }
}

/// The transition of other tokens than the shard's, in the shape of the sound one.
Tensor transition_of(const StateTokens& tokens, const ScanElement& sound, StepContext& ctx) {
  const Tensor &k = tokens.k, &s = sound.state;
  const auto like = [&](const char* name, Tensor t) {
    t.data = ctx.scratch.allocate(name, DType::u8, {t.nbytes()}).data;
    return t;
  };
  const Tensor transition = like("spoiled transition", sound.transition);
  Tensor chunk_states;
  if (tokens.kind != StateKind::delta) {
    chunk_states = ctx.scratch.allocate(
        "chunks of it", s.dtype, {s.dim(0), s.dim(1), state_chunks(k.dim(1)), s.dim(2), s.dim(3)});
  }
  state_summarize({.transition = transition,
                   .state = like("state of it", s),
                   .chunk_states = chunk_states,
                   .scratch = ctx.scratch.allocate(
                       "scratch of it", DType::u8,
                       {state_scratch_bytes(tokens.kind, k.dtype, k.dim(3), tokens.v.dim(3))}),
                   .tokens = tokens},
                  ctx.compute);
  return transition;
}

/// The first token of every shard decays nothing.
TEST_P(MixMutants, ADecayOffByOneTokenIsFound) {
  for (const StateKind kind : kStateKinds) {
    if (kind == StateKind::none) continue;
    const double error = error_of_spoiled(
        make(), one_document(kind),
        [](const ScanElement& sound, const StateShard& shard, StepContext& ctx) -> ScanElement {
          StateTokens tokens = shard.tokens;
          if (tokens.kind == StateKind::fixed) {
            for (Tensor* t : {&tokens.k, &tokens.v, &tokens.positions}) {
              *t = t->slice(1, 1, t->dim(1));
            }
            return {transition_of(tokens, sound, ctx), sound.state};
          }
          const Owned decays = copy_of(tokens.log_decay);
          const Tensor first = decays.view().slice(1, 0, 1);
          assign(first, std::vector<double>(first.numel(), 0.0));
          tokens.log_decay = decays;
          return {transition_of(tokens, sound, ctx), sound.state};
        });
    EXPECT_GT(error, 1e-3) << name(kind);
  }
}

TEST_P(MixMutants, AnIgnoredStartOfADocumentIsFound) {
  for (const StateKind kind : kStateKinds) {
    const double error = error_of_spoiled(
        make(), two_documents(kind),
        [](const ScanElement& sound, const StateShard& shard, StepContext& ctx) -> ScanElement {
          StateTokens tokens = shard.tokens;
          const Owned inside =
              filled(DType::i64, {tokens.positions.dim(0), tokens.positions.dim(1)}, 1);
          tokens.positions = inside;
          return {transition_of(tokens, sound, ctx), sound.state};
        });
    EXPECT_GT(error, 1e-3) << name(kind);
  }
}

/// Transposed in one direction more than the scan does.
TEST_P(MixMutants, ATransitionThatIsNotTransposedIsFound) {
  const double error = error_of_spoiled(
      make(), one_document(StateKind::delta),
      [](const ScanElement& sound, const StateShard&, StepContext& ctx) -> ScanElement {
        Tensor transposed = sound.transition;
        std::swap(transposed.stride[2], transposed.stride[3]);
        const auto [B, H, K] = std::tuple(transposed.dim(0), transposed.dim(1), transposed.dim(2));
        const Tensor again = ctx.scratch.allocate("transposed", transposed.dtype, {B, H, K, K});
        copy({.y = again, .x = transposed}, ctx.compute);
        return {again, sound.state};
      });
  EXPECT_GT(error, 1e-3);
}

// ---- A missing scan

/// Hands zeros to every rank: the other ranks' tokens are forgotten, or their gradients.
class Missing final : public StateScan {
 public:
  Missing(const MakeScan& make, ScanDirection missing) : sound_(make()), missing_(missing) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    if (direction != missing_) return sound_->begin(element, entering, direction, tag, ctx);
    fill({.y = entering, .value = 0}, ctx.compute);
    return PendingScan(entering, {}, ctx.compute);
  }

 private:
  std::unique_ptr<StateScan> sound_;
  ScanDirection missing_;
};

TEST_P(MixMutants, AMissingScanIsFound) {
  for (const StateKind kind : kStateKinds) {
    for (const ScanDirection missing : kDirections) {
      const double error =
          error_of([&](const StateShard&) { return std::make_unique<Missing>(make(), missing); },
                   one_document(kind));
      EXPECT_GT(error, 1e-3) << name(kind);
    }
  }
}

// ---- Wrong transports

TEST_P(MixMutants, ASwappedPairOfRanksIsFound) {
  for (const StateKind kind : kStateKinds) {
    const double error = error_of(for_any_shard(make()), one_document(kind),
                                  [](int ranks, const std::function<void(World&)>& body) {
                                    run_ranks(ranks, [&](World& world) {
                                      SwapsRanks swapped(world);
                                      body(swapped);
                                    });
                                  });
    EXPECT_GT(error, 1e-3) << name(kind);
  }
}

/// What is found of the messages to one rank that are lost one at a time.
struct LostMessages {
  int messages = 0, found = 0;
};

LostMessages lose_each(const MakeScan& make, const Inputs& in, int victim) {
  LostMessages result;
  for (;; ++result.messages) {
    std::atomic<bool> lost = false;
    const double error =
        error_of(for_any_shard(make), in, [&](int ranks, const std::function<void(World&)>& body) {
          run_ranks(ranks, [&](World& world) {
            LosesAMessage lossy(world, world.rank() == victim ? result.messages : INT32_MAX);
            body(lossy);
            if (world.rank() == victim) lost = lossy.lost();
          });
        });
    if (!lost) return result;
    result.found += error > 1e-3 ? 1 : 0;
  }
}

/// The buffer keeps what was in it. Of the all-gather a rank needs in each direction only what is
/// from one side, half of what it gets in both.
TEST_P(MixMutants, EveryMessageThatIsLostIsFound) {
  int64_t cells = 0;
  for (const StateKind kind : kStateKinds) {
    for (int victim = 0; victim < kRanks; ++victim) {
      const auto [messages, found] = lose_each(make(), one_document(kind), victim);
      EXPECT_GT(messages, 0);
      EXPECT_EQ(found, GetParam().name == "lasp2" ? messages / 2 : messages)
          << name(kind) << ", to rank " << victim;
      cells += messages;
    }
  }
  print_cells(cells);
}

// ---- Leaks

/// Rows [begin, end) of one sequence's [N, ...] taken out.
std::vector<double> without(std::vector<double> rows, int64_t tokens, int64_t begin, int64_t end) {
  const int64_t width = std::ssize(rows) / tokens;
  rows.erase(rows.begin() + begin * width, rows.begin() + end * width);
  return rows;
}

/// The problem with other numbers in a document.
Inputs with_another_document(const Inputs& in, int64_t begin, int64_t end) {
  Inputs out = in;
  std::vector<std::vector<double>*> changed = {&out.q, &out.k, &out.v, &out.dout, &out.beta};
  if (in.kind != StateKind::fixed) changed.push_back(&out.log_decay);
  for (std::vector<double>* x : changed) {
    const int64_t width = std::ssize(*x) / in.tokens;
    for (int64_t i = begin * width; i < end * width; ++i) (*x)[i] *= 0.75;
  }
  return out;
}

/// A document inside of some ranks, between cuts, or one token beside them; of one token at least.
std::pair<int64_t, int64_t> perturbed_document(const Cuts& cuts, int64_t which) {
  const int ranks = cuts.pieces();
  const int64_t N = cuts.total();
  int64_t begin = N / 3, end = N - std::max<int64_t>(1, N / 4);
  if (which > 0) {
    begin = cuts.begin((ranks - 1) / 2) + which - 1;
    end = cuts.end(ranks / 2) - which + 1;
  }
  begin = std::min(begin, N - 1);
  return {begin, std::clamp(end, begin + 1, N)};
}

/// Perturbs the document, and expects the rest as it was.
void expect_no_leak(const ScanVariant& variant, StateKind kind, const Cuts& cuts, int64_t which) {
  const auto [begin, end] = perturbed_document(cuts, which);
  SCOPED_TRACE(
      concat(variant.name, ", ", name(kind), ", ", cuts.pieces(), " ranks, document ", which));
  Inputs in = mixer_problem(kind, {.batch = 1, .tokens = cuts.total()});
  set_documents(in, {begin, end});
  const auto run = [&](const Inputs& problem) {
    return run_mix(for_any_shard(variant.make), problem, cuts, DType::f32).result;
  };
  const Result before = run(in), after = run(with_another_document(in, begin, end));
  EXPECT_GT(rms(minus(after.out, before.out)), 1e-3);  // the perturbation did something
  EXPECT_GT(rms(minus(after.dv, before.dv)), 1e-3);
  for_fields([&](const char* field, auto member) {
    if (member == &Result::dh0 || member == &Result::hT) return;
    EXPECT_TRUE(same_bits(without(after.*member, cuts.total(), begin, end),
                          without(before.*member, cuts.total(), begin, end)))
        << field;
  });
}

TEST(MixLeaks, ADocumentTouchesNoOtherByABit) {  // a document of three each time
  int64_t cells = 0;
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (const StateKind kind : kStateKinds) {
      for (const ScanVariant& variant : scans_of_the_table()) {
        expect_no_leak(variant, kind, cuts_of(ranks)[1].second, cells++ % 3);
      }
    }
  }
  print_cells(cells);
}

TEST(MixLeaks, FullGridTouchesNoOtherByABit) {
  int64_t cells = 0;
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (const auto& [_, cuts] : cuts_of(ranks)) {
      for (const StateKind kind : kStateKinds) {
        for (const ScanVariant& variant : scan_variants()) {
          for (const int which : {0, 1, 2}) {
            expect_no_leak(variant, kind, cuts, which);
            ++cells;
          }
        }
      }
    }
  }
  print_cells(cells);
}

}  // namespace
}  // namespace weft
