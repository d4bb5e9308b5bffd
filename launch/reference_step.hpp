// What one rank computes in a first step, and how far from it the same step on more ranks may be.
#pragma once

#include <string>
#include <vector>

#include "launch/recording.hpp"

namespace weft {

/// The first step of a run as all ranks computed it together.
struct FirstStep {
  double loss = 0;
  std::vector<Recording::Entry> gradients;  // of all ranks, before clipping
};

/// How far a first step is from one rank's, in the measure of parity.
struct StepErrors {
  double loss = 0;
  double gradient = 0;         // the largest of all parameters' gradients
  std::string worst_gradient;  // and whose it is
  double of_tolerance = 0;     // the largest of all errors over what the value may be off by
  std::string excess;          // which that is and by how much, where it is above 1
};

class ReferenceStep {
 public:
  /// `step` is one rank's, computed in `dtype`.
  ReferenceStep(FirstStep step, DType dtype);

  DType dtype() const { return dtype_; }

  /// For bf16: allows what its rounding makes of the step, from `exact`, the same in f32.
  void allow_rounding(const FirstStep& exact);

  /// `run` names the same gradients in the same order.
  StepErrors errors_of(const FirstStep& run) const;

 private:
  FirstStep step_;
  DType dtype_;
  double loss_tolerance_;
  std::vector<double> gradient_tolerances_;  // by gradient
};

}  // namespace weft
