// From text to a token file: tokenizers, corpora, and the command weft data.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "data/corpus.hpp"
#include "data/token_file.hpp"
#include "data/tokenizers.hpp"
#include "launch/data_command.hpp"
#include "src/core/check.hpp"
#include "tests/data_testing.hpp"

namespace weft {
namespace {

// ---- Tokenizers and corpora

TEST(Tokenizer, BytesComeBack) {
  const Tokenizer& bytes = tokenizer("bytes");
  EXPECT_EQ(bytes.vocab_size(), 256);
  std::string all(256, '\0');
  std::iota(all.begin(), all.end(), '\0');
  const std::vector<int32_t> tokens = bytes.encode(all);
  for (int i = 0; i < 256; ++i) EXPECT_EQ(tokens[i], i);
  EXPECT_EQ(bytes.decode(tokens), all);
  expect_error(ExitCode::usage, {"expected one of bytes, got 'words'"}, [] { tokenizer("words"); });
}

/// All documents of a corpus.
std::vector<std::string> texts(const CorpusOptions& options, int64_t unreadable = 0) {
  Corpus corpus(options);
  std::vector<std::string> found;
  int64_t bytes = 0;
  while (corpus.next_document()) {
    auto& text = found.emplace_back();
    for (auto piece = corpus.read(); !piece.empty(); piece = corpus.read()) text += piece;
    bytes += std::ssize(text);
    EXPECT_FALSE(text.empty());
  }
  EXPECT_EQ(corpus.bytes(), bytes);
  EXPECT_EQ(corpus.unreadable(), unreadable);
  return found;
}

using Texts = std::vector<std::string>;

TEST(Corpus, SortedDeepAndFiltered) {
  const ScratchFolder folder;
  folder.write("tree/b.h", "b");
  folder.write("tree/a/z.cpp", "z");
  folder.write("tree/a/deep/er/y.h", "y");
  folder.write("tree/a.txt", "text");
  folder.write("tree/noextension", "none");
  folder.write("tree/empty.h", "");
  folder.write("alone.txt", "alone");
  const std::string tree = folder / "tree", alone = folder / "alone.txt";
  EXPECT_EQ(texts({.inputs = {tree}, .extensions = {"h", "cpp"}}), (Texts{"y", "z", "b"}));
  EXPECT_EQ(texts({.inputs = {tree}}), (Texts{"y", "z", "text", "b", "none"}));
  EXPECT_EQ(texts({.inputs = {tree, alone}, .extensions = {"h"}}), (Texts{"y", "b", "alone"}));
  EXPECT_EQ(texts({.inputs = {alone, tree + "/a", tree}, .extensions = {"h"}}),
            (Texts{"alone", "y", "b"}));
  EXPECT_EQ(texts({.inputs = {tree}, .extensions = {"none"}}), Texts{});
}

TEST(Corpus, LinksCountOnceAndLoopsEnd) {
  const ScratchFolder folder;
  folder.write("tree/a/one.h", "one");
  folder.write("outside/two.h", "two");
  fs::create_symlink(folder / "tree/a/one.h", folder / "tree/again.h");
  fs::create_symlink(folder / "tree", folder / "tree/a/loop");
  fs::create_symlink(folder / "outside", folder / "tree/folder");
  fs::create_symlink(folder / "tree/nowhere", folder / "tree/broken.h");
  fs::create_symlink(folder / "tree/self.h", folder / "tree/self.h");
  EXPECT_EQ(texts({.inputs = {folder / "tree"}}, 2), Texts{"one"});
  fs::create_symlink(folder / "outside/two.h", folder / "tree/first.h");
  fs::create_symlink(folder / "outside/two.h", folder / "tree/second.h");
  EXPECT_EQ(texts({.inputs = {folder / "tree"}}, 2), (Texts{"two", "one"}));
  ASSERT_EQ(mkfifo((folder / "tree/pipe.h").c_str(), 0600), 0);  // would block for ever
  EXPECT_EQ(texts({.inputs = {folder / "tree", folder / "tree/folder"}}, 2), (Texts{"two", "one"}));
}

TEST(Corpus, StopsAtMaxBytesInsideADocument) {
  const ScratchFolder folder;
  folder.write("1", "aaaa");
  folder.write("2", "bbbb");
  folder.write("3", "cccc");
  const auto upto = [&](int64_t bytes) {
    return texts({.inputs = {folder / ""}, .max_bytes = bytes});
  };
  EXPECT_EQ(upto(12), (Texts{"aaaa", "bbbb", "cccc"}));
  EXPECT_EQ(upto(9), (Texts{"aaaa", "bbbb", "c"}));
  EXPECT_EQ(upto(8), (Texts{"aaaa", "bbbb"}));
  EXPECT_EQ(upto(1), Texts{"a"});
}

TEST(Corpus, LargeFilesComeWhole) {
  const ScratchFolder folder;
  for (const size_t size : {(4u << 20) - 1, 4u << 20, (9u << 20) + 3}) {
    std::string text(size, ' ');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 >> 3);
    folder.write("large", text);
    ASSERT_EQ(texts({.inputs = {folder / "large"}}), Texts{text});
  }
}

TEST(Corpus, ASeedShufflesFiles) {
  const ScratchFolder folder;
  Texts sorted;
  for (int i = 0; i < 50; ++i) {
    sorted.push_back(concat("text ", i + 100));
    folder.write(concat("f", i + 100), sorted.back());
  }
  const auto order = [&](std::optional<uint64_t> seed) {
    return texts({.inputs = {folder / ""}, .shuffle_seed = seed});
  };
  EXPECT_EQ(order({}), sorted);
  Texts shuffled = order(1);
  EXPECT_EQ(shuffled, order(1));
  EXPECT_NE(shuffled, order(2));
  EXPECT_NE(shuffled, sorted);
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(shuffled, sorted);
}

TEST(Corpus, BadInputs) {
  const ScratchFolder folder;
  expect_error(ExitCode::data, {folder / "missing", "No such file"},
               [&] { Corpus({.inputs = {folder / "missing"}}); });
  expect_error(ExitCode::data, {"/dev/null: expected a file or a folder"},
               [&] { Corpus({.inputs = {"/dev/null"}}); });
}

// ---- The command

/// Runs `weft data ...`; what it printed.
std::string run_data(const std::string& arguments) {
  CLI::App app;
  std::function<int()> action;
  add_data_command(app, action);
  app.parse("data " + arguments);
  testing::internal::CaptureStdout();
  try {
    EXPECT_EQ(action(), 0);
  } catch (...) {
    testing::internal::GetCapturedStdout();
    throw;
  }
  return testing::internal::GetCapturedStdout();
}

nlohmann::json json_of(const std::string& path) {
  return nlohmann::json::parse(read_file(path));
}

TEST(DataCommand, PrepareThenInspect) {
  const ScratchFolder folder;
  folder.write("tree/a.h", "int a;\n\x1b[31m");
  folder.write("tree/b.hpp", "caf\xc3\xa9\\\xff");
  folder.write("tree/c.txt", "left out");
  const std::string out = folder / "tokens.h5", json = folder / "result.json";
  const std::string prepare = "prepare --input " + (folder / "tree") + " --output " + out +
                              " --extensions h,hpp --json " + json;
  const std::string line = run_data(prepare);
  EXPECT_NE(line.find("2 documents, 19 tokens, 19 bytes"), std::string::npos) << line;
  EXPECT_NE(line.find(out + "\n"), std::string::npos) << line;
  EXPECT_EQ(json_of(json)["tokens"], 19);
  EXPECT_EQ(json_of(json)["documents"], 2);

  const std::string shown =
      run_data("inspect " + out + " --documents 1 --text 0:19 --json " + json);
  EXPECT_NE(shown.find("documents   2\n"), std::string::npos) << shown;
  EXPECT_NE(shown.find("int a;\\n\\x1b[31mcaf\xc3\xa9\\\\\\xff\n"), std::string::npos) << shown;
  EXPECT_NE(shown.find("document        0"), std::string::npos) << shown;
  EXPECT_EQ(shown.find("document        1"), std::string::npos) << shown;
  EXPECT_EQ(json_of(json)["longest"], 12);

  expect_error(ExitCode::usage, {out, "exists already"}, [&] { run_data(prepare); });
  run_data(prepare + " --overwrite --max-bytes 5 --seed 3");
  EXPECT_EQ(TokenFile(out).tokens(), 5);
  EXPECT_NE(TokenFile(out).info().source.find("at most 5 bytes; files shuffled by 3"),
            std::string::npos);
}

TEST(DataCommand, BadArguments) {
  const ScratchFolder folder;
  const std::string text = folder.write("text", "hello"), out = folder / "tokens.h5";
  const std::string prepare = "prepare --output " + out + " --input " + text;
  run_data(prepare);
  for (const std::string stretch : {":", "1", "1:", ":3", "3:1", "0:6", "-1:2", "1:2x", "a:b"}) {
    expect_error(ExitCode::usage, {"--text: expected BEGIN:END inside 0:5"},
                 [&] { run_data("inspect " + out + " --text=" + stretch); });
  }
  expect_error(ExitCode::usage, {"expected one of bytes"},
               [&] { run_data(prepare + " --overwrite --tokenizer words"); });
  expect_error(ExitCode::io, {folder / "no/result.json"},
               [&] { run_data("inspect " + out + " --json " + (folder / "no/result.json")); });
  const std::string empty = folder.write("empty", "");
  expect_error(ExitCode::data, {"expected text, got 1 file"},
               [&] { run_data("prepare --overwrite --output " + out + " --input " + empty); });
  EXPECT_EQ(TokenFile(out).tokens(), 5);  // the old file survives the empty corpus
  for (const std::string arguments : {"prepare", "inspect", "prepare --input a", "nothing",
                                      "prepare --input a --output b --max-bytes 0"}) {
    EXPECT_THROW(run_data(arguments), CLI::ParseError) << arguments;
  }
}

}  // namespace
}  // namespace weft
