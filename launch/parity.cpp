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

/// The distance to the next number of the parameter's type.
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
  Comparison(const Config& config, ParityReport& report)
      : tolerance_(parity_tolerance(config.train.precision)), report_(report) {
    report_.rows.push_back({.layer = "embedding"});
    for (int64_t i = 0; i < config.model.num_hidden_layers; ++i) {
      report_.rows.push_back({.layer = concat("layers.", i)});
    }
    report_.rows.push_back({.layer = "head"});
  }

  /// `tensor` of the layer's row is off by `error`; `largest` keeps the maximum of its kind.
  void add(const std::string& tensor, double error, double ParityReport::Row::*column,
           double& largest) {
    const std::string layer = layer_of(tensor);
    for (ParityReport::Row& row : report_.rows) {
      if (row.layer == layer) row.*column = std::max(row.*column, error);
    }
    note(layer, tensor, error, largest);
  }

  void note(const std::string& layer, const std::string& tensor, double error, double& largest) {
    largest = std::max(largest, error);
    if (error > worst_) {
      worst_ = error;
      report_.worst = tensor;
    }
    if (error > tolerance_ && report_.first.empty()) {
      report_.first = layer;
      report_.first_tensor = tensor;
    }
  }

 private:
  double tolerance_;
  double worst_ = -1;
  ParityReport& report_;
};

/// The mixer of one layer, from the q, k, v and dout that the run itself had.
void compare_with_oracle(const Config& config, const SampleSource& source, int64_t layer,
                         const Recording& run, Comparison& comparison, ParityReport& report) {
  for (const OracleValue& value : mixer_oracle(config, source, layer, run)) {
    comparison.add(value.name + " against the oracle",
                   error_of(*value.recorded, value.expected, value.floor),
                   &ParityReport::Row::oracle, report.oracle);
  }
}

void compare_activations(const std::vector<Entry>& reference, const std::vector<Entry>& run,
                         bool backward, Comparison& comparison, ParityReport& report) {
  const double floor = 1e-6 * rms_of_all(reference);
  for (const Entry& entry : reference) {
    if (is_backward(entry.name) != backward) continue;
    const Entry* got = Recording::find(run, entry.name);
    comparison.add(entry.name, got ? error_of(got->values, entry.values, floor) : INFINITY,
                   backward ? &ParityReport::Row::backward : &ParityReport::Row::forward,
                   report.activation);
  }
}

void compare_gradients(const std::vector<Entry>& reference, const std::vector<Entry>& run,
                       Comparison& comparison, ParityReport& report) {
  const std::vector<double> errors = gradient_errors(reference, run);
  for (size_t i = 0; i < reference.size(); ++i) {
    comparison.add(reference[i].name, errors[i], &ParityReport::Row::gradient, report.grad);
  }
}

void compare_updates(const Config& config, const Recording& reference, const Recording& run,
                     size_t step, Comparison& comparison, ParityReport& report) {
  const std::vector<Entry> expected = updates_of(reference, step), got = updates_of(run, step);
  const double floor = 1e-6 * rms_of_all(expected);
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::vector<double>& wanted = expected[i].values;
    report.param_stored = std::max(report.param_stored, error_of(got[i].values, wanted, floor));
    const std::vector<double> computed = without_storage_rounding(
        got[i].values, wanted, reference.parameters[step + 1][i].values, config.train.precision);
    comparison.add(expected[i].name, error_of(computed, wanted, floor), &ParityReport::Row::update,
                   report.param);
  }
}

}  // namespace

double parity_tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-11 : 1e-4;
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
  return config;
}

ParityReport compare_runs(const Config& config, const SampleSource& source,
                          const Recording& reference, const Recording& run) {
  ParityReport report;
  Comparison comparison(config, report);
  compare_activations(reference.activations, run.activations, false, comparison, report);
  const auto compare_loss = [&](size_t step) {
    const double error = loss_error(reference.losses[step], run.losses[step]);
    comparison.note("head", concat("loss of step ", step), error, report.loss);
  };
  compare_loss(0);
  compare_activations(reference.activations, run.activations, true, comparison, report);
  for (int64_t layer = 0; layer < config.model.num_hidden_layers; ++layer) {
    compare_with_oracle(config, source, layer, run, comparison, report);
  }
  for (size_t step = 0; step < reference.losses.size(); ++step) {
    if (step > 0) compare_loss(step);
    compare_gradients(reference.gradients[step], run.gradients[step], comparison, report);
    compare_updates(config, reference, run, step, comparison, report);
  }
  report.ok = report.first.empty();
  return report;
}

}  // namespace weft
