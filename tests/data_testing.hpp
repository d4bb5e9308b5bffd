// What tests of data/ share: a folder that goes away, expected errors, token files to read.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "data/token_file.hpp"
#include "src/core/check.hpp"
#include "src/core/random.hpp"

namespace weft {

namespace fs = std::filesystem;

/// A new folder, removed with all that is in it.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "weft-data-XXXXXX").native();
    WEFT_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = fs::canonical(name);
  }
  ~ScratchFolder() { fs::remove_all(path_); }

  std::string operator/(const std::string& name) const { return (path_ / name).native(); }

  /// Writes a file, and the folders it is in.
  std::string write(const std::string& name, const std::string& text) const {
    const fs::path path = path_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.native();
  }

  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(path_)) found.insert(entry.path().filename());
    return found;
  }

 private:
  fs::path path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// `f` must throw an Error with that code and a single line in which each of `parts` occurs.
template <class F>
void expect_error(ExitCode code, const std::vector<std::string>& parts, F&& f) {
  try {
    f();
    ADD_FAILURE() << "no error; expected one about " << parts.front();
  } catch (const Error& error) {
    const std::string line = error.what();
    EXPECT_EQ(error.code(), code) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    for (const std::string& part : parts) EXPECT_NE(line.find(part), std::string::npos) << line;
  }
}

// ---- Token files

using Documents = std::vector<std::vector<int32_t>>;

inline Documents random_documents(int64_t vocab, const std::vector<int64_t>& lengths,
                                  uint64_t seed = 5) {
  const RandomStream random(seed, "documents");
  Documents documents;
  uint64_t draw = 0;
  for (const int64_t length : lengths) {
    auto& document = documents.emplace_back(length);
    for (int32_t& token : document) token = static_cast<int32_t>(random.below(draw++, vocab));
  }
  return documents;
}

inline std::vector<int32_t> joined(const Documents& documents) {
  std::vector<int32_t> all;
  for (const auto& document : documents) all.insert(all.end(), document.begin(), document.end());
  return all;
}

inline void write_tokens(const std::string& path, const Documents& documents, int64_t vocab = 256,
                         bool overwrite = false) {
  TokenFileWriter writer(path, {vocab, "bytes", "a test"}, overwrite);
  for (const auto& document : documents) {
    const std::span<const int32_t> tokens(document);  // in two parts
    writer.append(tokens.first(tokens.size() / 3));
    writer.append(tokens.subspan(tokens.size() / 3));
    writer.end_document();
  }
  writer.finish();
}

inline std::vector<int32_t> read_tokens(const TokenFile& file, int64_t begin, int64_t end) {
  std::vector<int32_t> tokens(end - begin);
  file.read(begin, end, tokens);
  return tokens;
}

}  // namespace weft
