#include "launch/mixer_oracle.hpp"

#include <algorithm>
#include <cmath>

#include "models/state_family.hpp"
#include "src/kernels/naive/projected_attention.hpp"
#include "src/kernels/naive/state_mixer.hpp"

namespace weft {
namespace {

/// Relative to the largest of its kind, below which a gradient is rounding.
constexpr double kFloor = 1e-6;

/// One layer of one recorded run.
class LayerOracle {
 public:
  LayerOracle(const Config& config, const SampleSource& source, int64_t layer, const Recording& run)
      : config_(config),
        model_(config.model),
        source_(source),
        layer_(layer),
        run_(run),
        prefix_(concat("layers.", layer, ".")) {}

  std::vector<OracleValue> values() {
    switch (model_.mixer_of(layer_)) {
      case 'L':
      case 'G':
        add_state_mixer();
        break;
      case 'P':
        add_projected();
        break;
      default:
        naive::AttentionInputs in = attention_inputs();
        add_keys(in);
        add_attention(naive::attention(in));
    }
    return std::move(values_);
  }

 private:
  const std::vector<double>& recorded(const std::vector<Recording::Entry>& entries,
                                      const std::string& name) const {
    const Recording::Entry* entry = Recording::find(entries, name);
    WEFT_CHECK(entry, name, " was not recorded");
    return entry->values;
  }
  const std::vector<double>& activation(const char* name) const {
    return recorded(run_.activations, prefix_ + name);
  }

  void add(const char* name, std::vector<double> expected, double floor) {
    values_.push_back({prefix_ + name, &activation(name), std::move(expected), floor});
  }

  /// Calls f for every sample of step 0.
  template <class F>
  void for_each_sample(F&& f) const {
    for (int64_t i = 0; i < config_.train.global_batch_size; ++i) {
      f(source_.segments(sample_at(config_.train.seed, i, source_.samples())));
    }
  }

  // ---- Softmax attention

  naive::AttentionInputs attention_inputs() const {
    return {.batch = config_.train.global_batch_size,
            .queries = config_.data.seq_length,
            .keys = config_.data.seq_length,
            .heads = model_.num_attention_heads,
            .kv_heads = model_.num_key_value_heads,
            .width = model_.head_dim,
            .scale = 1.0 / std::sqrt(static_cast<double>(model_.head_dim)),
            .q = activation("q"),
            .k = activation("k"),
            .v = activation("v"),
            .dout = activation("dout"),
            .key_begin = {},
            .key_end = {}};
  }

  /// The keys that every token sees, from the documents alone.
  void add_keys(naive::AttentionInputs& in) const {
    const bool windowed = model_.mixer_of(layer_) == 'W';
    for_each_sample([&](const SegmentMap& map) {
      for (int64_t t = 0; t < config_.data.seq_length; ++t) {
        int64_t begin = map.document_begin(t);
        if (windowed) begin = std::max(begin, t - model_.window_of(layer_) + 1);
        in.key_begin.push_back(begin);
        in.key_end.push_back(model_.causal ? t + 1 : map.document_end(t));
      }
    });
  }

  void add_attention(naive::AttentionResult expected) {
    const double floor =
        kFloor * std::max({rms_of(expected.dq), rms_of(expected.dk), rms_of(expected.dv)});
    add("out", std::move(expected.out), floor);
    add("dq", std::move(expected.dq), floor);
    add("dk", std::move(expected.dk), floor);
    add("dv", std::move(expected.dv), floor);
  }

  void add_projected() {
    const auto parameter = [&](const char* name) {
      return concat("model.", prefix_, "self_attn.", name, ".weight");
    };
    const std::string e = parameter("k_projection"), f = parameter("v_projection");
    naive::ProjectedResult projected =
        naive::projected_attention({.attention = attention_inputs(),
                                    .rows = model_.projected_keys,
                                    .e = recorded(run_.parameters.front(), e),
                                    .f = recorded(run_.parameters.front(), f)});
    const double floor = kFloor * std::max(rms_of(projected.de), rms_of(projected.df));
    const auto& gradients = run_.gradients.front();
    values_.push_back({e, &recorded(gradients, e), std::move(projected.de), floor});
    values_.push_back({f, &recorded(gradients, f), std::move(projected.df), floor});
    add_attention(std::move(projected.attention));
  }

  // ---- State mixers

  naive::StateMixerInputs state_inputs(const StateLayout& layout) const {
    const int64_t samples = config_.train.global_batch_size;
    const size_t states = samples * layout.heads * layout.key_dim * layout.value_dim;
    naive::StateMixerInputs in{.kind = layout.family->kind,
                               .batch = samples,
                               .tokens = config_.data.seq_length,
                               .heads = layout.heads,
                               .key_dim = layout.key_dim,
                               .value_dim = layout.value_dim,
                               .scale = layout.scale(),
                               .q = activation("q"),
                               .k = activation("k"),
                               .v = activation("v"),
                               .log_decay = {},
                               .beta = {},
                               .positions = {},
                               .h0 = std::vector<double>(states),
                               .dout = activation("dout"),
                               .dhT = std::vector<double>(states)};
    if (layout.family->fixed_log_decay != nullptr) {
      in.log_decay = layout.family->fixed_log_decay(layer_, model_.num_hidden_layers, layout.heads);
    } else if (in.kind != StateKind::none) {
      in.log_decay = activation("log_decay");
    }
    if (in.kind == StateKind::delta) in.beta = activation("beta");
    for_each_sample([&](const SegmentMap& map) {
      for (int64_t t = 0; t < config_.data.seq_length; ++t) in.positions.push_back(map.position(t));
    });
    return in;
  }

  void add_state_mixer() {
    const StateLayout layout = state_layout(model_, model_.mixer_of(layer_));
    naive::StateMixerResult expected = naive::state_mixer(state_inputs(layout));
    const double floor =
        kFloor * std::max({rms_of(expected.dq), rms_of(expected.dk), rms_of(expected.dv)});
    add("out", std::move(expected.out), floor);
    add("dq", std::move(expected.dq), floor);
    add("dk", std::move(expected.dk), floor);
    add("dv", std::move(expected.dv), floor);
    if (!expected.dlog_decay.empty()) add("dlog_decay", std::move(expected.dlog_decay), floor);
    if (!expected.dbeta.empty()) add("dbeta", std::move(expected.dbeta), floor);
  }

  const Config& config_;
  const ModelConfig& model_;
  const SampleSource& source_;
  int64_t layer_;
  const Recording& run_;
  std::string prefix_;
  std::vector<OracleValue> values_;
};

}  // namespace

double rms_of(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return v.empty() ? 0.0 : std::sqrt(squares / static_cast<double>(v.size()));
}

std::vector<OracleValue> mixer_oracle(const Config& config, const SampleSource& source,
                                      int64_t layer, const Recording& run) {
  return LayerOracle(config, source, layer, run).values();
}

}  // namespace weft
