// Every state scan of the table equals the naive fold in f64, both ways, whatever the number of
// ranks and the kind of transition; those that add in the chain's order equal it bit for bit.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/flawed_worlds.hpp"
#include "tests/sequence_grid.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {
namespace {

template <int kThousandths>
double constant(int, int64_t) {
  return kThousandths / 1000.0;
}

/// Decays of every size, and identities among them: one, several, all but one.
const Decay kDecays[] = {
    kMixedDecay,
    {"1", constant<1000>},
    {"0.999", constant<999>},
    {"0.001", constant<1>},
    {"0", constant<0>},
    {"0 here and there", [](int rank, int64_t i) { return (rank + i) % 3 == 0 ? 0.0 : 0.9; }},
    {"identities", kMixedDecay.factor, [](int rank) { return rank % 3 == 1; }},
    {"identities at both ends", kMixedDecay.factor, [](int rank) { return rank % 4 != 2; }},
};

class StateScans : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override {
    set_poison(false);
    set_late_delivery(false);
  }
  int ranks() const { return GetParam(); }

  /// Every scan, kind and decay.
  void run_grid(DType dtype, double tolerance, std::span<const Decay> decays) {
    int64_t cells = 0;
    for (const TransitionKind kind : kTransitionKinds) {
      for (const Decay& decay : decays) {
        const ScanProblem p = scan_problem(ranks(), kind, decay, dtype);
        for (const ScanVariant& variant : scan_variants()) {
          const ScanRun run = run_scan(variant.make, p);
          const std::string where = concat(variant.name, ", ", name(kind), ", decay ", decay.name);
          EXPECT_LE(error_of(run, p), tolerance) << where;
          EXPECT_TRUE(run.ledgers_agree) << where;
          ++cells;
        }
      }
    }
    print_cells(cells);
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, StateScans, testing::Values(1, 2, 3, 4, 5, 8));

TEST_P(StateScans, EqualTheNaiveFoldInF64) {
  run_grid(DType::f64, 1e-13, kDecays);
}
TEST_P(StateScans, EqualTheNaiveFoldInF32) {
  run_grid(DType::f32, 1e-6, kDecays);
}
TEST_P(StateScans, EqualTheNaiveFoldDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, 1e-13, {kDecays, 1});
}

/// Of one state, one row, one column; more rows than columns; a batch of none.
TEST_P(StateScans, EqualTheNaiveFoldInOddShapes) {
  const ScanShape shapes[] = {{1, 1, 1, 1}, {1, 1, 9, 2}, {3, 1, 2, 5}, {1, 7, 3, 1}, {0, 2, 3, 4}};
  for (const ScanShape& shape : shapes) {
    for (const TransitionKind kind : kTransitionKinds) {
      const ScanProblem p = scan_problem(ranks(), kind, kMixedDecay, DType::f64, shape);
      for (const ScanVariant& variant : scan_variants()) {
        EXPECT_LE(error_of(run_scan(variant.make, p), p), 1e-13)
            << variant.name << ", " << name(kind) << ", K " << shape.K << ", V " << shape.V;
      }
    }
  }
}

/// The chain, the gather that folds, and All-Scan cut anyhow: one order of additions.
TEST_P(StateScans, OfTheChainsOrderAreTheSameBits) {
  int64_t cells = 0;
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const TransitionKind kind : kTransitionKinds) {
      for (const Decay& decay : kDecays) {
        const ScanProblem p = scan_problem(ranks(), kind, decay, dtype);
        const ScanRun chain = run_scan([] { return make_lasp_scan({}); }, p);
        for (const ScanVariant& variant : scan_variants()) {
          if (variant.name != "lasp2" && !variant.name.starts_with("zeco")) continue;
          const ScanRun run = run_scan(variant.make, p);
          for (int rank = 0; rank < ranks(); ++rank) {
            EXPECT_TRUE(same_bits(run.prefix[rank], chain.prefix[rank]) &&
                        same_bits(run.suffix[rank], chain.suffix[rank]))
                << variant.name << ", " << name(kind) << ", decay " << decay.name << ", rank "
                << rank;
          }
          ++cells;
        }
      }
    }
  }
  print_cells(cells);
}

/// Not even a negative zero.
TEST_P(StateScans, GiveTheFirstRankExactZeros) {
  const ScanProblem p = scan_problem(ranks(), TransitionKind::dense, kMixedDecay, DType::f32);
  const std::vector<double> zero(p.states[0].view().numel());
  for (const ScanVariant& variant : scan_variants()) {
    const ScanRun run = run_scan(variant.make, p);
    EXPECT_TRUE(same_bits(run.prefix.front(), zero)) << variant.name;
    EXPECT_TRUE(same_bits(run.suffix.back(), zero)) << variant.name;
  }
}

/// <prefix(b), e> = <b, suffix(e)>: the suffix is what the prefix's gradient needs.
TEST_P(StateScans, BothWaysAreAdjoint) {
  for (const TransitionKind kind : kTransitionKinds) {
    const ScanProblem p = scan_problem(ranks(), kind, kMixedDecay, DType::f64);
    for (const ScanVariant& variant : scan_variants()) {
      const ScanRun run = run_scan(variant.make, p);
      double forward = 0, backward = 0, size = 0;
      for (int rank = 0; rank < ranks(); ++rank) {
        const std::vector<double> b = values(p.states[rank]), e = values(p.costates[rank]);
        forward += dot(run.prefix[rank], e);
        backward += dot(b, run.suffix[rank]);
        size += std::sqrt(dot(run.prefix[rank], run.prefix[rank]) * dot(e, e));
      }
      EXPECT_LE(std::abs(forward - backward), 1e-14 * size) << variant.name << ", " << name(kind);
      if (ranks() > 1) {
        EXPECT_NE(forward, 0);
      }
    }
  }
}

TEST_P(StateScans, AreTheSameBitsEveryTime) {
  const ScanProblem p = scan_problem(ranks(), TransitionKind::dense, kMixedDecay, DType::f32);
  for (const ScanVariant& variant : scan_variants()) {
    const ScanRun once = run_scan(variant.make, p), again = run_scan(variant.make, p);
    for (int rank = 0; rank < ranks(); ++rank) {
      EXPECT_TRUE(same_bits(once.prefix[rank], again.prefix[rank]) &&
                  same_bits(once.suffix[rank], again.suffix[rank]))
          << variant.name;
    }
  }
}

/// A prefix and a suffix, and a second prefix behind the first, finished in the wrong order.
TEST_P(StateScans, InFlightTogetherDoNotMix) {
  for (const bool late : {false, true}) {
    set_late_delivery(late);
    const ScanProblem p = scan_problem(ranks(), TransitionKind::vector, kMixedDecay, DType::f32);
    for (const ScanVariant& variant : scan_variants()) {
      const ScanRun alone = run_scan(variant.make, p);
      ScanProblem swapped = scan_problem(ranks(), p.kind, kMixedDecay, p.dtype);
      std::swap(swapped.states, swapped.costates);
      const ScanRun other = run_scan(variant.make, swapped);
      std::mutex mutex;
      run_ranks(ranks(), [&](World& world) {
        TestRank rank(world, sequence_mesh(ranks()), 1 << 20);
        StepContext& ctx = rank.context;
        const int me = world.rank();
        const auto [B, H, K, V] = p.shape;
        const Owned a(p.dtype, {B, H, K, V}), b(p.dtype, {B, H, K, V}), c(p.dtype, {B, H, K, V});
        const auto scan = variant.make();
        const auto begin = [&](const Owned& state, const Owned& out, ScanDirection direction,
                               int micro_batch) {
          return scan->begin({p.transitions[me], state}, out, direction,
                             state_tag(0, micro_batch, Tag::Pass::forward), ctx);
        };
        const Scope scope(ctx.scratch);
        PendingScan first = begin(p.states[me], a, ScanDirection::prefix, 0);
        PendingScan back = begin(p.costates[me], b, ScanDirection::suffix, 0);
        PendingScan second = begin(p.costates[me], c, ScanDirection::prefix, 1);
        second.finish();
        PendingScan moved = std::move(back);
        moved.finish();
        first.finish();
        const std::lock_guard lock(mutex);
        EXPECT_TRUE(same_bits(values(a), alone.prefix[me])) << variant.name;
        EXPECT_TRUE(same_bits(values(b), alone.suffix[me])) << variant.name;
        EXPECT_TRUE(same_bits(values(c), other.prefix[me])) << variant.name;
      });
    }
  }
}

/// A transport where every call waits until all ranks have compared it, as --strict over MPI.
class ComparesEveryCall final : public FlawedWorld {
  using FlawedWorld::FlawedWorld;

  class Slow final : public Backend {
   public:
    explicit Slow(std::unique_ptr<Backend> sound)
        : Backend(sound->rank(), sound->size()), sound_(std::move(sound)) {}
    void exchange(std::span<const Message> messages) override { sound_->exchange(messages); }
    void verify(const Fingerprint& mine) override {
      sound_->barrier();
      sound_->verify(mine);
    }
    bool verify_is_cheap() const override { return true; }

   private:
    std::unique_ptr<Backend> sound_;
  };

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    return std::make_unique<Slow>(sound_.group(members, label));
  }
};

TEST_P(StateScans, RunWhereEveryCallIsComparedFirst) {
  const double deadline = wait_deadline();
  set_wait_deadline(30);
  const ScanProblem p = scan_problem(ranks(), TransitionKind::dense, kMixedDecay, DType::f64);
  for (const ScanVariant& variant : scan_variants()) {
    const ScanRun run =
        run_scan(variant.make, p, [](int n, const std::function<void(World&)>& body) {
          run_ranks(n, [&](World& world) {
            ComparesEveryCall strict(world);
            body(strict);
          });
        });
    EXPECT_LE(error_of(run, p), 1e-13) << variant.name;
  }
  set_wait_deadline(deadline);
}

// ---- Errors

/// A rank that fails between begin and finish leaves nothing behind that writes into its memory.
TEST(StateScan, IsWaitedForWhereARankFails) {
  for (const ScanVariant& variant : scan_variants()) {
    const ScanProblem p = scan_problem(3, TransitionKind::vector, kMixedDecay, DType::f64);
    const auto fails = [&] {
      run_ranks(3, [&](World& world) {
        TestRank rank(world, sequence_mesh(3), 1 << 20);
        const int me = world.rank();
        const auto [B, H, K, V] = p.shape;
        const Owned entering(p.dtype, {B, H, K, V});
        const Scope scope(rank.context.scratch);
        PendingScan pending = variant.make()->begin({p.transitions[me], p.states[me]}, entering,
                                                    ScanDirection::prefix, {}, rank.context);
        WEFT_REQUIRE(me != 1, ExitCode::data, "rank 1 has bad data");
        pending.finish();
      });
    };
    try {
      fails();
      ADD_FAILURE() << variant.name << " did not fail";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::data) << variant.name << ": " << e.what();
    }
  }
}

/// A rank that never begins: the error of the others' transfers comes out of finish().
TEST(StateScan, EndsWithTheErrorOfItsTransfers) {
  for (const ScanVariant& variant : scan_variants()) {
    const ScanProblem p = scan_problem(2, TransitionKind::scalar, kMixedDecay, DType::f64);
    ExitCode seen = ExitCode::done;
    const auto run = [&] {
      run_ranks(2, [&](World& world) {
        TestRank rank(world, sequence_mesh(2), 1 << 20);
        WEFT_REQUIRE(world.rank() == 1, ExitCode::data, "rank 0 has bad data");
        const auto [B, H, K, V] = p.shape;
        const Owned entering(p.dtype, {B, H, K, V});
        const Scope scope(rank.context.scratch);
        PendingScan pending = variant.make()->begin({p.transitions[1], p.states[1]}, entering,
                                                    ScanDirection::prefix, {}, rank.context);
        try {
          pending.finish();
        } catch (const Error& e) {
          seen = e.code();
          throw;
        }
      });
    };
    EXPECT_THROW(run(), Error) << variant.name;
    EXPECT_EQ(seen, ExitCode::retry) << variant.name;
  }
}

TEST(StateScan, NamesAreThoseOfTheTable) {
  for (const StateScanKind& kind : state_scans()) EXPECT_EQ(&state_scan(kind.name), &kind);
  try {
    state_scan("lasp3");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::config);
    EXPECT_STREQ(e.what(),
                 "sequence.state: expected one of lasp, lasp2, zeco, doubling, two_level, auto, "
                 "got 'lasp3'");
  }
}

}  // namespace
}  // namespace weft
