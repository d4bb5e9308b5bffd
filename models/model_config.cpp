#include "models/model_config.hpp"

#include <algorithm>
#include <cmath>

#include "models/state_family.hpp"

namespace weft {
namespace {

template <class... Args>
void require(bool holds, const char* key, const Args&... message) {
  WEFT_REQUIRE(holds, ExitCode::config, "model.", key, ": expected ", message...);
}

void require_positive(const char* key, double value) {
  require(value > 0 && std::isfinite(value), key, "a number > 0, got ", value);
}

void validate_sizes(const ModelConfig& m) {
  const std::pair<const char*, int64_t> sizes[] = {
      {"vocab_size", m.vocab_size},
      {"hidden_size", m.hidden_size},
      {"num_hidden_layers", m.num_hidden_layers},
      {"num_attention_heads", m.num_attention_heads},
      {"num_key_value_heads", m.num_key_value_heads},
      {"head_dim", m.head_dim},
      {"intermediate_size", m.intermediate_size},
  };
  for (const auto& [key, size] : sizes) require(size >= 1, key, "an integer >= 1, got ", size);
  require(m.num_attention_heads % m.num_key_value_heads == 0, "num_key_value_heads",
          "a divisor of num_attention_heads = ", m.num_attention_heads, ", got ",
          m.num_key_value_heads);
  require(m.head_dim % 2 == 0, "head_dim", "an even number, got ", m.head_dim);
}

void validate_rope(const RopeConfig& rope) {
  require_positive("rope_theta", rope.theta);
  if (!rope.llama3) return;
  const Llama3Scaling& s = *rope.llama3;
  require_positive("rope_scaling.factor", s.factor);
  require_positive("rope_scaling.low_freq_factor", s.low_freq_factor);
  require_positive("rope_scaling.original_max_position_embeddings",
                   s.original_max_position_embeddings);
  // frequencies are blended between the two
  require(s.high_freq_factor > s.low_freq_factor && std::isfinite(s.high_freq_factor),
          "rope_scaling.high_freq_factor", "more than low_freq_factor = ", s.low_freq_factor,
          ", got ", s.high_freq_factor);
}

void validate_pattern(const ModelConfig& m) {
  require(!m.layer_pattern.empty(), "layer_pattern", "a pattern of letters, got nothing");
  const size_t other = m.layer_pattern.find_first_not_of("*WPLG");
  require(other == std::string::npos, "layer_pattern",
          "a pattern of the letters *, W, P, L and G, got '", m.layer_pattern, "'");
}

void validate_window(const ModelConfig& m) {
  if (!m.has_mixer('W')) {
    require(m.window.empty(), "window", "no such key without a W in model.layer_pattern, got ",
            m.window.empty() ? 0 : m.window[0]);
    return;
  }
  require(!m.window.empty(), "window",
          "an integer >= 1 for the W of model.layer_pattern, got nothing");
  for (const int64_t w : m.window) require(w >= 1, "window", "integers >= 1, got ", w);
  const int64_t layers = m.mixers("W", m.num_hidden_layers);
  require(m.window.size() == 1 || std::ssize(m.window) == layers, "window", "one window, or ",
          layers, ": one a W layer, got ", m.window.size());
  require(m.causal, "causal", "true for the W of model.layer_pattern, got false");
}

void validate_projection(const ModelConfig& m) {
  if (!m.has_mixer('P')) {
    require(m.projected_keys == 0, "projected_keys",
            "no such key without a P in model.layer_pattern, got ", m.projected_keys);
    return;
  }
  require(m.projected_keys >= 1, "projected_keys",
          "an integer >= 1 for the P of model.layer_pattern, got ",
          m.projected_keys == 0 ? "nothing" : std::to_string(m.projected_keys));
  // A row is a mixture of all tokens, those after a query among them.
  require(!m.causal, "causal", "false for the P of model.layer_pattern, got true");
}

/// `expand` x `of`, a width by the name of `key`, is an integer and a multiple of the heads.
void require_width(const char* key, double expand, int64_t of, int64_t heads) {
  const double width = expand * static_cast<double>(of) / static_cast<double>(heads);
  require(width >= 1 && std::abs(width - std::round(width)) < 1e-9, key,
          "a number that makes heads of an integer width, got ", expand, ": ", expand, " x ", of,
          " / ", heads, " heads = ", width);
}

/// A state is of the past alone.
void require_causal(const ModelConfig& m, char letter) {
  require(m.causal, "causal", "true for the ", letter, " of model.layer_pattern, got false");
}

void validate_linear(const ModelConfig& m) {
  const LinearConfig& linear = m.linear;
  if (!m.has_mixer('L')) {
    require(linear == LinearConfig{}, "linear",
            "no such section without an L in model.layer_pattern, got one");
    return;
  }
  std::string known;
  for (const StateFamily* f : linear_families()) {
    known += concat(known.empty() ? "" : ", ", f->name);
  }
  const StateFamily* family = find_linear_family(linear.family.value_or(""));
  require(family != nullptr, "linear.family", "one of ", known,
          " for the L of model.layer_pattern, got ", linear.family.value_or("nothing"));
  require_causal(m, 'L');
  const int64_t heads = linear.num_heads.value_or(m.num_attention_heads);
  require_width("linear.expand_k", linear.expand_k.value_or(family->expand_k), m.hidden_size,
                heads);
  require_width("linear.expand_v", linear.expand_v.value_or(family->expand_v), m.hidden_size,
                heads);
  const bool low_rank = family->kind == StateKind::vector;
  require(!linear.gate_rank || low_rank, "linear.gate_rank",
          "no such key with family: ", family->name, ", got ", linear.gate_rank.value_or(0));
  require(!linear.gate_normalizer || low_rank || family->kind == StateKind::scalar,
          "linear.gate_normalizer", "no such key with family: ", family->name, ", got ",
          linear.gate_normalizer.value_or(0));
  // backward finds a map's slope in its result, which the rotation has overwritten
  require(
      !family->rotary || linear.feature_map.value_or(family->feature_map) == FeatureMap::identity,
      "linear.feature_map", "identity with family: ", family->name,
      ", whose keys turn, got "
      "another map");
  const int64_t key_dim = state_layout(m, 'L').key_dim;
  require(!family->rotary || key_dim % 2 == 0, "linear.expand_k",
          "keys of an even width, which turn with their positions, got ", key_dim);
}

void validate_delta(const ModelConfig& m) {
  if (!m.has_mixer('G')) {
    require(m.delta == DeltaConfig{}, "delta",
            "no such section without a G in model.layer_pattern, got one");
    return;
  }
  require_causal(m, 'G');
  require_width("delta.expand_v", m.delta.expand_v.value_or(kGatedDeltaFamily.expand_v),
                m.delta.head_dim.value_or(m.head_dim), 1);
}

}  // namespace

std::vector<int64_t> ModelConfig::distinct_windows() const {
  std::vector<int64_t> distinct = window;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  return distinct;
}

void ModelConfig::validate() const {
  validate_sizes(*this);
  require_positive("rms_norm_eps", rms_norm_eps);
  validate_rope(rope);
  validate_pattern(*this);
  validate_window(*this);
  validate_projection(*this);
  validate_linear(*this);
  validate_delta(*this);
  require(embedding_std >= 0 && std::isfinite(embedding_std), "embedding_std",
          "a number >= 0, got ", embedding_std);
}

}  // namespace weft
