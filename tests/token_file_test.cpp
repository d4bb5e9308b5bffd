// Token files: round trips, files that are none or lie, writing that fails.
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "data/token_file.hpp"
#include "src/core/check.hpp"
#include "src/core/random.hpp"
#include "tests/data_testing.hpp"

namespace weft {
namespace {

// ---- Right ones

TEST(TokenFile, RoundTrip) {
  const ScratchFolder folder;
  const int64_t chunk = 1 << 18;  // tokens of a chunk of i32
  const std::vector<std::vector<int64_t>> shapes = {
      {},         {1},        {1, 1, 1},           {5, 3, 9},       {chunk - 1}, {chunk},
      {chunk, 1}, {1, chunk}, {3, 2 * chunk, 777}, {4 * chunk + 1}, {0, 4, 0, 2}};
  for (const int64_t vocab : {256, 257, 50'000}) {
    for (const auto& lengths : shapes) {
      Documents documents = random_documents(vocab, lengths);
      write_tokens(folder / "tokens.h5", documents, vocab, true);
      std::erase_if(documents, [](const auto& document) { return document.empty(); });
      std::vector<int64_t> offsets{0};
      for (const auto& document : documents) offsets.push_back(offsets.back() + document.size());

      const TokenFile file(folder / "tokens.h5");
      ASSERT_EQ(file.document_offsets(), offsets);
      ASSERT_EQ(file.documents(), std::ssize(documents));
      ASSERT_EQ(file.tokens(), offsets.back());
      ASSERT_EQ(file.info().vocab_size, vocab);
      ASSERT_EQ(file.info().tokenizer, "bytes");
      ASSERT_EQ(file.info().source, "a test");
      ASSERT_EQ(read_tokens(file, 0, file.tokens()), joined(documents));
    }
  }
  EXPECT_EQ(folder.names(), std::set<std::string>{"tokens.h5"});
}

TEST(TokenFile, AnyRangeReads) {
  const ScratchFolder folder;
  const Documents documents = random_documents(1000, {300'000, 20, 250'000});
  write_tokens(folder / "tokens.h5", documents, 1000);
  const std::vector<int32_t> all = joined(documents);
  const TokenFile file(folder / "tokens.h5");
  const RandomStream random(1, "ranges");
  for (int i = 0; i < 200; ++i) {
    const int64_t begin = random.below(2 * i, all.size() + 1);
    const int64_t end =
        begin + random.below(2 * i + 1, std::min<int64_t>(all.size() - begin, 3000) + 1);
    ASSERT_EQ(read_tokens(file, begin, end),
              std::vector<int32_t>(all.begin() + begin, all.begin() + end));
  }
  EXPECT_TRUE(read_tokens(file, 0, 0).empty());
  EXPECT_TRUE(read_tokens(file, file.tokens(), file.tokens()).empty());
}

TEST(TokenFile, ThreadsReadAtTheSameTime) {
  const ScratchFolder folder;
  const Documents documents = random_documents(1000, {400'000});
  write_tokens(folder / "tokens.h5", documents, 1000);
  const TokenFile shared(folder / "tokens.h5");
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      const RandomStream random(rank, "threads");
      for (int i = 0; i < 50; ++i) {
        const TokenFile own(folder / "tokens.h5");
        const TokenFile& file = i % 2 == 0 ? own : shared;
        const int64_t begin = random.below(i, 390'000);
        const auto tokens = read_tokens(file, begin, begin + 5000);
        EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), documents[0].begin() + begin));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- Token files that are none

/// A file made by hand, right in all but what a test changes.
struct Handmade {
  const char* format = "weft-tokens";
  int64_t version = 1;
  int64_t vocab_size = 256;
  hid_t token_type = H5T_STD_U8LE;
  hid_t offset_type = H5T_STD_I64LE;
  int token_rank = 1;
  std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6};
  std::vector<int64_t> offsets{0, 2, 6};
  std::set<std::string> leave_out = {};
  bool link_tokens = false;  // to another file
  bool variable_text = false;

  void write(const std::string& path) const {
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, variable_text ? H5T_VARIABLE : std::strlen(format) + 1);
    attribute(file, "format", text, variable_text ? static_cast<const void*>(&format) : format);
    attribute(file, "tokenizer", text, variable_text ? static_cast<const void*>(&format) : format);
    attribute(file, "source", text, variable_text ? static_cast<const void*>(&format) : format);
    attribute(file, "version", H5T_NATIVE_INT64, &version);
    attribute(file, "vocab_size", H5T_NATIVE_INT64, &vocab_size);
    if (link_tokens) {
      H5Lcreate_external("other.h5", "/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
    } else {
      dataset(file, "tokens", token_rank, tokens.size(), token_type, H5T_NATIVE_INT32,
              tokens.data());
    }
    dataset(file, "document_offsets", 1, offsets.size(), offset_type, H5T_NATIVE_INT64,
            offsets.data());
    H5Tclose(text);
    WEFT_CHECK(H5Fclose(file) >= 0);
  }

 private:
  void attribute(hid_t file, const char* name, hid_t type, const void* value) const {
    if (leave_out.contains(name)) return;
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t id = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    WEFT_CHECK(H5Awrite(id, type, value) >= 0);
    H5Aclose(id);
    H5Sclose(space);
  }

  void dataset(hid_t file, const char* name, int rank, hsize_t size, hid_t type, hid_t memory,
               const void* values) const {
    if (leave_out.contains(name)) return;
    const hsize_t dims[2] = {size, 1};
    const hid_t space = H5Screate_simple(rank, dims, nullptr);
    const hid_t id = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    WEFT_CHECK(H5Dwrite(id, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    H5Dclose(id);
    H5Sclose(space);
  }
};

void expect_bad(const Handmade& handmade, const std::vector<std::string>& parts) {
  const ScratchFolder folder;
  const std::string path = folder / "bad.h5";
  handmade.write(path);
  expect_error(ExitCode::data, {path + ": expected "}, [&] { TokenFile{path}; });
  expect_error(ExitCode::data, parts, [&] { TokenFile{path}; });
}

TEST(BadTokenFile, HandmadeOnesAreReadWhenRight) {
  const ScratchFolder folder;
  Handmade handmade;
  for (const bool variable : {false, true}) {
    for (const hid_t type : {H5T_STD_U8LE, H5T_STD_I32LE, H5T_STD_I32BE}) {
      handmade.variable_text = variable;
      handmade.token_type = type;
      handmade.write(folder / "good.h5");
      const TokenFile file(folder / "good.h5");
      EXPECT_EQ(read_tokens(file, 0, 6), handmade.tokens);
      EXPECT_EQ(file.info().tokenizer, "weft-tokens");
    }
  }
}

TEST(BadTokenFile, NotAFileOfTokens) {
  const ScratchFolder folder;
  const auto bad = [&](const std::string& path, const std::string& got) {
    expect_error(ExitCode::data, {path + ": expected a token file, got " + got},
                 [&] { TokenFile{path}; });
  };
  bad(folder / "missing.h5", "nothing (No such file or directory)");
  bad(folder.write("file", "x") + "/below", "nothing (Not a directory)");
  bad(folder / "", "a folder");
  bad(folder.write("empty.h5", ""), "an empty file");
  bad(folder.write("text.h5", "some text that is longer than a signature\n"),
      "a file that is not HDF5");
  bad(folder.write("short.h5", "\x89HDF\r\n\x1a\n"), "damaged HDF5");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  bad(folder / "pipe", "something that is no file");
}

TEST(BadTokenFile, TruncatedAnywhere) {
  const ScratchFolder folder;
  const std::string path = folder / "tokens.h5";
  write_tokens(path, random_documents(256, {3000, 2000, 10}));
  const std::string whole = read_file(path);
  std::vector<size_t> lengths = {1, 7, 8, 9, 47, 48, 100, 1000, whole.size() - 1};
  for (size_t length = 512; length < whole.size(); length += 512) lengths.push_back(length);
  for (const size_t length : lengths) {
    folder.write("tokens.h5", whole.substr(0, length));
    expect_error(ExitCode::data, {path + ": expected a token file, got "},
                 [&] { TokenFile{path}; });
  }
}

TEST(BadTokenFile, AFlippedTokenIsNoticed) {
  const ScratchFolder folder;
  const std::string path = folder / "tokens.h5";
  write_tokens(path, {std::vector<int32_t>(5000, 'x')});
  std::string bytes = read_file(path);
  const size_t at = bytes.find("xxxxxxxxxx");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 5] = 'y';
  folder.write("tokens.h5", bytes);
  const TokenFile file(path);
  expect_error(ExitCode::data, {path, "hecksum"}, [&] { read_tokens(file, 0, 10); });
}

TEST(BadTokenFile, WrongAttributes) {
  expect_bad({.format = "other-tokens"}, {"format 'weft-tokens', got 'other-tokens'"});
  expect_bad({.format = "two\nlines"}, {"got 'two?lines'"});
  expect_bad({.version = 2}, {"version 1, got 2"});
  expect_bad({.vocab_size = 0}, {"vocab_size", "got 0"});
  expect_bad({.vocab_size = int64_t{1} << 40}, {"vocab_size", "got 1099511627776"});
  for (const char* name : {"format", "version", "vocab_size", "tokenizer", "source"}) {
    expect_bad({.leave_out = {name}}, {std::string("attribute '") + name + "'", "got none"});
  }
}

TEST(BadTokenFile, WrongDatasets) {
  expect_bad({.token_type = H5T_STD_I64LE}, {"tokens to be u8 or i32, got i64"});
  expect_bad({.token_type = H5T_STD_U16LE}, {"tokens to be u8 or i32, got u16"});
  expect_bad({.token_type = H5T_IEEE_F32LE}, {"tokens to be u8 or i32, got no integers"});
  expect_bad({.offset_type = H5T_STD_I32LE}, {"document_offsets to be i64, got i32"});
  expect_bad({.token_rank = 2}, {"'tokens' of one dimension, got 2"});
  expect_bad({.token_rank = 0, .tokens = {1}}, {"'tokens' of one dimension, got 0"});
  expect_bad({.leave_out = {"tokens"}}, {"'tokens'", "got none"});
  expect_bad({.leave_out = {"document_offsets"}}, {"'document_offsets'", "got none"});
  expect_bad({.link_tokens = true}, {"'tokens'", "got a link"});
}

TEST(BadTokenFile, LyingOffsets) {
  expect_bad({.offsets = {0, 2, 5}}, {"end at 6 tokens, got 5"});
  expect_bad({.offsets = {0, 2, 7}}, {"end at 6 tokens, got 7"});
  expect_bad({.offsets = {1, 6}}, {"from 0, got 1"});
  expect_bad({.offsets = {0, 4, 2, 6}}, {"ascending", "2 after 4 at 2"});
  expect_bad({.offsets = {0, 4, 4, 6}}, {"ascending", "4 after 4 at 2"});
  expect_bad({.offsets = {0, -1, 6}}, {"ascending", "-1 after 0"});
  expect_bad({.offsets = {}}, {"1 to 7 document_offsets", "got 0"});
  expect_bad({.offsets = {0, 1, 2, 3, 4, 5, 6, 7}}, {"1 to 7 document_offsets", "got 8"});
}

TEST(BadTokenFile, TokenOutsideTheVocabulary) {
  const ScratchFolder folder;
  const std::string path = folder / "tokens.h5";
  for (const int32_t bad : {-1, 10, INT32_MAX, INT32_MIN}) {
    Handmade{.vocab_size = 10, .token_type = H5T_STD_I32LE, .tokens = {1, 2, 3, 9, bad, 0}}.write(
        path);
    const TokenFile file(path);
    EXPECT_EQ(read_tokens(file, 0, 4), (std::vector<int32_t>{1, 2, 3, 9}));
    expect_error(ExitCode::data, {path, "[0, 10)", concat("got ", bad, " at token 4")},
                 [&] { read_tokens(file, 3, 6); });
  }
}

// ---- Writing that fails

TEST(TokenFileWriter, RefusesWhatIsThere) {
  const ScratchFolder folder;
  const std::string path = folder.write("tokens.h5", "precious");
  expect_error(ExitCode::usage, {path, "exists already"}, [&] { write_tokens(path, {{1, 2}}); });
  EXPECT_EQ(read_file(path), "precious");
  write_tokens(path, {{1, 2}}, 256, true);
  EXPECT_EQ(TokenFile(path).tokens(), 2);
  expect_error(ExitCode::usage, {"got a folder"}, [&] { write_tokens(folder / "", {{1}}); });
  expect_error(ExitCode::io, {folder / "no/tokens.h5", "No such file or directory"},
               [&] { write_tokens(folder / "no/tokens.h5", {{1}}); });
  EXPECT_EQ(folder.names(), std::set<std::string>{"tokens.h5"});
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error(ExitCode::usage, {"something that is no file"},
               [&] { write_tokens(folder / "pipe", {{1}}, 256, true); });
}

TEST(TokenFileWriter, AnAbandonedAttemptLeavesTheOldFile) {
  const ScratchFolder folder;
  const std::string path = folder.write("tokens.h5", "precious");
  {
    TokenFileWriter writer(path, {256, "bytes", ""}, true);
    writer.append(std::vector<int32_t>(3 << 20, 7));
    EXPECT_EQ(folder.names().size(), 2u);
  }
  EXPECT_EQ(read_file(path), "precious");
  EXPECT_EQ(folder.names(), std::set<std::string>{"tokens.h5"});
}

/// While it lives, no file of this process grows beyond `bytes`: a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    WEFT_CALL(setrlimit(RLIMIT_FSIZE, &limit));
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

int64_t open_files() {
  return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator{});
}

#ifdef __SANITIZE_ADDRESS__
constexpr rlim_t kLeastRoom = 1000;  // HDF5 leaks when it cannot write a file's first bytes
#else
constexpr rlim_t kLeastRoom = 0;
#endif

TEST(TokenFileWriter, AFullDiskLosesNothing) {
  const ScratchFolder folder;
  const std::string path = folder / "tokens.h5";
  write_tokens(path, {{1, 2, 3}});
  const std::string before = read_file(path);
  const int64_t files = open_files();
  const Documents documents = random_documents(1000, {900'000, 3, 5000});
  for (const rlim_t room : {0, 10, 1000, 1 << 20, 3 << 20, 3'620'000}) {
    if (room < kLeastRoom) continue;
    {
      const FullDisk disk(room);
      expect_error(ExitCode::io, {path, "cannot be written (File too large)"},
                   [&] { write_tokens(path, documents, 1000, true); });
    }
    ASSERT_EQ(read_file(path), before) << room;
    ASSERT_EQ(folder.names(), std::set<std::string>{"tokens.h5"}) << room;
    ASSERT_EQ(open_files(), files) << room;  // an open one would hold on to the disk's space
  }
  write_tokens(path, documents, 1000, true);  // and all is well again
  EXPECT_EQ(read_tokens(TokenFile(path), 0, 905'003), joined(documents));
}

}  // namespace
}  // namespace weft
