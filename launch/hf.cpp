#include "launch/hf.hpp"

#include <nlohmann/json.hpp>
#include <optional>

#include "launch/quote.hpp"
#include "launch/yaml.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;

std::string describe(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  return value.dump();
}

/// An object of the file with what its messages need. A key that is null counts as absent, as it
/// does for transformers.
class Object {
 public:
  Object(const Json& json, std::string path) : json_(&json), path_(std::move(path)) {}

  const Json* find(const char* key) const {
    const auto found = json_->find(key);
    return found == json_->end() || found->is_null() ? nullptr : &*found;
  }

  template <class... Args>
  [[noreturn]] void fail(const char* key, const Args&... expected) const {
    const Json* const value = find(key);
    throw Error(ExitCode::config, concat(path_, ": ", key, ": expected ", expected..., ", got ",
                                         value == nullptr ? "nothing" : describe(*value)));
  }

  int64_t integer(const char* key) const {
    constexpr int64_t kMost = 1'000'000'000;
    const Json* const value = find(key);
    if (value == nullptr || !value->is_number_unsigned() || value->get<uint64_t>() < 1 ||
        value->get<uint64_t>() > kMost) {
      fail(key, "an integer from 1 to ", kMost);
    }
    return value->get<int64_t>();
  }
  int64_t integer(const char* key, int64_t otherwise) const {
    return find(key) == nullptr ? otherwise : integer(key);
  }

  double number(const char* key) const {
    const Json* const value = find(key);
    if (value == nullptr || !value->is_number() || !(value->get<double>() > 0)) {
      fail(key, "a number > 0");
    }
    return value->get<double>();
  }
  double number(const char* key, double otherwise) const {
    return find(key) == nullptr ? otherwise : number(key);
  }

  bool flag(const char* key, bool otherwise) const {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail(key, "true or false");
    return value->get<bool>();
  }

  std::string word(const char* key, const std::string& otherwise) const {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) fail(key, "a word");
    return value->get<std::string>();
  }

  /// The object under `key`, or nothing.
  std::optional<Object> object(const char* key) const {
    const Json* const value = find(key);
    if (value == nullptr) return {};
    if (!value->is_object()) fail(key, "an object");
    return Object(*value, path_ + ": " + key);
  }

 private:
  const Json* json_;
  std::string path_;
};

/// What changes the arithmetic and is not ours.
void refuse_other_models(const Object& hf) {
  if (hf.word("model_type", "") != "llama") hf.fail("model_type", "llama");
  if (hf.word("hidden_act", "silu") != "silu") hf.fail("hidden_act", "silu");
  if (hf.flag("attention_bias", false)) hf.fail("attention_bias", "false");
  if (hf.flag("mlp_bias", false)) hf.fail("mlp_bias", "false");
  for (const char* key : {"attention_dropout", "residual_dropout"}) {
    const Json* const rate = hf.find(key);
    if (rate != nullptr && *rate != 0) hf.fail(key, 0);
  }
  for (const char* key : {"sliding_window", "layer_types", "quantization_config"}) {
    if (hf.find(key) != nullptr) hf.fail(key, "no such key");
  }
  const Json* const rotated = hf.find("partial_rotary_factor");
  if (rotated != nullptr && *rotated != 1) hf.fail("partial_rotary_factor", 1);
}

Llama3Scaling read_llama3(const Object& scaling) {
  return {.factor = scaling.number("factor"),
          .low_freq_factor = scaling.number("low_freq_factor"),
          .high_freq_factor = scaling.number("high_freq_factor"),
          .original_max_position_embeddings = scaling.number("original_max_position_embeddings")};
}

/// transformers 5 has everything under rope_parameters; 4 has rope_theta at the top and the rest
/// under rope_scaling, where older files say `type` for `rope_type`.
RopeConfig read_rope(const Object& hf) {
  RopeConfig rope{.theta = hf.number("rope_theta", 10000.0), .llama3 = {}};
  std::optional<Object> scaling = hf.object("rope_parameters");
  if (scaling) {
    rope.theta = scaling->number("rope_theta", rope.theta);
  } else {
    scaling = hf.object("rope_scaling");
  }
  if (!scaling) return rope;
  const char* const key = scaling->find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = scaling->word(key, "default");
  if (type == "llama3") {
    rope.llama3 = read_llama3(*scaling);
  } else if (type != "default") {
    scaling->fail(key, "default or llama3");
  }
  return rope;
}

Json read_json(const std::string& path) {
  const std::string text = yaml::read_text(path);
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& e) {
    throw Error(ExitCode::config,
                concat(path, ": byte ", e.byte, ": expected JSON, got other text"));
  } catch (const Json::exception&) {
    throw Error(ExitCode::config, path + ": expected JSON, got a number out of range");
  }
  WEFT_REQUIRE(json.is_object(), ExitCode::config, path, ": expected an object, got ",
               describe(json));
  return json;
}

}  // namespace

ModelConfig read_hf_config(const std::string& folder) {
  const std::string path = folder + (folder.ends_with('/') ? "" : "/") + "config.json";
  const Json json = read_json(path);
  const Object hf(json, path);
  refuse_other_models(hf);

  ModelConfig model;
  model.vocab_size = hf.integer("vocab_size");
  model.hidden_size = hf.integer("hidden_size");
  model.num_hidden_layers = hf.integer("num_hidden_layers");
  model.num_attention_heads = hf.integer("num_attention_heads");
  model.num_key_value_heads = hf.integer("num_key_value_heads", model.num_attention_heads);
  model.head_dim = hf.integer("head_dim", model.hidden_size / model.num_attention_heads);
  model.intermediate_size = hf.integer("intermediate_size");
  model.rms_norm_eps = hf.number("rms_norm_eps", 1e-6);
  model.rope = read_rope(hf);
  model.tie_word_embeddings = hf.flag("tie_word_embeddings", false);
  try {
    model.validate();
  } catch (const Error& e) {
    throw Error(e.code(), path + ": " + e.what());
  }
  return model;
}

}  // namespace weft
