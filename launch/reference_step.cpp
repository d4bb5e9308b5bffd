#include "launch/reference_step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "launch/parity.hpp"

namespace weft {
namespace {

/// Keeps the error that is farthest above what it may be, or nearest below.
void hold(const std::string& what, double error, double tolerance, StepErrors& errors) {
  const double share = error / tolerance;
  if (share <= errors.of_tolerance) return;
  errors.of_tolerance = share;
  if (share <= 1) return;
  errors.excess =
      fmt::format("the {} is off by {:.2e}, the tolerance is {:.0e}", what, error, tolerance);
}

}  // namespace

ReferenceStep::ReferenceStep(FirstStep step, DType dtype)
    : step_(std::move(step)),
      dtype_(dtype),
      loss_tolerance_(parity_tolerance(dtype)),
      gradient_tolerances_(step_.gradients.size(), parity_tolerance(dtype)) {}

void ReferenceStep::allow_rounding(const FirstStep& exact) {
  loss_tolerance_ = parity_tolerance(dtype_, loss_error(exact.loss, step_.loss));
  const std::vector<double> errors = gradient_errors(exact.gradients, step_.gradients);
  for (size_t i = 0; i < errors.size(); ++i) {
    gradient_tolerances_[i] = parity_tolerance(dtype_, errors[i]);
  }
}

StepErrors ReferenceStep::errors_of(const FirstStep& run) const {
  const std::vector<double> of_gradients = gradient_errors(step_.gradients, run.gradients);
  const auto largest = std::ranges::max_element(of_gradients);
  StepErrors errors;
  errors.loss = loss_error(step_.loss, run.loss);
  errors.gradient = *largest;
  errors.worst_gradient = run.gradients[largest - of_gradients.begin()].name;
  hold("loss", errors.loss, loss_tolerance_, errors);
  for (size_t i = 0; i < of_gradients.size(); ++i) {
    hold("gradient of " + run.gradients[i].name, of_gradients[i], gradient_tolerances_[i], errors);
  }
  return errors;
}

}  // namespace weft
