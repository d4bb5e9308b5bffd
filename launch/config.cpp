#include "launch/config.hpp"

#include <algorithm>
#include <functional>
#include <map>

#include "launch/config_schema.hpp"
#include "launch/hf.hpp"
#include "launch/mesh_rules.hpp"
#include "launch/quote.hpp"
#include "launch/yaml.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace {

std::string did_you_mean(const std::string& word) {
  return word.empty() ? "" : " (did you mean " + quote(word) + "?)";
}

/// One config file and its overrides on their way into a Config.
class Loader {
 public:
  LoadedConfig load(std::string_view text, std::string_view file_name,
                    const std::vector<std::string>& sets) {
    file_name_ = file_name;
    for (yaml::Entry& entry : yaml::parse(text, file_name)) {
      translate(entry);
      const auto [first, is_new] = where_.emplace(entry.key, entry.where);
      WEFT_REQUIRE(is_new, ExitCode::config, entry.where, ": ", entry.key,
                   ": expected each key once, got it at ", first->second, " too");
      entries_.push_back(std::move(entry));
    }
    for (const std::string& set : sets) {
      yaml::Entry entry = yaml::parse_assignment(set);
      translate(entry);
      where_[entry.key] = entry.where;
      entries_.push_back(std::move(entry));
    }
    store_entries();
    loaded_.config.model.seq_length = loaded_.config.data.seq_length;
    validate();
    return std::move(loaded_);
  }

 private:
  void translate(yaml::Entry& entry) {
    if (find_field(entry.key) != nullptr) return;
    const std::string_view ours = find_alias(entry.key);
    if (ours.empty()) return;
    loaded_.notes.push_back(concat(entry.key, " -> ", ours));
    entry.key = ours;
  }

  void store_entries() {
    for (const yaml::Entry& entry : entries_) {
      if (entry.key == "model.from_hf") store(entry);
    }
    const std::string& folder = loaded_.config.from_hf;
    if (!folder.empty()) loaded_.config.model = read_hf_config(folder);
    for (const yaml::Entry& entry : entries_) {
      WEFT_REQUIRE(folder.empty() || !is_from_hf(entry.key), ExitCode::config, entry.where, ": ",
                   entry.key, ": expected no such key next to model.from_hf, got ",
                   entry.value.describe());
      store(entry);
    }
  }

  /// One entry into the config, or the line that says why not.
  void store(const yaml::Entry& entry) {
    const Field* const field = find_field(entry.key);
    if (field == nullptr) {
      if (const NotBuilt* const row = find_not_built(entry.key)) refuse_not_built(entry, *row);
      return refuse_unknown(entry);
    }
    if (!field->read(loaded_.config, entry.value)) refuse_value(entry, *field);
  }

  [[noreturn]] static void refuse_value(const yaml::Entry& entry, const Field& field) {
    throw Error(ExitCode::config, concat(entry.where, ": ", entry.key, ": expected ", field.type,
                                         ", got ", entry.value.describe(),
                                         did_you_mean(nearest(entry.value.text, field.choices))));
  }

  [[noreturn]] static void refuse_not_built(const yaml::Entry& entry, const NotBuilt& row) {
    throw Error(ExitCode::config, concat(entry.where, ": ", quote(entry.key),
                                         " is not available in this version (", row.reason, ")"));
  }

  /// A key that is no field: an empty section, a scalar for a section, or a slip.
  static void refuse_unknown(const yaml::Entry& entry) {
    using Kind = yaml::Value::Kind;
    const Kind kind = entry.value.kind;
    const auto inside = [](std::string_view key, std::string_view section) {
      return key.starts_with(section) && key.substr(section.size()).starts_with('.');
    };
    for (const Field& field : fields()) {
      if (inside(field.key, entry.key)) {
        if (kind == Kind::null || kind == Kind::section) return;
        throw Error(ExitCode::config,
                    concat(entry.where, ": ", entry.key, ": expected a section of keys, got ",
                           entry.value.describe()));
      }
      if (inside(entry.key, field.key)) {
        throw Error(ExitCode::config, concat(entry.where, ": ", field.key, ": expected ",
                                             field.type, ", got a section of keys"));
      }
    }
    throw Error(ExitCode::config,
                concat(entry.where, ": ", entry.key, ": expected a key of this version, got ",
                       quote(entry.key), did_you_mean(nearest_key(entry.key))));
  }

  /// Where a key was given, else the file.
  std::string where(const std::string& key) const {
    const auto found = where_.find(key);
    return found == where_.end() ? file_name_ : found->second;
  }

  template <class... Args>
  void require(bool holds, const std::string& key, const Args&... message) const {
    WEFT_REQUIRE(holds, ExitCode::config, where(key), ": ", key, ": expected ", message...);
  }

  /// What no single key can tell.
  void validate() const {
    const Config& c = loaded_.config;
    in_place([&] { c.model.validate(); });
    in_place([&] { check_mesh(c); });
    require(!c.data.path.empty(), "data.path", "a token file or synthetic, got nothing");
    require(c.optimizer.min_lr <= c.optimizer.lr, "optimizer.min_lr",
            "at most optimizer.lr = ", c.optimizer.lr, ", got ", c.optimizer.min_lr);
    require(c.optimizer.warmup_steps <= c.train.steps, "optimizer.warmup_steps",
            "at most train.steps = ", c.train.steps, ", got ", c.optimizer.warmup_steps);
    validate_strategies("sequence.attention", c.sequence.attention, "*", "a softmax layer");
    validate_strategies("sequence.state", c.sequence.state, "LG", "an L or G layer");
    validate_objective();
    validate_projection();
  }

  void validate_projection() const {
    const Config& c = loaded_.config;
    if (!c.model.has_mixer('P')) return;
    require(c.model.projected_keys <= c.data.seq_length, "model.projected_keys",
            "at most data.seq_length = ", c.data.seq_length, ", got ", c.model.projected_keys);
    // A row mixes the tokens of a whole sample.
    require(!c.data.documents, "data.documents",
            "false for the P of model.layer_pattern, got true");
  }

  void validate_objective() const {
    const Config& c = loaded_.config;
    require(c.data.mask_token < c.model.vocab_size, "data.mask_token",
            "a token id below model.vocab_size = ", c.model.vocab_size, ", got ",
            c.data.mask_token);
    // It would guess from one side what next_token teaches it at every token.
    require(c.data.objective == Objective::next_token || !c.model.causal, "data.objective",
            "next_token for a causal model (model.causal: true), got masked");
  }

  /// One name, or one for each layer of the letters.
  void validate_strategies(const std::string& key, const std::vector<std::string>& names,
                           std::string_view letters, const char* layer) const {
    const ModelConfig& model = loaded_.config.model;
    const int64_t layers = model.mixers(letters, model.num_hidden_layers);
    require(names.size() == 1 || std::ssize(names) == layers, key, "one name, or ", layers,
            ": one ", layer, ", got ", names.size());
  }

  /// Puts in front of an error "key: ..." where the key was given.
  void in_place(const std::function<void()>& check) const {
    try {
      check();
    } catch (const Error& e) {
      const std::string message = e.what();
      throw Error(e.code(), where(message.substr(0, message.find(':'))) + ": " + message);
    }
  }

  std::string file_name_;
  std::vector<yaml::Entry> entries_;          // the file's, then the overrides, in our names
  std::map<std::string, std::string> where_;  // key -> where it was given last
  LoadedConfig loaded_;
};

}  // namespace

LoadedConfig parse_config(std::string_view text, std::string_view file_name,
                          const std::vector<std::string>& sets) {
  return Loader().load(text, file_name, sets);
}

LoadedConfig load_config(const std::string& path, const std::vector<std::string>& sets) {
  return parse_config(yaml::read_text(path), path, sets);
}

}  // namespace weft
