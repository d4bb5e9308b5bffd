// What tests of data/ share: a folder that goes away, expected errors, token files to read, steps
// loaded on every rank of a grid.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "data/batch_loader.hpp"
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

// ---- Samples and steps

inline std::vector<int32_t> sample_tokens(const SampleSource& source, int64_t sample, int64_t begin,
                                          int64_t end) {
  std::vector<int32_t> tokens(end - begin);
  source.tokens(sample, begin, end, tokens);
  return tokens;
}

/// All samples of a step, in order.
struct LoadedStep {
  std::vector<std::vector<int32_t>> tokens, labels;
};

/// Loads a step on every rank of a grid and puts the shards back together.
inline LoadedStep reassembled(const SampleSource& source, uint64_t seed, int64_t step,
                              const Cuts& data, const Cuts& sequence, int64_t micro_batch,
                              std::optional<TokenMasking> masking = {}) {
  const std::vector<int32_t> blank(source.seq_length(), -7);
  LoadedStep out{{static_cast<size_t>(data.total()), blank},
                 {static_cast<size_t>(data.total()), blank}};
  for (int d = 0; d < data.pieces(); ++d) {
    for (int s = 0; s < sequence.pieces(); ++s) {
      const BatchLoader loader(source, seed, data.total(), sequence, s, data, d, micro_batch,
                               masking);
      int64_t sample = data.begin(d);
      for (const Batch& batch : loader.load(step)) {
        const int64_t b = std::ssize(batch.segments), t = batch.end - batch.begin;
        EXPECT_LE(b, micro_batch);
        EXPECT_EQ(batch.begin, sequence.begin(s));
        EXPECT_EQ(batch.end, sequence.end(s));
        EXPECT_EQ(std::ssize(batch.tokens), b * t);
        EXPECT_EQ(std::ssize(batch.labels), b * t);
        for (int64_t row = 0; row < b; ++row, ++sample) {
          std::copy_n(batch.tokens.begin() + row * t, t, out.tokens[sample].begin() + batch.begin);
          std::copy_n(batch.labels.begin() + row * t, t, out.labels[sample].begin() + batch.begin);
        }
      }
      EXPECT_EQ(sample, data.end(d));
    }
  }
  return out;
}

}  // namespace weft
