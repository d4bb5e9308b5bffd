// The rows of the section model.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "launch/config_rows.hpp"
#include "models/state_family.hpp"
#include "src/kernels/short_convolution.hpp"

namespace weft {
namespace {

using rows::choice;
using rows::flag;
using rows::in;
using rows::integer;
using rows::kMany;
using rows::kNotNegative;
using rows::kPositive;
using rows::line;
using rows::number;
using rows::number_text;
using rows::to_number;
using yaml::Value;
using Kind = Value::Kind;

constexpr int64_t kMostLayers = 100'000;

/// The windows, which only a pattern with a W has.
Field window() {
  const auto read = [](Config& config, const Value& value) {
    const std::vector<Value> items = value.kind == Kind::list ? value.items : std::vector{value};
    std::vector<int64_t> windows;
    for (const Value& item : items) {
      const auto window = rows::to_integer(item);
      if (!window || *window < 1 || *window > kMany) return false;
      windows.push_back(*window);
    }
    if (windows.empty()) return false;
    config.model.window = std::move(windows);
    return true;
  };
  const auto write = [](const Config& config) -> std::string {
    const auto& windows = config.model.window;
    if (windows.empty()) return "";
    return windows.size() == 1 ? std::to_string(windows[0])
                               : fmt::format("[{}]", fmt::join(windows, ", "));
  };
  return {.key = "model.window",
          .type = rows::integer_type(1, kMany) + ", or a list of them",
          .doc =
              "keys that a query of a W layer sees, its own included: one number, or one a W "
              "layer; needed with a W",
          .choices = {},
          .read = read,
          .write = write};
}

/// The rows of the projections, which only a pattern with a P has.
Field projected_keys() {
  Field field =
      integer("model.projected_keys", in(&Config::model, &ModelConfig::projected_keys), 1, kMany,
              "rows that keys and values of a P layer are projected to; needed with a P");
  field.write = [write = std::move(field.write)](const Config& config) {
    return config.model.projected_keys == 0 ? "" : write(config);
  };
  return field;
}

/// A key of model.rope_scaling: any of them turns the scaling on, the others at their defaults.
Field scaling(const std::string& name, double Llama3Scaling::*member, std::string doc) {
  const auto read = [=](Config& config, const Value& value) {
    const auto x = to_number(value);
    if (!x || *x <= 0) return false;
    auto& llama3 = config.model.rope.llama3;
    if (!llama3) llama3.emplace();
    (*llama3).*member = *x;
    return true;
  };
  const auto write = [=](const Config& config) {
    const auto& llama3 = config.model.rope.llama3;
    return llama3 ? number_text((*llama3).*member) : "";
  };
  return {.key = "model.rope_scaling." + name,
          .type = kPositive.type,
          .doc = std::move(doc),
          .choices = {},
          .read = read,
          .write = write};
}

Field scaling_type() {
  const auto read = [](Config& config, const Value& value) {
    if (value.text != "llama3") return false;
    auto& llama3 = config.model.rope.llama3;
    if (!llama3) llama3.emplace();
    return true;
  };
  const auto write = [](const Config& config) { return config.model.rope.llama3 ? "llama3" : ""; };
  return {.key = "model.rope_scaling.rope_type",
          .type = "llama3",
          .doc = "slow rotary frequencies are divided; leave the section out for none",
          .choices = {"llama3"},
          .read = read,
          .write = write};
}

/// A member of model.linear or model.delta.
template <class Section, class Member>
auto of(Section ModelConfig::*section, Member Section::*member) {
  return [=](auto& config) -> auto& {
    return config.model.*section.*member;
  };
}

/// Names of the families, each standing for itself.
std::vector<std::pair<std::string, std::string>> family_names() {
  std::vector<std::pair<std::string, std::string>> names;
  for (const StateFamily* family : linear_families())
    names.emplace_back(family->name, family->name);
  return names;
}

template <class Get>
Field optional_integer(std::string key, Get get, int64_t least, int64_t most, std::string doc) {
  return rows::optional(
      get, [&](auto value) { return integer(key, value, least, most, std::move(doc)); });
}
template <class Get>
Field optional_number(std::string key, Get get, std::string doc) {
  return rows::optional(get, [&](auto value) { return number(key, value, kPositive, doc); });
}
template <class Get>
Field optional_flag(std::string key, Get get, std::string doc) {
  return rows::optional(get, [&](auto value) { return flag(key, value, doc); });
}

/// Layers of letter L.
std::vector<Field> linear_fields() {
  using C = LinearConfig;
  const auto linear = [](auto member) { return of(&ModelConfig::linear, member); };
  return {
      rows::optional(linear(&C::family),
                     [](auto value) {
                       return choice("model.linear.family", value, family_names(),
                                     "what an L layer is; needed with an L");
                     }),
      optional_integer("model.linear.num_heads", linear(&C::num_heads), 1, kMany,
                       "heads; default: `model.num_attention_heads`"),
      optional_number("model.linear.expand_k", linear(&C::expand_k),
                      "width of all keys by `model.hidden_size`; default: the family's"),
      optional_number("model.linear.expand_v", linear(&C::expand_v),
                      "width of all values by `model.hidden_size`; default: the family's"),
      rows::optional(linear(&C::feature_map),
                     [](auto value) {
                       return choice("model.linear.feature_map", value,
                                     std::vector<std::pair<std::string, FeatureMap>>{
                                         {"identity", FeatureMap::identity},
                                         {"elu", FeatureMap::elu},
                                         {"relu", FeatureMap::relu}},
                                     "of queries and keys; elu is elu(x) + 1; default: the "
                                     "family's");
                     }),
      optional_integer("model.linear.short_conv", linear(&C::short_conv), 0, kMostTaps,
                       "tokens that the short convolutions mix, 0 for none; default: the family's"),
      optional_flag("model.linear.output_gate", linear(&C::output_gate),
                    "the normed output is gated by the token; default: the family's"),
      optional_integer("model.linear.gate_rank", linear(&C::gate_rank), 1, kMany,
                       "gla: rank of the projection that makes the decay; default: 16"),
      optional_number("model.linear.gate_normalizer", linear(&C::gate_normalizer),
                      "simple_gla, gla: divides the logarithm of the decay; default: 16"),
  };
}

/// Layers of letter G.
std::vector<Field> delta_fields() {
  using C = DeltaConfig;
  const auto delta = [](auto member) { return of(&ModelConfig::delta, member); };
  return {
      optional_integer("model.delta.num_heads", delta(&C::num_heads), 1, kMany,
                       "heads of a G layer; default: `model.num_attention_heads`"),
      optional_integer("model.delta.head_dim", delta(&C::head_dim), 1, kMany,
                       "width of a key; default: `model.head_dim`"),
      optional_number("model.delta.expand_v", delta(&C::expand_v),
                      "width of a value by that of a key; default: 2"),
      optional_integer("model.delta.short_conv", delta(&C::short_conv), 0, kMostTaps,
                       "tokens that the short convolutions mix, 0 for none; default: 4"),
      optional_flag("model.delta.output_gate", delta(&C::output_gate),
                    "the normed output is gated by the token; default: true"),
      optional_flag("model.delta.negative_eigenvalues", delta(&C::negative_eigenvalues),
                    "beta is in (0, 2) and not in (0, 1); default: false"),
  };
}

/// Keys of the whole model.
std::vector<Field> plain_fields() {
  using M = ModelConfig;
  const auto model = [](auto member) { return in(&Config::model, member); };
  const auto from_hf = [](auto& c) -> auto& {
    return c.from_hf;
  };
  const auto theta = [](auto& c) -> auto& {
    return c.model.rope.theta;
  };
  using L = Llama3Scaling;
  return {
      line("model.from_hf", from_hf, "a folder",
           "Hugging Face folder: config.json gives the keys below, and training starts from its "
           "weights"),
      integer("model.vocab_size", model(&M::vocab_size), 2, kMany, "token ids are below this"),
      integer("model.hidden_size", model(&M::hidden_size), 1, kMany,
              "width of the residual stream"),
      integer("model.num_hidden_layers", model(&M::num_hidden_layers), 1, kMostLayers, "layers"),
      integer("model.num_attention_heads", model(&M::num_attention_heads), 1, kMany, "query heads"),
      integer("model.num_key_value_heads", model(&M::num_key_value_heads), 1, kMany,
              "key and value heads; divides the query heads"),
      integer("model.head_dim", model(&M::head_dim), 2, kMany, "width of a head; even"),
      integer("model.intermediate_size", model(&M::intermediate_size), 1, kMany,
              "inner width of the MLP"),
      number("model.rms_norm_eps", model(&M::rms_norm_eps), kPositive,
             "added to the mean square in RMSNorm"),
      number("model.rope_theta", theta, kPositive, "base of the rotary frequencies"),
      scaling_type(),
      scaling("factor", &L::factor, "divisor of the slow frequencies"),
      scaling("low_freq_factor", &L::low_freq_factor,
              "turns within the original context below which a frequency is slow"),
      scaling("high_freq_factor", &L::high_freq_factor, "turns above which a frequency stays"),
      scaling("original_max_position_embeddings", &L::original_max_position_embeddings,
              "the original context in tokens"),
      flag("model.tie_word_embeddings", model(&M::tie_word_embeddings),
           "the output matrix is the embedding table"),
      flag("model.causal", model(&M::causal), "a token sees those before it, not those after"),
      line("model.layer_pattern", model(&M::layer_pattern), "a pattern of letters",
           "one letter a layer, repeated: * softmax attention, W the same in a sliding window, P "
           "the same over projected keys, L linear attention, G the gated delta rule"),
      window(),
      projected_keys(),
      number("model.embedding_std", model(&M::embedding_std), kNotNegative,
             "initial standard deviation of the embedding table"),
  };
}

}  // namespace

std::vector<Field> rows::model_fields() {
  std::vector<Field> all = plain_fields();
  for (auto part : {linear_fields(), delta_fields()}) {
    std::move(part.begin(), part.end(), std::back_inserter(all));
  }
  return all;
}

}  // namespace weft
