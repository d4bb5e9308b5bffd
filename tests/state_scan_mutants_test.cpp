// Mistakes that scans of states invite, made in every scan: each must show in the numbers.
#include <gtest/gtest.h>

#include <atomic>
#include <utility>

#include "src/kernels/pointwise.hpp"
#include "tests/flawed_worlds.hpp"
#include "tests/sequence_grid.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {
namespace {

constexpr int kRanks = 5;

class ScanMutants : public testing::TestWithParam<ScanVariant> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override { set_poison(false); }

  static ScanProblem problem_of(TransitionKind kind) {
    return scan_problem(kRanks, kind, kMixedDecay, DType::f64);
  }

  /// The largest error of a run, infinite when its ranks disagree.
  static double error(const MakeScan& make, TransitionKind kind, const StartRanks& start = {}) {
    const ScanProblem p = problem_of(kind);
    try {
      return error_of(run_scan(make, p, start), p);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::mismatch) << e.what();
      return kInfinity;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Of, ScanMutants, testing::ValuesIn(scan_variants()),
                         [](const auto& test) { return test.param.name; });

TEST_P(ScanMutants, AreNotThereToBeginWith) {
  for (const TransitionKind kind : kTransitionKinds) {
    EXPECT_LE(error(GetParam().make, kind), 1e-13);
  }
}

// ---- Wrong scans

/// Begins a scan with something wrong in it.
using Begin =
    std::function<PendingScan(StateScan& sound, ScanElement element, const Tensor& entering,
                              ScanDirection direction, const Tag& tag, StepContext& ctx)>;

class Flawed final : public StateScan {
 public:
  Flawed(const MakeScan& make, Begin begin) : sound_(make()), begin_(std::move(begin)) {}
  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    return begin_(*sound_, element, entering, direction, tag, ctx);
  }

 private:
  std::unique_ptr<StateScan> sound_;
  Begin begin_;
};

MakeScan flawed(const MakeScan& make, Begin begin) {
  return [&make, begin = std::move(begin)] { return std::make_unique<Flawed>(make, begin); };
}

TEST_P(ScanMutants, ADroppedTransitionIsFound) {
  const MakeScan mutant =
      flawed(GetParam().make, [](StateScan& sound, ScanElement element, const Tensor& entering,
                                 ScanDirection direction, const Tag& tag, StepContext& ctx) {
        element.transition = {};
        return sound.begin(element, entering, direction, tag, ctx);
      });
  for (const TransitionKind kind :
       {TransitionKind::scalar, TransitionKind::vector, TransitionKind::dense}) {
    EXPECT_GT(error(mutant, kind), 1e-3) << name(kind);
  }
}

/// Transposed once more, where the suffix transposes.
TEST_P(ScanMutants, ATransitionThatIsNotTransposedIsFound) {
  const MakeScan mutant =
      flawed(GetParam().make, [](StateScan& sound, ScanElement element, const Tensor& entering,
                                 ScanDirection direction, const Tag& tag, StepContext& ctx) {
        const Tensor& a = element.transition;
        const Tensor again =
            ctx.scratch.allocate("transposed", a.dtype, {a.dim(0), a.dim(1), a.dim(2), a.dim(3)});
        Tensor transposed = a;
        std::swap(transposed.stride[2], transposed.stride[3]);
        copy({.y = again, .x = direction == ScanDirection::suffix ? transposed : a}, ctx.compute);
        element.transition = again;
        return sound.begin(element, entering, direction, tag, ctx);
      });
  EXPECT_GT(error(mutant, TransitionKind::dense), 1e-3);
}

TEST_P(ScanMutants, AMissingScanIsFound) {
  for (const ScanDirection missing : {ScanDirection::prefix, ScanDirection::suffix}) {
    const MakeScan mutant = flawed(
        GetParam().make, [missing](StateScan& sound, ScanElement element, const Tensor& entering,
                                   ScanDirection direction, const Tag& tag, StepContext& ctx) {
          if (direction != missing) return sound.begin(element, entering, direction, tag, ctx);
          fill({.y = entering, .value = 0}, ctx.compute);
          return PendingScan(entering, {}, ctx.compute);
        });
    EXPECT_GT(error(mutant, TransitionKind::vector), 1e-3);
  }
}

TEST_P(ScanMutants, AScanTheWrongWayIsFound) {
  const MakeScan mutant =
      flawed(GetParam().make, [](StateScan& sound, ScanElement element, const Tensor& entering,
                                 ScanDirection, const Tag& tag, StepContext& ctx) {
        return sound.begin(element, entering, ScanDirection::prefix, tag, ctx);
      });
  EXPECT_GT(error(mutant, TransitionKind::vector), 1e-3);
}

// ---- Wrong transports

TEST_P(ScanMutants, ASwappedPairOfRanksIsFound) {
  for (const TransitionKind kind : kTransitionKinds) {
    const double found =
        error(GetParam().make, kind, [](int ranks, const std::function<void(World&)>& body) {
          run_ranks(ranks, [&](World& world) {
            SwapsRanks swapped(world);
            body(swapped);
          });
        });
    EXPECT_GT(found, 1e-3) << name(kind);
  }
}

/// Every message, but those of the all-gather that a rank has no use for: it sums over the ranks
/// before it in one direction and behind it in the other, of the 2 (P - 1) that it gets.
TEST_P(ScanMutants, EveryMessageThatIsLostIsFound) {
  int64_t cells = 0;
  for (int victim = 0; victim < kRanks; ++victim) {
    int found = 0, messages = 0;
    for (;; ++messages) {
      std::atomic<bool> lost = false;
      const double wrong =
          error(GetParam().make, TransitionKind::dense,
                [&](int ranks, const std::function<void(World&)>& body) {
                  run_ranks(ranks, [&](World& world) {
                    LosesAMessage lossy(world, world.rank() == victim ? messages : INT32_MAX);
                    body(lossy);
                    if (world.rank() == victim) lost = lossy.lost();
                  });
                });
      if (!lost) break;
      found += wrong > 1e-3 ? 1 : 0;
    }
    if (GetParam().name == "lasp2") {
      EXPECT_EQ(messages, 2 * (kRanks - 1));
      EXPECT_EQ(found, kRanks - 1) << "to rank " << victim;
    } else {
      EXPECT_EQ(found, messages) << "to rank " << victim;
    }
    EXPECT_GT(messages, 0);
    cells += messages;
  }
  print_cells(cells);
}

}  // namespace
}  // namespace weft
