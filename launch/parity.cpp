#include "launch/parity.hpp"

#include <algorithm>
#include <cmath>

#include "launch/mixer_oracle.hpp"

namespace weft {
namespace {

using Entry = Recording::Entry;

double rms_of_all(const std::vector<Entry>& entries) {
  double squares = 0, count = 0;
  for (const Entry& entry : entries) {
    for (const double x : entry.values) squares += x * x;
    count += static_cast<double>(entry.values.size());
  }
  return count == 0 ? 0.0 : std::sqrt(squares / count);
}

/// RMS(got - reference) / max(RMS(reference), floor); infinite when anything is not a number, so
/// that no tolerance admits it.
double error_of(const std::vector<double>& got, const std::vector<double>& reference,
                double floor) {
  if (got.size() != reference.size()) return INFINITY;
  std::vector<double> difference(got.size());
  for (size_t i = 0; i < got.size(); ++i) difference[i] = got[i] - reference[i];
  const double off = rms_of(difference), scale = std::max(rms_of(reference), floor);
  if (!std::isfinite(off) || !std::isfinite(scale)) return INFINITY;
  return off == 0 ? 0.0 : off / scale;
}

/// The distance to the next number of the type that a parameter is updated in.
double spacing(double value, DType dtype) {
  const double size = std::abs(value);
  return dtype == DType::f64 ? std::nextafter(size, INFINITY) - size
                             : std::nextafter(static_cast<float>(size), INFINITY) - size;
}

/// The updates of a step: after - before.
std::vector<Entry> updates_of(const Recording& run, size_t step) {
  std::vector<Entry> updates = run.parameters[step + 1];
  for (size_t i = 0; i < updates.size(); ++i) {
    for (size_t j = 0; j < updates[i].values.size(); ++j) {
      updates[i].values[j] -= run.parameters[step][i].values[j];
    }
  }
  return updates;
}

/// `got` moved towards `reference` by the spacing of the parameters they were stored in: two equal
/// updates, each rounded to the nearest parameter, may end one spacing apart. A parameter near 1 in
/// f32 has a spacing of 1.2e-7, which is 4e-4 of an update of 3e-4.
std::vector<double> without_storage_rounding(std::vector<double> got,
                                             const std::vector<double>& reference,
                                             const std::vector<double>& parameter, DType dtype) {
  for (size_t i = 0; i < got.size(); ++i) {
    const double off = got[i] - reference[i];
    if (!std::isfinite(off)) continue;
    const double excess = std::max(0.0, std::abs(off) - spacing(parameter[i], dtype));
    got[i] = reference[i] + std::copysign(excess, off);
  }
  return got;
}

/// "layers.3" of "layers.3.mixer" and of "model.layers.3.mlp.up_proj.weight".
std::string layer_of(const std::string& name) {
  const size_t at = name.find("layers.");
  if (at != std::string::npos) return name.substr(at, name.find('.', at + 7) - at);
  return name.find("embed") != std::string::npos ? "embedding" : "head";
}

bool is_backward(const std::string& name) {
  return name[name.rfind('.') + 1] == 'd';  // "dembedding", "layers.3.dmlp"
}

/// Collects errors in the order in which a step computes, and what they add up to.
class Comparison {
 public:
  Comparison(const Config& config, ParityReport& report) : report_(report) {
    report_.rows.push_back({.layer = "embedding"});
    for (int64_t i = 0; i < config.model.num_hidden_layers; ++i) {
      report_.rows.push_back({.layer = concat("layers.", i)});
    }
    report_.rows.push_back({.layer = "head"});
  }

  /// `tensor` of the layer's row is off by `error`; `largest` keeps the maximum of its kind.
  void add(const std::string& tensor, double error, double tolerance,
           double ParityReport::Row::*column, double& largest) {
    const std::string layer = layer_of(tensor);
    for (ParityReport::Row& row : report_.rows) {
      if (row.layer == layer) row.*column = std::max(row.*column, error);
    }
    note(layer, tensor, error, tolerance, largest);
  }

  void note(const std::string& layer, const std::string& tensor, double error, double tolerance,
            double& largest) {
    largest = std::max(largest, error);
    if (error / tolerance > worst_) {
      worst_ = error / tolerance;
      report_.worst = tensor;
    }
    if (!(error <= tolerance) && report_.first.empty()) {
      report_.first = layer;
      report_.first_tensor = tensor;
    }
  }

 private:
  double worst_ = -1;  // of errors over tolerances
  ParityReport& report_;
};

/// Two recordings and how far their tensors may differ.
class RunPair {
 public:
  RunPair(const Config& config, const Recording& reference, const Recording& run,
          const Recording* exact, ParityReport& report)
      : config_(config),
        reference_(reference),
        run_(run),
        exact_(exact),
        comparison_(config, report),
        report_(report) {}

  void compare(const SampleSource& source) {
    compare_activations(/*backward=*/false);
    compare_loss(0);
    compare_activations(/*backward=*/true);
    for (int64_t layer = 0; layer < config_.model.num_hidden_layers; ++layer) {
      compare_with_oracle(source, layer);
    }
    for (size_t step = 0; step < reference_.losses.size(); ++step) {
      if (step > 0) compare_loss(step);
      compare_gradients(step);
      compare_updates(step);
    }
  }

 private:
  /// Of a value whose reference is off from the exact one by so much, 0 where there is none.
  double tolerance(double reference_error) const {
    return parity_tolerance(config_.train.precision, reference_error);
  }

  /// The same for one of the tensors of a kind.
  double tolerance(const std::vector<Entry>& reference, const std::vector<Entry>* exact,
                   const std::string& name, double floor) const {
    if (exact == nullptr) return tolerance(0);
    const Entry* found = Recording::find(*exact, name);
    WEFT_CHECK(found != nullptr, name, " is not in the exact run");
    return tolerance(error_of(Recording::find(reference, name)->values, found->values, floor));
  }

  void compare_activations(bool backward) {
    const double floor = 1e-6 * rms_of_all(reference_.activations);
    for (const Entry& entry : reference_.activations) {
      if (is_backward(entry.name) != backward) continue;
      const Entry* got = Recording::find(run_.activations, entry.name);
      comparison_.add(entry.name, got ? error_of(got->values, entry.values, floor) : INFINITY,
                      tolerance(reference_.activations, exact_ ? &exact_->activations : nullptr,
                                entry.name, floor),
                      backward ? &ParityReport::Row::backward : &ParityReport::Row::forward,
                      report_.activation);
    }
  }

  void compare_loss(size_t step) {
    const double reference = reference_.losses[step];
    comparison_.note(
        "head", concat("loss of step ", step), loss_error(reference, run_.losses[step]),
        tolerance(exact_ ? loss_error(exact_->losses[step], reference) : 0), report_.loss);
  }

  /// The mixer of one layer, from the q, k, v and dout that the run itself had.
  void compare_with_oracle(const SampleSource& source, int64_t layer) {
    for (const OracleValue& value : mixer_oracle(config_, source, layer, run_)) {
      comparison_.add(value.name + " against the oracle",
                      error_of(*value.recorded, value.expected, value.floor),
                      oracle_tolerance(config_.train.precision), &ParityReport::Row::oracle,
                      report_.oracle);
    }
  }

  void compare_gradients(size_t step) {
    const std::vector<Entry>& reference = reference_.gradients[step];
    const std::vector<double> errors = gradient_errors(reference, run_.gradients[step]);
    std::vector<double> from_exact(errors.size());
    if (exact_) from_exact = gradient_errors(exact_->gradients[step], reference);
    for (size_t i = 0; i < reference.size(); ++i) {
      comparison_.add(reference[i].name, errors[i], tolerance(from_exact[i]),
                      &ParityReport::Row::gradient, report_.grad);
    }
  }

  void compare_updates(size_t step) {
    const std::vector<Entry> expected = updates_of(reference_, step), got = updates_of(run_, step);
    const std::vector<Entry> exact = exact_ ? updates_of(*exact_, step) : std::vector<Entry>{};
    const double floor = 1e-6 * rms_of_all(expected);
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::vector<double>& wanted = expected[i].values;
      report_.param_stored = std::max(report_.param_stored, error_of(got[i].values, wanted, floor));
      const std::vector<double> computed =
          without_storage_rounding(got[i].values, wanted, reference_.parameters[step + 1][i].values,
                                   config_.train.precision);
      comparison_.add(expected[i].name, error_of(computed, wanted, floor),
                      tolerance(expected, exact_ ? &exact : nullptr, expected[i].name, floor),
                      &ParityReport::Row::update, report_.param);
    }
  }

  const Config& config_;
  const Recording& reference_;
  const Recording& run_;
  const Recording* exact_;
  Comparison comparison_;
  ParityReport& report_;
};

}  // namespace

double parity_tolerance(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-11;
    case DType::bf16:
      return 0x1p-8;
    default:
      return 1e-4;
  }
}

double parity_tolerance(DType dtype, double reference_error) {
  return std::max(parity_tolerance(dtype), 2 * reference_error);
}

double oracle_tolerance(DType dtype) {
  return dtype == DType::bf16 ? 8e-3 : parity_tolerance(dtype);
}

double loss_error(double reference, double run) {
  return error_of({run}, {reference}, 0.0);
}

std::vector<double> gradient_errors(const std::vector<Recording::Entry>& reference,
                                    const std::vector<Recording::Entry>& run) {
  WEFT_CHECK(run.size() == reference.size(), run.size(), " tensors, not ", reference.size());
  const double floor = 1e-6 * rms_of_all(reference);
  std::vector<double> errors;
  for (size_t i = 0; i < reference.size(); ++i) {
    errors.push_back(error_of(run[i].values, reference[i].values, floor));
  }
  return errors;
}

Config on_one_rank(Config config) {
  config.mesh = MeshShape{};
  config.pipeline = PipelineConfig{};
  return config;
}

Config in_f32(Config config) {
  config.train.precision = DType::f32;
  return config;
}

ParityReport compare_runs(const Config& config, const SampleSource& source,
                          const Recording& reference, const Recording& run,
                          const Recording* exact) {
  ParityReport report;
  RunPair(config, reference, run, exact, report).compare(source);
  report.ok = report.first.empty();
  return report;
}

}  // namespace weft
