// YAML text to a checked list of keys. Only what a config needs is taken: sections of keys whose
// values are scalars or lists of scalars. Everything else is refused with one line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weft::yaml {

struct Value {
  enum class Kind { null, scalar, list, section };

  Kind kind = Kind::null;
  std::string text{};          // of a scalar, unescaped
  bool in_quotes = false;      // written in quotes or as a block: text, never a number
  std::vector<Value> items{};  // of a list: scalars and nulls

  /// "'12abc'", "a list", "nothing": what an error says it got.
  std::string describe() const;
};

/// One key with its value. A section is an entry of its own only where it holds no keys.
struct Entry {
  std::string key;    // the whole path: "train.steps"
  std::string where;  // "run.yaml:12", or "--set"
  Value value;
};

/// The entries of `text` in file order, no key twice. Throws Error(config) with one line
/// "file:line: key: expected ..., got ..." for text that is not YAML, is not UTF-8, or uses more of
/// YAML than the above: anchors, aliases, tags, merge keys, several documents, lists or scalars at
/// the top, lists inside lists, more than 32 levels.
std::vector<Entry> parse(std::string_view text, std::string_view file_name);

/// The entry of a command line's "a.b=c". A value that starts with '[' or a quote mark is read as
/// YAML; any other is the scalar as it stands, so that no shell and YAML quotes have to be nested.
Entry parse_assignment(const std::string& assignment);

/// The contents of a config file. Throws Error(config) when it cannot be opened, is a folder, or
/// has more than 1 MB.
std::string read_text(const std::string& path);

/// `text` as a scalar that parse() reads back as the same text.
std::string scalar_text(const std::string& text);

}  // namespace weft::yaml
