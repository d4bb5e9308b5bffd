#include "models/model_config.hpp"

#include <algorithm>
#include <cmath>

#include "src/core/check.hpp"

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
  const size_t other = m.layer_pattern.find_first_not_of("*WP");
  require(other == std::string::npos, "layer_pattern", "a pattern of the letters *, W and P, got '",
          m.layer_pattern, "'");
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
  const int64_t layers = m.mixers('W', m.num_hidden_layers);
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
  require(embedding_std >= 0 && std::isfinite(embedding_std), "embedding_std",
          "a number >= 0, got ", embedding_std);
}

}  // namespace weft
