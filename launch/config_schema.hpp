// The keys of a config, one row each: parsing, overrides, the resolved text and the reference table
// are all driven by this table.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/config.hpp"
#include "launch/yaml.hpp"

namespace weft {

struct Field {
  std::string key;
  std::string type;                  // "an integer >= 1": what messages expect
  std::string doc;                   // one line for the reference
  std::vector<std::string> choices;  // words of an enumerated type, to compare a misspelt one with
  /// Stores the value; false, and nothing stored, where it is not of the type.
  std::function<bool(Config&, const yaml::Value&)> read;
  /// The value as YAML; empty where the config holds none.
  std::function<std::string(const Config&)> write;
};

/// In the order of the resolved text: sections are contiguous.
std::span<const Field> fields();
const Field* find_field(std::string_view key);
/// Whether model.from_hf decides the key, so that a config with both is refused.
bool is_from_hf(std::string_view key);

/// A key, or a section of keys, that the reference of a later version will know.
struct NotBuilt {
  std::string_view key;
  std::string_view reason;
};

/// The row of the key, or of a section above it; or nullptr.
const NotBuilt* find_not_built(std::string_view key);

/// Our key for a name of Megatron-LM, torchtitan or nanotron; empty where `key` is none.
std::string_view find_alias(std::string_view key);

/// The word among `words` that a misspelt one most likely meant; empty where none is close.
std::string nearest(std::string_view misspelt, std::span<const std::string> words);
/// The same among all keys; a right name in a wrong section is close.
std::string nearest_key(std::string_view misspelt);

}  // namespace weft
