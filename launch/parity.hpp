// Parity: a run on any mesh against the run on one rank, and its softmax mixers against the naive
// oracle. Two runs that share a mistake agree; the oracle shares none.
#pragma once

#include <string>
#include <vector>

#include "launch/recording.hpp"

namespace weft {

/// How far a comparison may be off: RMS(difference) / max(RMS(reference), 1e-6 x the RMS over all
/// tensors of that kind), for updates beyond the spacing of the parameters they are stored in.
/// 1e-11 in f64, 1e-4 in f32, in bf16 one rounding, 2^-8. docs/numerics.md derives all three.
double parity_tolerance(DType dtype);
/// The same of a value whose reference is itself off by `reference_error` from the same run in f32,
/// 0 where there is none: twice that where it is more. Two runs that round apart may differ by it.
double parity_tolerance(DType dtype, double reference_error);
/// The same of mixers against the oracle, which starts from what the run itself had: in bf16 that
/// of a kernel, 8e-3.
double oracle_tolerance(DType dtype);

/// The error of a run's loss by that measure, infinite when either is not a number.
double loss_error(double reference, double run);
/// The same of the gradients of a step, tensor by tensor. Both name the same tensors in one order.
std::vector<double> gradient_errors(const std::vector<Recording::Entry>& reference,
                                    const std::vector<Recording::Entry>& run);

struct ParityReport {
  struct Row {
    std::string layer;  // "embedding", "layers.<i>", "head"
    double forward = 0, backward = 0, gradient = 0, update = 0;
    double oracle = 0;  // of the layer's mixer; 0 where there is none
  };

  bool ok = false;
  double loss = 0, grad = 0, param = 0;  // the largest of each kind, over all steps and tensors
  double activation = 0, oracle = 0;
  double param_stored = 0;   // param before the rounding of stored parameters is taken off
  std::string worst;         // the tensor that is farthest off
  std::string first;         // the layer in which a step first departs; empty when none does
  std::string first_tensor;  // and the tensor of it
  std::vector<Row> rows;
};

/// Compares run with reference, both of `config` but for the mesh, and the run's mixers with the
/// oracle. `source` tells the documents of the samples. `exact`, for bf16: the reference in f32.
ParityReport compare_runs(const Config& config, const SampleSource& source,
                          const Recording& reference, const Recording& run,
                          const Recording* exact = nullptr);

/// `config` on one rank.
Config on_one_rank(Config config);
/// `config` in f32.
Config in_f32(Config config);

}  // namespace weft
