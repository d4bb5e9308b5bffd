// What a model is, in Hugging Face's names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/kernels/feature_map.hpp"
#include "src/kernels/rope.hpp"

namespace weft {

/// model.linear, of the layers with letter L. What is absent is as the family has it.
struct LinearConfig {
  std::optional<std::string> family;         // of linear_families()
  std::optional<int64_t> num_heads;          // H; otherwise num_attention_heads
  std::optional<double> expand_k, expand_v;  // H K and H V, by hidden_size
  std::optional<FeatureMap> feature_map;     // of queries and keys
  std::optional<int64_t> short_conv;         // taps of the short convolutions; 0: none
  std::optional<bool> output_gate;
  std::optional<int64_t> gate_rank;       // gla: of the projection of its decay; otherwise 16
  std::optional<double> gate_normalizer;  // simple_gla, gla: divides log alpha; otherwise 16
  bool operator==(const LinearConfig&) const = default;
};

/// model.delta, of the layers with letter G.
struct DeltaConfig {
  std::optional<int64_t> num_heads;          // H; otherwise num_attention_heads
  std::optional<int64_t> head_dim;           // K; otherwise that of the model
  std::optional<double> expand_v;            // V by K; otherwise 2
  std::optional<int64_t> short_conv;         // taps; 0: none; otherwise 4
  std::optional<bool> output_gate;           // otherwise true
  std::optional<bool> negative_eigenvalues;  // beta up to 2 (Grazzi et al., arXiv 2411.12537)
  bool operator==(const DeltaConfig&) const = default;
};

struct ModelConfig {
  int64_t vocab_size = 256;
  int64_t hidden_size = 256;  // C
  int64_t num_hidden_layers = 8;
  int64_t num_attention_heads = 4;  // H
  int64_t num_key_value_heads = 4;  // G; divides H
  int64_t head_dim = 64;            // D; even
  int64_t intermediate_size = 688;  // F
  double rms_norm_eps = 1e-5;
  RopeConfig rope;  // rope_theta, rope_scaling
  bool tie_word_embeddings = false;
  bool causal = true;
  /// Repeated over the layers: * is softmax attention, W the same in a sliding window, P
  /// the same over projected keys, L linear attention, G the gated delta rule.
  std::string layer_pattern = "*";
  /// Of W layers: query t sees the keys (t - window, t]. One for all of them, or one for each.
  std::vector<int64_t> window = {};
  int64_t projected_keys = 0;  // of P layers: rows R that keys and values are projected to; 0: none
  /// Tokens of a sequence, N, which the projections of P layers have a column for. Not a key of its
  /// own: a loaded config has that of the data.
  int64_t seq_length = 0;
  LinearConfig linear;
  DeltaConfig delta;
  double embedding_std = 1.0;  // initial standard deviation of the embedding table

  /// The pattern's letter of one layer.
  char mixer_of(int64_t layer) const { return layer_pattern[layer % layer_pattern.size()]; }

  bool has_mixer(char letter) const { return layer_pattern.find(letter) != std::string::npos; }

  /// Layers of a letter, or of several, among the first `layers`.
  int64_t mixers(std::string_view letters, int64_t layers) const {
    int64_t count = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      count += letters.find(mixer_of(layer)) != std::string_view::npos;
    }
    return count;
  }

  /// The window of a W layer.
  int64_t window_of(int64_t layer) const {
    return window.size() == 1 ? window[0] : window.at(mixers("W", layer));
  }
  /// All windows of the model, each once, ascending.
  std::vector<int64_t> distinct_windows() const;

  /// Throws Error(config) naming the first key whose value cannot be, as "model.<key>: ...".
  void validate() const;
};

}  // namespace weft
