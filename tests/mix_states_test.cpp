// A state mixer over the sequence axis equals the same mixer on one rank and the recurrence in f64,
// forward and backward, whatever the scan, the kind, the number of ranks, the cuts and documents.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/mix_states_testing.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;
using Result = naive::StateMixerResult;

/// Of the outputs and gradients of all tokens, and of the state that enters the first.
void expect_result(const Result& got, const Result& expected, DType dtype, double floor = 0) {
  for_fields([&](const char* field, auto member) {
    if (member == &Result::hT) return;  // the last rank's, which nobody asks for
    EXPECT_LE(relative_rms(got.*member, expected.*member, floor), tolerance(dtype, field)) << field;
  });
}

bool same_bits(const MixRun& a, const MixRun& b) {
  bool same = true;
  for_fields([&](const char*, auto member) {
    same &= weft::same_bits(a.result.*member, b.result.*member);
  });
  for (size_t p = 0; p < a.entering.size(); ++p) {
    same &= weft::same_bits(a.entering[p], b.entering[p]) && weft::same_bits(a.dh0[p], b.dh0[p]);
  }
  return same;
}

/// Those that add in the order of the ranks.
bool is_of_the_chains_order(const ScanVariant& variant) {
  return variant.name == "lasp2" || variant.name.starts_with("zeco");
}

/// A change to a problem, and the size below which gradients of its decays are nothing: they
/// underflow where the decays do.
struct Problem {
  std::string name;
  std::function<void(Inputs&)> change;
  double floor = 0;
};

std::vector<Problem> problems_of(StateKind kind) {
  std::vector<Problem> all = {{"mixed decays and documents",
                               [](Inputs& in) {
                                 set_documents(in, {30, 71, 100, 201});
                               }},
                              {"lasting", make_lasting}};
  if (kind == StateKind::delta) {
    all.push_back({"beta 0 and 1", [](Inputs& in) {
                     for (size_t i = 0; i < in.beta.size(); ++i) in.beta[i] = i % 3 == 0 ? 1 : 0;
                   }});
  }
  if (kind == StateKind::none) return all;
  for (const double decay : {1.0, 0.999, 1e-3, 0.0}) {
    all.push_back({concat("decay ", decay), [=](Inputs& in) { set_decay(in, std::log(decay)); }});
  }
  for (const double log : {-20.0, -700.0}) {  // over a chunk, from one token to the next
    all.push_back({concat("log decay ", log), [=](Inputs& in) { set_decay(in, log); }, 1e-30});
    all.push_back({concat("log decay ", log, " now and then"), [=](Inputs& in) {
                     for (size_t i = 0; i < in.log_decay.size(); i += 2) in.log_decay[i] = log;
                   }});
  }
  return all;
}

class MixStates : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override {
    set_poison(false);
    set_late_delivery(false);
  }
  int ranks() const { return GetParam(); }

  /// Calls f(kind, case) for the grid of this many ranks, or a part of it: one cell of `stride`,
  /// others for every kind.
  template <class F>
  void for_cells(int stride, F&& f) const {
    for (const StateKind kind : kStateKinds) {
      const std::vector<Case> cases = grid(ranks());
      for (size_t i = static_cast<size_t>(kind) % stride; i < cases.size(); i += stride) {
        f(kind, cases[i]);
      }
    }
  }

  void run_grid(DType dtype, const std::vector<ScanVariant>& variants, int stride) const {
    int64_t cells = 0;
    for_cells(stride, [&](StateKind kind, const Case& c) {
      const Inputs in = sequence_problem(kind, c.cuts.total(), c.document_starts);
      const Result recurrence = naive::state_mixer(in), alone = run_mix_alone(in, dtype).result;
      for (const ScanVariant& variant : variants) {
        SCOPED_TRACE(concat(variant.name, ", ", name(kind), ", ", c.name));
        const MixRun run = run_mix(for_any_shard(variant.make), in, c.cuts, dtype);
        expect_result(run.result, recurrence, dtype);
        expect_result(run.result, alone, dtype);
        EXPECT_TRUE(run.ledgers_agree);
        ++cells;
      }
    });
    print_cells(cells);
  }

  void compare_bits(const std::vector<ScanVariant>& variants, int stride) const {
    int64_t cells = 0;
    for (const DType dtype : {DType::f64, DType::f32}) {
      for_cells(stride, [&](StateKind kind, const Case& c) {
        const Inputs in = sequence_problem(kind, c.cuts.total(), c.document_starts);
        const MixRun chain = run_mix(for_any_shard(variants[0].make), in, c.cuts, dtype);
        for (const ScanVariant& variant : variants) {
          if (!is_of_the_chains_order(variant)) continue;
          EXPECT_TRUE(same_bits(run_mix(for_any_shard(variant.make), in, c.cuts, dtype), chain))
              << variant.name << ", " << name(kind) << ", " << c.name;
          ++cells;
        }
      });
    }
    print_cells(cells);
  }

  /// Of more tokens than a chunk, of one, of none.
  void run_long_shards() const {
    std::vector<int64_t> sizes;
    for (int p = 0; p < ranks(); ++p)
      sizes.push_back(std::vector<int64_t>{70, 1, 130, 0, 64}[p % 5]);
    const Cuts cuts = Cuts::of_sizes(sizes);
    int64_t cells = 0;
    for (const StateKind kind : kStateKinds) {
      for (const Problem& problem : problems_of(kind)) {
        Inputs in = sequence_problem(kind, cuts.total());
        problem.change(in);
        const Result recurrence = naive::state_mixer(in);
        for (const ScanVariant& variant : scans_of_the_table()) {
          for (const DType dtype : {DType::f64, DType::f32}) {
            SCOPED_TRACE(concat(variant.name, ", ", name(kind), ", ", name(dtype), ", ",
                                problem.name, ", ", ranks(), " ranks"));
            expect_result(run_mix(for_any_shard(variant.make), in, cuts, dtype).result, recurrence,
                          dtype, problem.floor);
            ++cells;
          }
        }
      }
    }
    print_cells(cells);
  }

  /// What the scan hands to a rank is what the rank before (or behind) gives away, by its own
  /// kernels and by the recurrence over all tokens before (or behind).
  void compare_boundaries(const std::vector<ScanVariant>& variants, int stride) const;
};

INSTANTIATE_TEST_SUITE_P(Ranks, MixStates, testing::Values(1, 2, 3, 4, 5, 8));

TEST_P(MixStates, EqualOneRankAndTheRecurrenceInF64) {
  run_grid(DType::f64, scans_of_the_table(), 5);
}
TEST_P(MixStates, EqualOneRankAndTheRecurrenceInF32) {
  run_grid(DType::f32, scans_of_the_table(), 11);
}
TEST_P(MixStates, EqualOneRankAndTheRecurrenceDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, scans_of_the_table(), 19);
}
TEST_P(MixStates, OfTheChainsOrderAreTheSameBits) {
  compare_bits(scan_variants(), 23);
}

TEST_P(MixStates, EqualTheRecurrenceOnLongShards) {
  if (ranks() == 5) run_long_shards();
}

// ---- What enters and leaves

/// Notes what the sound scan hands to each rank. It waits for it, so that nothing is hidden.
class Watched final : public StateScan {
 public:
  struct Seen {
    EnteringStates prefix, suffix;
    std::mutex mutex;
  };
  Watched(const MakeScan& make, Seen& seen) : sound_(make()), seen_(seen) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    sound_->begin(element, entering, direction, tag, ctx).finish();
    const std::lock_guard lock(seen_.mutex);
    EnteringStates& states = direction == ScanDirection::prefix ? seen_.prefix : seen_.suffix;
    states[ctx.mesh.at(Axis::sequence)] = values(entering);
    return PendingScan(entering, {}, ctx.compute);
  }

 private:
  std::unique_ptr<StateScan> sound_;
  Seen& seen_;
};

void MixStates::compare_boundaries(const std::vector<ScanVariant>& variants, int stride) const {
  int64_t cells = 0;
  for_cells(stride, [&](StateKind kind, const Case& c) {
    const Inputs in = sequence_problem(kind, c.cuts.total(), c.document_starts);
    for (const ScanVariant& variant : variants) {
      SCOPED_TRACE(concat(variant.name, ", ", name(kind), ", ", c.name));
      Watched::Seen seen{EnteringStates(ranks()), EnteringStates(ranks()), {}};
      const MixRun run =
          run_mix([&](const StateShard&) { return std::make_unique<Watched>(variant.make, seen); },
                  in, c.cuts, DType::f64);
      for (int p = 0; p < ranks(); ++p) {
        SCOPED_TRACE(concat("rank ", p));
        const Inputs before = cut(in, 0, c.cuts.begin(p));
        EXPECT_LE(relative_rms(run.entering[p], naive::state_mixer(before).hT), 1e-12);
        if (p == 0) continue;
        const Inputs behind = cut(in, c.cuts.begin(p), in.tokens);
        EXPECT_TRUE(weft::same_bits(run.entering[p], seen.prefix[p]));
        EXPECT_LE(relative_rms(seen.suffix[p - 1], naive::state_mixer(behind).dh0), 1e-12);
        EXPECT_LE(relative_rms(run.dh0[p], seen.suffix[p - 1]), 1e-12);
        Inputs previous = cut(in, c.cuts.begin(p - 1), c.cuts.begin(p));
        previous.h0 = run.entering[p - 1];
        EXPECT_LE(relative_rms(run.entering[p], run_mixer(previous).result.hT), 1e-12);
      }
      ++cells;
    }
  });
  print_cells(cells);
}

TEST_P(MixStates, BoundaryValuesAreThoseOfTheNeighbours) {
  compare_boundaries(scans_of_the_table(), 11);
}

/// With an entering state that is kept nothing is sent.
TEST_P(MixStates, AgainWithAKeptStateAreTheSameBits) {
  int64_t cells = 0;
  for_cells(19, [&](StateKind kind, const Case& c) {
    const Inputs in = sequence_problem(kind, c.cuts.total(), c.document_starts);
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const ScanVariant& variant : scans_of_the_table()) {
        run_ranks(ranks(), [&](World& world) {
          TestRank rank(world, sequence_mesh(ranks()), 4 << 20);
          StepContext& ctx = rank.context;
          const int me = world.rank();
          const Inputs part = cut(in, c.cuts.begin(me), c.cuts.end(me));
          const MixerShard first(part, dtype, ctx.compute), again(part, dtype, ctx.compute);
          mix_states(first.shard(), first.out, first.entering, variant.make().get(), ctx);
          const auto sent = rank.counted.entries(), booked = rank.predicted.entries();
          const int64_t calls = ctx.mesh.along(Axis::sequence).calls();
          mix_states(again.shard(), again.out, first.entering, nullptr, ctx);
          EXPECT_TRUE(weft::same_bits(values(again.out.on_host(ctx.compute)),
                                      values(first.out.on_host(ctx.compute))))
              << variant.name << ", " << name(kind) << ", " << c.name << ", rank " << me;
          EXPECT_EQ(rank.counted.entries(), sent);
          EXPECT_EQ(rank.predicted.entries(), booked);
          EXPECT_EQ(ctx.mesh.along(Axis::sequence).calls(), calls);
          EXPECT_EQ(sent.empty(), ranks() == 1);
        });
        ++cells;
      }
    }
  });
  print_cells(cells);
}

// ---- Whole grids

TEST_P(MixStates, FullGridInF64) {
  run_grid(DType::f64, scan_variants(), 1);
}
TEST_P(MixStates, FullGridInF32) {
  run_grid(DType::f32, scan_variants(), 1);
}
TEST_P(MixStates, FullGridOfLongShards) {
  run_long_shards();
}
TEST_P(MixStates, FullGridOfBoundaryValues) {
  compare_boundaries(scan_variants(), 1);
}
TEST_P(MixStates, FullGridDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, scans_of_the_table(), 1);
}
TEST_P(MixStates, FullGridOfTheChainsOrder) {
  compare_bits(scan_variants(), 1);
}

}  // namespace
}  // namespace weft
