// What the mixer of a layer should have computed, by the naive kernels in f64, from the inputs that
// a recorded run itself had.
#pragma once

#include "launch/recording.hpp"
#include "launch/samples.hpp"

namespace weft {

/// (mean of v^2)^1/2, 0 of nothing.
double rms_of(const std::vector<double>& v);

/// A tensor of a recording beside what the oracle makes of it.
struct OracleValue {
  std::string name;
  const std::vector<double>* recorded;  // in the recording
  std::vector<double> expected;
  double floor;  // an RMS below which a relative error says nothing
};

/// The outputs and gradients of one layer's mixer in step 0 of `run`. Gradients of a P layer's
/// projections are among them.
std::vector<OracleValue> mixer_oracle(const Config& config, const SampleSource& source,
                                      int64_t layer, const Recording& run);

}  // namespace weft
