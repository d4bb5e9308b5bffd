#include "launch/yaml.hpp"

#include <sys/stat.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "launch/quote.hpp"
#include "src/core/check.hpp"

namespace weft::yaml {
namespace {

constexpr size_t kMostBytes = 1'000'000;
constexpr size_t kMostLevels = 32;

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

bool is_key(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return is_word(c) || c == '-'; });
}

/// Takes yaml-cpp's events as they come, so that what is refused is refused before anything grows:
/// the parser calls for a level before it descends into it.
class Builder : public YAML::EventHandler {
 public:
  explicit Builder(std::string_view file_name) : file_name_(file_name) {}

  std::vector<Entry> take_entries() { return std::move(entries_); }
  bool has_document() const { return documents_ > 0; }

  [[noreturn]] void fail(int line, const std::string& message) const {
    const std::string path = levels_.empty() ? "" : path_of(levels_.back(), levels_.back().key);
    throw Error(ExitCode::config,
                concat(place(line), ": ", path, path.empty() ? "" : ": ", message));
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) fail(mark.line, "expected one document, got a second one");
  }
  void OnDocumentEnd() override {}

  void OnAnchor(const YAML::Mark& mark, const std::string& name) override {
    fail(mark.line, concat("expected a value without anchors, got the anchor ", quote(name)));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark.line, "expected a value without aliases, got an alias");
  }

  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { on_value(mark, Value{}); }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& text) override {
    refuse_tag(mark, tag);
    if (expects_key()) return on_key(mark, text);
    on_value(mark, {.kind = Value::Kind::scalar, .text = text, .in_quotes = tag == "!"});
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    on_value(mark, {.kind = Value::Kind::list});
    in_list_ = true;
  }
  void OnSequenceEnd() override {
    in_list_ = false;
    levels_.back().key.clear();
  }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    if (levels_.empty()) {
      levels_.emplace_back();
      return;
    }
    if (in_list_) fail(mark.line, "expected a list of scalars, got a section inside");
    if (expects_key()) fail(mark.line, "expected a key, got a section");
    if (levels_.size() == kMostLevels) {
      fail(mark.line, concat("expected at most ", kMostLevels, " levels, got more"));
    }
    const Level& above = levels_.back();
    levels_.push_back({.path = path_of(above, above.key), .line = above.line});
  }
  void OnMapEnd() override {
    const Level done = std::move(levels_.back());
    levels_.pop_back();
    if (levels_.empty()) return;
    if (done.keys.empty()) {
      entries_.push_back({done.path, place(done.line), {.kind = Value::Kind::section}});
    }
    levels_.back().key.clear();
  }

 private:
  /// A section that is being read.
  struct Level {
    std::string path;              // of the section; empty at the top
    std::string key{};             // whose value comes next; empty before a key
    int line = 0;                  // of that key, from 0
    std::set<std::string> keys{};  // seen so far
  };

  static std::string path_of(const Level& level, const std::string& key) {
    return level.path.empty() || key.empty() ? level.path + key : level.path + "." + key;
  }
  std::string place(int line) const { return concat(file_name_, ":", std::max(line, 0) + 1); }
  bool expects_key() const { return !in_list_ && !levels_.empty() && levels_.back().key.empty(); }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    // yaml-cpp's marks for "no tag": plain, and in quotes
    if (tag.empty() || tag == "?" || tag == "!") return;
    fail(mark.line, concat("expected a value without tags, got the tag ", quote(tag)));
  }

  void on_key(const YAML::Mark& mark, const std::string& text) {
    Level& level = levels_.back();
    if (text == "<<") fail(mark.line, "expected a key, got the merge key '<<'");
    if (!is_key(text)) {
      fail(mark.line, concat("expected a key of letters, digits, '_' and '-', got ", quote(text)));
    }
    level.key = text;
    level.line = mark.line;
    if (!level.keys.insert(text).second) fail(mark.line, "expected each key once, got it twice");
  }

  void on_value(const YAML::Mark& mark, Value value) {
    if (levels_.empty()) fail(mark.line, "expected keys at the top, got " + value.describe());
    if (in_list_) {
      if (value.kind == Value::Kind::list) {
        fail(mark.line, "expected a list of scalars, got a list inside");
      }
      entries_.back().value.items.push_back(std::move(value));
      return;
    }
    Level& level = levels_.back();
    if (level.key.empty()) fail(mark.line, "expected a key, got " + value.describe());
    const bool list = value.kind == Value::Kind::list;
    entries_.push_back({path_of(level, level.key), place(level.line), std::move(value)});
    if (!list) level.key.clear();  // a list's items follow, and their messages name the key
  }

  std::string file_name_;
  std::vector<Entry> entries_;
  std::vector<Level> levels_;
  bool in_list_ = false;
  int documents_ = 0;
};

/// Length of the UTF-8 character at the start of `text`, 0 if it is none. Overlong forms and
/// surrogates are none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  const bool valid = (lead != 0xE0 || second >= 0xA0) && (lead != 0xED || second < 0xA0) &&
                     (lead != 0xF0 || second >= 0x90) && (lead != 0xF4 || second < 0x90);
  return valid ? length : 0;
}

/// Where `text` stops being UTF-8 without NUL bytes; npos if nowhere. yaml-cpp replaces broken
/// characters and ends at a NUL without a word.
size_t first_bad_byte(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text.substr(i));
    if (length == 0 || text[i] == '\0') return i;
    i += length;
  }
  return std::string_view::npos;
}

void require_text(std::string_view text, const Builder& builder) {
  if (text.size() > kMostBytes) {
    builder.fail(0, concat("expected at most ", kMostBytes, " bytes, got ", text.size()));
  }
  const size_t bad = first_bad_byte(text);
  if (bad == std::string_view::npos) return;
  const auto line = std::count(text.begin(), text.begin() + static_cast<int64_t>(bad), '\n');
  builder.fail(static_cast<int>(line), text[bad] == '\0' ? "expected text, got a NUL byte"
                                                         : "expected UTF-8 text, got other bytes");
}

}  // namespace

std::string Value::describe() const {
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::list:
      return "a list";
    case Kind::section:
      return "a section of keys";
    case Kind::scalar:
      break;
  }
  return quote(text, in_quotes ? '"' : '\'');
}

std::vector<Entry> parse(std::string_view text, std::string_view file_name) {
  Builder builder(file_name);
  require_text(text, builder);
  std::istringstream in{std::string(text)};
  try {
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& e) {
    // The library's versions word this one differently.
    if (e.msg.find("anchor is not defined") != std::string::npos) {
      builder.fail(e.mark.line, "expected a value without aliases, got an alias");
    }
    std::string reason = e.msg;  // may repeat a character of the file
    std::replace_if(
        reason.begin(), reason.end(), [](unsigned char c) { return c < 0x20; }, '?');
    builder.fail(e.mark.line, "expected YAML, got text that is not: " + reason);
  }
  if (!builder.has_document()) builder.fail(0, "expected keys, got an empty file");
  return builder.take_entries();
}

Entry parse_assignment(const std::string& assignment) {
  const size_t equals = assignment.find('=');
  WEFT_REQUIRE(equals != 0 && equals != std::string::npos, ExitCode::config,
               "--set: expected key=value, got ", quote(assignment));
  Entry entry{assignment.substr(0, equals), "--set", {}};
  const std::string text = assignment.substr(equals + 1);
  if (text.empty()) return entry;
  WEFT_REQUIRE(first_bad_byte(text) == std::string::npos, ExitCode::config,
               "--set: ", quote(entry.key), ": expected UTF-8 text, got other bytes");
  if (text.find_first_of("['\"") != 0) {
    entry.value = {.kind = Value::Kind::scalar, .text = text};
    return entry;
  }
  std::vector<Entry> parsed;
  try {
    parsed = parse("value: " + text, "--set");
  } catch (const Error&) {
    parsed.clear();
  }
  WEFT_REQUIRE(parsed.size() == 1, ExitCode::config, "--set: ", quote(entry.key),
               ": expected a scalar or a list [a, b], got ", quote(text));
  entry.value = std::move(parsed.front().value);
  return entry;
}

std::string read_text(const std::string& path) {
  struct stat status {};
  const bool found = stat(path.c_str(), &status) == 0;
  WEFT_REQUIRE(!found || !S_ISDIR(status.st_mode), ExitCode::config, path,
               ": expected a file, got a folder");
  std::ifstream in(path, std::ios::binary);
  WEFT_REQUIRE(in, ExitCode::config, path, ": cannot be opened");
  std::string text(kMostBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  WEFT_REQUIRE(!in.bad(), ExitCode::config, path, ": cannot be read");
  text.resize(static_cast<size_t>(in.gcount()));
  WEFT_REQUIRE(text.size() <= kMostBytes, ExitCode::config, path, ": expected at most ", kMostBytes,
               " bytes, got more");
  return text;
}

std::string scalar_text(const std::string& text) {
  const auto is_plain = [](char c) { return is_word(c) || c == '/' || c == '.' || c == '-'; };
  const bool null = text.empty() || text == "null" || text == "Null" || text == "NULL";
  const bool plain = !null && text[0] != '-' && std::all_of(text.begin(), text.end(), is_plain);
  if (plain) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace weft::yaml
