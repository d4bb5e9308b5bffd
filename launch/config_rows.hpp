// Rows of the schema by the type of their value; config_schema.cpp is made of them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/config_schema.hpp"
#include "src/core/check.hpp"

namespace weft::rows {

using yaml::Value;

// ---- Scalars as C++ values

/// Plain decimal: no octal, hexadecimal or underscores, no sign but '-'.
inline std::optional<int64_t> to_integer(const Value& value) {
  if (value.kind != Value::Kind::scalar || value.in_quotes) return {};
  const std::string& text = value.text;
  const size_t first = text.starts_with('-') ? 1 : 0;
  if (text.size() > first + 1 && text[first] == '0') return {};
  int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end) return {};
  return number;
}

/// A finite number. What looks octal is refused here too.
inline std::optional<double> to_number(const Value& value) {
  if (value.kind != Value::Kind::scalar || value.in_quotes) return {};
  const std::string& text = value.text;
  const size_t first = text.starts_with('-') ? 1 : 0;
  const auto is_digit = [&](size_t i) {
    return i < text.size() && text[i] >= '0' && text[i] <= '9';
  };
  if (!is_digit(first) && !(first < text.size() && text[first] == '.')) return {};  // inf and nan
  if (text[first] == '0' && is_digit(first + 1)) return {};
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end || !std::isfinite(number)) return {};
  return number;
}

/// A scalar of one printable line.
inline std::optional<std::string> to_line(const Value& value) {
  if (value.kind != Value::Kind::scalar || value.text.empty()) return {};
  for (const char c : value.text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) return {};
  }
  return value.text;
}

inline std::string integer_type(int64_t least, int64_t most) {
  return most == std::numeric_limits<int64_t>::max()
             ? concat("an integer >= ", least)
             : concat("an integer from ", least, " to ", most);
}

/// The shortest decimal that reads back as the same number.
std::string number_text(double number);

inline constexpr int64_t kMany = 1'000'000'000;  // products of three sizes stay inside int64

/// The rows of the section model.
std::vector<Field> model_fields();

/// The getter of a section's member.
template <class Section, class Member>
auto in(Section Config::*section, Member Section::*member) {
  return [=](auto& config) -> auto& {
    return config.*section.*member;
  };
}

// ---- Rows. `get` takes a Config or a const Config and gives the member.

template <class Get>
Field integer(std::string key, Get get, int64_t least, int64_t most, std::string doc) {
  return {.key = std::move(key),
          .type = integer_type(least, most),
          .doc = std::move(doc),
          .choices = {},
          .read =
              [=](Config& config, const Value& value) {
                const auto number = to_integer(value);
                if (!number || *number < least || *number > most) return false;
                auto& member = get(config);
                member = static_cast<std::remove_reference_t<decltype(member)>>(*number);
                return true;
              },
          .write = [=](const Config& config) { return std::to_string(get(config)); }};
}

struct NumberRange {
  const char* type;
  bool (*holds)(double);
};
inline constexpr NumberRange kPositive{"a number > 0", [](double x) { return x > 0; }};
inline constexpr NumberRange kNotNegative{"a number >= 0", [](double x) { return x >= 0; }};
inline constexpr NumberRange kPositiveShare{"a number > 0 and <= 1",
                                            [](double x) { return x > 0 && x <= 1; }};
inline constexpr NumberRange kShareBelowOne{"a number >= 0 and < 1",
                                            [](double x) { return x >= 0 && x < 1; }};
inline constexpr NumberRange kShare{"a number from 0 to 1",
                                    [](double x) { return x >= 0 && x <= 1; }};

template <class Get>
Field number(std::string key, Get get, NumberRange range, std::string doc) {
  return {.key = std::move(key),
          .type = range.type,
          .doc = std::move(doc),
          .choices = {},
          .read =
              [=](Config& config, const Value& value) {
                const auto x = to_number(value);
                if (!x || !range.holds(*x)) return false;
                get(config) = *x;
                return true;
              },
          .write = [=](const Config& config) { return number_text(get(config)); }};
}

/// One word of several, each standing for a value.
template <class Get, class T>
Field choice(std::string key, Get get, std::vector<std::pair<std::string, T>> words,
             std::string doc) {
  std::string type;
  std::vector<std::string> choices;
  for (size_t i = 0; i < words.size(); ++i) {
    type += (i == 0 ? "" : i + 1 < words.size() ? ", " : " or ") + words[i].first;
    choices.push_back(words[i].first);
  }
  return {.key = std::move(key),
          .type = std::move(type),
          .doc = std::move(doc),
          .choices = std::move(choices),
          .read =
              [=](Config& config, const Value& value) {
                if (value.kind != Value::Kind::scalar) return false;
                const auto word = std::find_if(words.begin(), words.end(), [&](const auto& w) {
                  return w.first == value.text;
                });
                if (word == words.end()) return false;
                get(config) = word->second;
                return true;
              },
          .write =
              [=](const Config& config) {
                return std::find_if(words.begin(), words.end(),
                                    [&](const auto& w) { return w.second == get(config); })
                    ->first;
              }};
}

/// A field that may be left out: `get` gives a std::optional, `make` the field of its value.
template <class Get, class Make>
Field optional(Get get, Make make) {
  Field field = make([=](auto& config) -> auto& {
    auto& member = get(config);
    if constexpr (!std::is_const_v<std::remove_reference_t<decltype(config)>>) {
      if (!member) member.emplace();
    }
    return *member;
  });
  field.write = [=, write = std::move(field.write)](const Config& config) {
    return get(config) ? write(config) : "";
  };
  return field;
}

template <class Get>
Field flag(std::string key, Get get, std::string doc) {
  return choice<Get, bool>(std::move(key), get, {{"true", true}, {"false", false}}, std::move(doc));
}

template <class Get>
Field line(std::string key, Get get, std::string type, std::string doc) {
  return {.key = std::move(key),
          .type = std::move(type),
          .doc = std::move(doc),
          .choices = {},
          .read =
              [=](Config& config, const Value& value) {
                const auto text = to_line(value);
                if (text) get(config) = *text;
                return text.has_value();
              },
          .write =
              [=](const Config& config) {
                return get(config).empty() ? "" : yaml::scalar_text(get(config));
              }};
}

}  // namespace weft::rows
