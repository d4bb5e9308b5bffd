#include "launch/parity.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/naive/projected_attention.hpp"

namespace weft {
namespace {

using Entry = Recording::Entry;

double rms(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return v.empty() ? 0.0 : std::sqrt(squares / static_cast<double>(v.size()));
}

double rms(const std::vector<Entry>& entries) {
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
  const double off = rms(difference), scale = std::max(rms(reference), floor);
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

/// The keys that every token of every sample of step 0 sees, from the documents alone.
void visible_keys(const Config& config, const SampleSource& source, int64_t layer,
                  naive::AttentionInputs& in) {
  const int64_t N = config.data.seq_length;
  const bool windowed = config.model.mixer_of(layer) == 'W';
  for (int64_t i = 0; i < config.train.global_batch_size; ++i) {
    const SegmentMap map = source.segments(sample_at(config.train.seed, i, source.samples()));
    for (int64_t t = 0; t < N; ++t) {
      int64_t begin = map.document_begin(t);
      if (windowed) begin = std::max(begin, t - config.model.window_of(layer) + 1);
      in.key_begin.push_back(begin);
      in.key_end.push_back(config.model.causal ? t + 1 : map.document_end(t));
    }
  }
}

const std::vector<double>& recorded(const std::vector<Entry>& entries, const std::string& name) {
  const Entry* entry = Recording::find(entries, name);
  WEFT_CHECK(entry, name, " was not recorded");
  return entry->values;
}

/// The mixer of one layer, from the q, k, v and dout that the run itself had.
void compare_with_oracle(const Config& config, const SampleSource& source, int64_t layer,
                         const Recording& run, Comparison& comparison, ParityReport& report) {
  const std::string prefix = concat("layers.", layer, ".");
  const auto values = [&](const char* name) -> const std::vector<double>& {
    return recorded(run.activations, prefix + name);
  };
  const auto compare = [&](const std::string& name, const std::vector<double>& got,
                           const std::vector<double>& reference, double floor) {
    comparison.add(name + " against the oracle", error_of(got, reference, floor),
                   &ParityReport::Row::oracle, report.oracle);
  };
  const ModelConfig& model = config.model;
  naive::AttentionInputs in{.batch = config.train.global_batch_size,
                            .queries = config.data.seq_length,
                            .keys = config.data.seq_length,
                            .heads = model.num_attention_heads,
                            .kv_heads = model.num_key_value_heads,
                            .width = model.head_dim,
                            .scale = 1.0 / std::sqrt(static_cast<double>(model.head_dim)),
                            .q = values("q"),
                            .k = values("k"),
                            .v = values("v"),
                            .dout = values("dout"),
                            .key_begin = {},
                            .key_end = {}};
  naive::AttentionResult expected;
  if (model.mixer_of(layer) == 'P') {
    const std::string e = concat("model.", prefix, "self_attn.k_projection.weight");
    const std::string f = concat("model.", prefix, "self_attn.v_projection.weight");
    naive::ProjectedResult projected =
        naive::projected_attention({.attention = std::move(in),
                                    .rows = model.projected_keys,
                                    .e = recorded(run.parameters.front(), e),
                                    .f = recorded(run.parameters.front(), f)});
    const double floor = 1e-6 * std::max(rms(projected.de), rms(projected.df));
    compare(e, recorded(run.gradients.front(), e), projected.de, floor);
    compare(f, recorded(run.gradients.front(), f), projected.df, floor);
    expected = std::move(projected.attention);
  } else {
    visible_keys(config, source, layer, in);
    expected = naive::attention(in);
  }
  const double floor = 1e-6 * std::max({rms(expected.dq), rms(expected.dk), rms(expected.dv)});
  compare(prefix + "out", values("out"), expected.out, floor);
  compare(prefix + "dq", values("dq"), expected.dq, floor);
  compare(prefix + "dk", values("dk"), expected.dk, floor);
  compare(prefix + "dv", values("dv"), expected.dv, floor);
}

void compare_activations(const std::vector<Entry>& reference, const std::vector<Entry>& run,
                         bool backward, Comparison& comparison, ParityReport& report) {
  const double floor = 1e-6 * rms(reference);
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
  const double floor = 1e-6 * rms(reference);
  for (size_t i = 0; i < reference.size(); ++i) {
    comparison.add(reference[i].name, error_of(run[i].values, reference[i].values, floor),
                   &ParityReport::Row::gradient, report.grad);
  }
}

void compare_updates(const Config& config, const Recording& reference, const Recording& run,
                     size_t step, Comparison& comparison, ParityReport& report) {
  const std::vector<Entry> expected = updates_of(reference, step), got = updates_of(run, step);
  const double floor = 1e-6 * rms(expected);
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
    const double error = error_of({run.losses[step]}, {reference.losses[step]}, 0.0);
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
