// State mixers over the sequence axis against cases made by another program (mixer_golden.hpp). In
// these a state enters the first token and the last state has a gradient.
#include <gtest/gtest.h>

#include "src/kernels/pointwise.hpp"
#include "src/kernels/state_combine.hpp"
#include "tests/mix_states_testing.hpp"
#include "tests/mixer_golden.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;

/// A scan with something at its ends: h0 enters the first rank, dhT the last. The first of a
/// direction then gives away A . h0 + b instead of b, and keeps h0; nothing else changes.
class Bounded final : public StateScan {
 public:
  Bounded(const MakeScan& make, const Inputs& in) : sound_(make()), in_(in) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    const bool prefix = direction == ScanDirection::prefix;
    if (ctx.mesh.at(Axis::sequence) != (prefix ? 0 : ctx.mesh.size(Axis::sequence) - 1)) {
      return sound_->begin(element, entering, direction, tag, ctx);
    }
    const auto [B, H, K, V] = std::tuple(in_.batch, in_.heads, in_.key_dim, in_.value_dim);
    const Owned boundary =
        from_values(element.state.dtype, {B, H, K, V}, prefix ? in_.h0 : in_.dhT);
    const Tensor leaving = ctx.scratch.allocate("bounded", element.state.dtype, {B, H, K, V});
    const auto by_states = [&](const Tensor& state) { return state.reshape({B * H, K, V}); };
    state_combine({.out = by_states(leaving),
                   .transition = transition_by_states(element.transition),
                   .entering = by_states(boundary),
                   .local = by_states(element.state),
                   .transposed = !prefix},
                  ctx.compute);
    sound_->begin({element.transition, leaving}, entering, direction, tag, ctx).finish();
    copy({.y = entering, .x = boundary}, ctx.compute);
    return PendingScan(entering, {}, ctx.compute);
  }

 private:
  static Tensor transition_by_states(const Tensor& a) {
    const int64_t R = a.dim(0) * a.dim(1);
    if (a.ndim == 2) return a.reshape({R});
    if (a.ndim == 3) return a.reshape({R, a.dim(2)});
    return a.reshape({R, a.dim(2), a.dim(3)});
  }

  std::unique_ptr<StateScan> sound_;
  const Inputs& in_;
};

class MixGolden : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Files, MixGolden, testing::ValuesIn(mixer_golden_cases()),
                         [](const auto& param) { return test_name(param.param); });

TEST_P(MixGolden, AgreesOverEveryScan) {
  const SafetensorsFile file(golden_folder() + "/" + GetParam());
  const Inputs in = mixer_inputs(file);
  int64_t cells = 0;
  for (const int ranks : {2, 3, 4}) {
    const Cuts cuts = Cuts::even(in.tokens, ranks);
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const ScanVariant& variant :
           dtype == DType::f64 ? scan_variants() : scans_of_the_table()) {
        SCOPED_TRACE(concat(variant.name, ", ", ranks, " ranks, ", name(dtype)));
        MixRun run =
            run_mix([&](const StateShard&) { return std::make_unique<Bounded>(variant.make, in); },
                    in, cuts, dtype);
        // What the last rank passes on.
        Inputs last = cut(in, cuts.begin(ranks - 1), in.tokens);
        last.h0 = run.entering.back();
        run.result.hT = run_mixer(last, {.dtype = dtype}).result.hT;
        expect_agreement(file, run.result, dtype);
        ++cells;
      }
    }
  }
  print_cells(cells);
}

}  // namespace
}  // namespace weft
