// What weft scale holds a first step to, from made-up numbers, and where it puts arenas.
#include "launch/scale_steps.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "launch/parity.hpp"

namespace weft {
namespace {

/// A step with gradients of two parameters, a and b.
FirstStep step_of(double loss, const std::vector<double>& a, const std::vector<double>& b) {
  return {.loss = loss, .gradients = {{"a", a}, {"b", b}}};
}

TEST(ReferenceStep, NamesTheLargestErrorOfItsGradients) {
  const ReferenceStep reference(step_of(2, {1, -1}, {4, 4}), DType::f32);
  const StepErrors none = reference.errors_of(step_of(2, {1, -1}, {4, 4}));
  EXPECT_EQ(none.loss, 0);
  EXPECT_EQ(none.gradient, 0);
  EXPECT_EQ(none.of_tolerance, 0);
  const StepErrors errors =
      reference.errors_of(step_of(2 * (1 + 1e-5), {1 + 2e-5, -1 - 2e-5}, {4 + 2e-4, 4 + 2e-4}));
  EXPECT_NEAR(errors.loss, 1e-5, 1e-15);
  EXPECT_NEAR(errors.gradient, 5e-5, 1e-15);
  EXPECT_EQ(errors.worst_gradient, "b");
  EXPECT_NEAR(errors.of_tolerance, 0.5, 1e-9);
  EXPECT_EQ(errors.excess, "");
}

TEST(ReferenceStep, SaysWhatIsFarthestAboveItsTolerance) {
  const ReferenceStep reference(step_of(2, {1, -1}, {4, 4}), DType::f32);
  const auto excess = [&](const FirstStep& run) { return reference.errors_of(run).excess; };
  EXPECT_EQ(excess(step_of(2 * (1 + 3e-4), {1, -1}, {4 * (1 + 2e-4), 4 * (1 + 2e-4)})),
            "the loss is off by 3.00e-04, the tolerance is 1e-04");
  EXPECT_EQ(excess(step_of(2 * (1 + 3e-4), {1, -1}, {4 * (1 + 4e-4), 4 * (1 + 4e-4)})),
            "the gradient of b is off by 4.00e-04, the tolerance is 1e-04");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(excess(step_of(nan, {1, -1}, {4, 4})),
            "the loss is off by inf, the tolerance is 1e-04");
  EXPECT_EQ(excess(step_of(2, {1, nan}, {4, 4})),
            "the gradient of a is off by inf, the tolerance is 1e-04");
}

/// One rank's loss is off from f32 by 2^-7, its gradient of a by 2^-5 and that of b by nothing.
TEST(ReferenceStep, AllowsTwiceWhatBf16RoundsTensorByTensor) {
  const FirstStep alone = step_of(1 + 0x1p-7, {1 + 0x1p-5}, {4});
  const auto run = [&](double loss, double a, double b) {
    return step_of(alone.loss * (1 + loss), {(1 + 0x1p-5) * (1 + a)}, {4 * (1 + b)});
  };
  ReferenceStep reference(alone, DType::bf16);
  EXPECT_NEAR(reference.errors_of(run(0, 0x1p-7, 0)).of_tolerance, 2, 1e-9);

  reference.allow_rounding(step_of(1, {1}, {4}));
  const StepErrors within = reference.errors_of(run(0x1p-7, 0x1p-5, 0x1p-9));
  EXPECT_NEAR(within.of_tolerance, 0.5, 1e-9);
  EXPECT_EQ(within.excess, "");
  EXPECT_NE(reference.errors_of(run(0x1.1p-6, 0, 0)).excess.find("the loss"), std::string::npos);

  const StepErrors above = reference.errors_of(run(0, 0x1p-5, 0x1p-7));
  EXPECT_EQ(above.worst_gradient, "a");
  EXPECT_NEAR(above.of_tolerance, 2, 1e-9);
  EXPECT_EQ(above.excess, "the gradient of b is off by 7.81e-03, the tolerance is 4e-03");
}

TEST(SharedBytes, AreThoseOfTheMemoryThatHasMost) {
  std::vector<StepPlan> plans(5);
  for (size_t rank = 0; rank < plans.size(); ++rank) {
    plans[rank].memory.state = int64_t{1} << rank;
    plans[rank].memory.frame_slots = {int64_t{1} << rank};
  }
  EXPECT_EQ(shared_bytes(plans, 1), 2 * (1 + 2 + 4 + 8 + 16));
  EXPECT_EQ(shared_bytes(plans, 2), 2 * (1 + 4 + 16));
  EXPECT_EQ(shared_bytes(plans, 3), 2 * (2 + 16));
  EXPECT_EQ(shared_bytes(plans, 4), 2 * (1 + 16));
  EXPECT_EQ(shared_bytes(plans, 8), 2 * 16);
}

}  // namespace
}  // namespace weft
