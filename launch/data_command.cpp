#include "launch/data_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.hpp"
#include "data/token_file.hpp"
#include "data/tokenizers.hpp"
#include "src/core/check.hpp"
#include "src/core/log.hpp"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

/// Writes `result` to the file named by --json; no name, no file.
void write_json(const std::string& path, const Json& result) {
  if (path.empty()) return;
  std::ofstream file(path);
  // Paths and sources need not be UTF-8, JSON must.
  file << result.dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
  WEFT_REQUIRE(file, ExitCode::io, path, ": cannot be written");
}

// ---- weft data prepare

struct PrepareOptions {
  CorpusOptions corpus;
  std::string output;
  std::string tokenizer = "bytes";
  bool overwrite = false;
  std::string json;
};

/// What the token file tells people about its origin.
std::string describe(const CorpusOptions& options) {
  std::string text = fmt::format("{}", fmt::join(options.inputs, " "));
  if (!options.extensions.empty()) {
    text += fmt::format("; extensions {}", fmt::join(options.extensions, ","));
  }
  if (options.max_bytes != CorpusOptions{}.max_bytes) {
    text += fmt::format("; at most {} bytes", options.max_bytes);
  }
  if (options.shuffle_seed) text += fmt::format("; files shuffled by {}", *options.shuffle_seed);
  return text;
}

int prepare(const PrepareOptions& options) {
  const auto began = std::chrono::steady_clock::now();
  const Tokenizer& tokenizer = weft::tokenizer(options.tokenizer);
  Corpus corpus(options.corpus);
  TokenFileWriter writer(
      options.output,
      {tokenizer.vocab_size(), std::string(tokenizer.name()), describe(options.corpus)},
      options.overwrite);
  while (corpus.next_document()) {
    for (auto piece = corpus.read(); !piece.empty(); piece = corpus.read()) {
      writer.append(tokenizer.encode(piece));
    }
    writer.end_document();
  }
  if (corpus.unreadable() > 0) {
    log::warn(concat("left out, because they cannot be read: ", corpus.unreadable(),
                     " files or folders"));
  }
  WEFT_REQUIRE(writer.tokens() > 0, ExitCode::data,
               fmt::format("{}", fmt::join(options.corpus.inputs, " ")), ": expected text, got ",
               corpus.files().size(), " files without any");
  writer.finish();

  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
  fmt::print("{} documents, {} tokens, {} bytes, {:.2f} s: {}\n", writer.documents(),
             writer.tokens(), corpus.bytes(), seconds.count(), options.output);
  write_json(options.json, {{"path", options.output},
                            {"tokenizer", tokenizer.name()},
                            {"vocab_size", tokenizer.vocab_size()},
                            {"documents", writer.documents()},
                            {"tokens", writer.tokens()},
                            {"bytes", corpus.bytes()},
                            {"unreadable", corpus.unreadable()},
                            {"seconds", seconds.count()}});
  return 0;
}

void add_prepare(CLI::App& data, std::function<int()>& action) {
  const auto options = std::make_shared<PrepareOptions>();
  CLI::App* app = data.add_subcommand("prepare", "Turn text files into a token file");
  app->add_option("--input", options->corpus.inputs, "File or folder; may be given again")
      ->type_name("PATH")
      ->required()
      ->allow_extra_args(false);
  app->add_option("--output", options->output, "Token file to write")
      ->type_name("FILE")
      ->required();
  app->add_option("--tokenizer", options->tokenizer, "How text becomes tokens")
      ->type_name("NAME")
      ->capture_default_str();
  app->add_option("--extensions", options->corpus.extensions,
                  "Take only such files from folders, as in h,hpp")
      ->type_name("LIST")
      ->delimiter(',')
      ->allow_extra_args(false);
  app->add_option("--max-bytes", options->corpus.max_bytes, "Stop after that many bytes of text")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  app->add_option("--seed", options->corpus.shuffle_seed, "Shuffle the files by this seed")
      ->type_name("S");
  app->add_flag("--overwrite", options->overwrite, "Replace the output if it exists");
  app->add_option("--json", options->json, "File for the result as JSON")->type_name("FILE");
  app->callback([options, &action] { action = [options] { return prepare(*options); }; });
}

// ---- weft data inspect

struct InspectOptions {
  std::string path;
  int64_t documents = 0;
  std::string text;  // "BEGIN:END"
  std::string json;
};

struct Lengths {
  int64_t shortest = 0, longest = 0;
};

Lengths document_lengths(const TokenFile& file) {
  const auto& offsets = file.document_offsets();
  Lengths lengths{file.tokens(), 0};
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    lengths.shortest = std::min(lengths.shortest, offsets[d + 1] - offsets[d]);
    lengths.longest = std::max(lengths.longest, offsets[d + 1] - offsets[d]);
  }
  return lengths;
}

/// Bytes of the well-formed UTF-8 character at the start of `text` that a terminal may be shown;
/// 0 when there is none.
size_t printable_prefix(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : 0;
  const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  uint32_t point = first & (0xFF >> (size + 1));
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    point = point << 6 | (byte(i) & 0x3F);
  }
  const bool overlong = point < (size == 4 ? 0x10000u : size == 3 ? 0x800u : 0x80u);
  const bool surrogate = point >= 0xD800 && point < 0xE000;
  const bool control = point < 0xA0;
  return overlong || surrogate || control || point > 0x10FFFF ? 0 : size;
}

std::string escaped(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t size = text.front() == '\\' ? 0 : printable_prefix(text);
    if (size > 0) {
      out += text.substr(0, size);
    } else if (text.front() == '\n') {
      out += "\\n";
    } else if (text.front() == '\t') {
      out += "\\t";
    } else if (text.front() == '\\') {
      out += "\\\\";
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return out;
}

/// "BEGIN:END" inside [0, tokens].
std::pair<int64_t, int64_t> parse_stretch(std::string_view text, int64_t tokens) {
  int64_t begin = -1, end = -1;
  const char* last = text.data() + text.size();
  const auto [colon, first_error] = std::from_chars(text.data(), last, begin);
  if (first_error == std::errc{} && colon != last && *colon == ':') {
    const auto [rest, second_error] = std::from_chars(colon + 1, last, end);
    if (second_error != std::errc{} || rest != last) end = -1;
  }
  WEFT_REQUIRE(begin >= 0 && begin <= end && end <= tokens, ExitCode::usage,
               "--text: expected BEGIN:END inside 0:", tokens, ", got '", text, "'");
  return {begin, end};
}

std::string read_text(const TokenFile& file, const std::string& stretch) {
  const auto [begin, end] = parse_stretch(stretch, file.tokens());
  std::vector<int32_t> tokens(end - begin);
  file.read(begin, end, tokens);
  return tokenizer(file.info().tokenizer).decode(tokens);
}

void print_documents(const TokenFile& file, int64_t count) {
  const auto& offsets = file.document_offsets();
  for (int64_t d = 0; d < std::min(count, file.documents()); ++d) {
    fmt::print("document {:>8}  {:>14} .. {:<14} {:>14} tokens\n", d, offsets[d], offsets[d + 1],
               offsets[d + 1] - offsets[d]);
  }
}

int inspect(const InspectOptions& options) {
  const TokenFile file(options.path);
  const Lengths lengths = document_lengths(file);
  const std::string text = options.text.empty() ? "" : read_text(file, options.text);

  const auto line = [](const char* key, const auto& value) {
    fmt::print("{:<12}{}\n", key, value);
  };
  line("path", file.path());
  line("tokenizer", escaped(file.info().tokenizer));
  line("vocab_size", file.info().vocab_size);
  line("tokens", file.tokens());
  line("documents", file.documents());
  line("shortest", lengths.shortest);
  line("longest", lengths.longest);
  line("source", escaped(file.info().source));
  print_documents(file, options.documents);
  if (!options.text.empty()) line("text", escaped(text));

  Json result{{"path", file.path()},
              {"tokenizer", file.info().tokenizer},
              {"vocab_size", file.info().vocab_size},
              {"tokens", file.tokens()},
              {"documents", file.documents()},
              {"shortest", lengths.shortest},
              {"longest", lengths.longest},
              {"source", file.info().source}};
  if (!options.text.empty()) result["text"] = text;
  write_json(options.json, result);
  return 0;
}

void add_inspect(CLI::App& data, std::function<int()>& action) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* app = data.add_subcommand("inspect", "Describe a token file");
  app->add_option("FILE", options->path, "Token file")->type_name("")->required();
  app->add_option("--documents", options->documents, "List the first N documents")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--text", options->text, "Show the text of these tokens")->type_name("BEGIN:END");
  app->add_option("--json", options->json, "File for the result as JSON")->type_name("FILE");
  app->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

}  // namespace

void add_data_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* data = app.add_subcommand("data", "Make token files and look into them");
  data->require_subcommand(1);
  add_prepare(*data, action);
  add_inspect(*data, action);
}

}  // namespace weft
