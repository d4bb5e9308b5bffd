// Token files: the tokens of many documents, one after the other, in HDF5.
//
//   /tokens            u8 (vocabulary of at most 256) or i32, chunks of about 1 MiB with checksums
//   /document_offsets  i64 [documents + 1]: document d is tokens [offset[d], offset[d + 1])
//   attributes         format "weft-tokens", version 1, vocab_size, tokenizer, source
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace weft {

/// What a token file says about itself.
struct TokenFileInfo {
  int64_t vocab_size = 0;
  std::string tokenizer;
  std::string source;  // where the text came from, for people
};

/// Writes a token file beside its final place and moves it there when it is whole: until then, and
/// after any failure, `path` holds what it held before. Throws Error(io) when writing fails.
class TokenFileWriter {
 public:
  /// Throws Error(usage) when `path` exists and `overwrite` is false.
  TokenFileWriter(std::string path, const TokenFileInfo& info, bool overwrite);
  /// Without finish() the attempt leaves nothing behind.
  ~TokenFileWriter();

  /// More tokens of the current document.
  void append(std::span<const int32_t> tokens);
  /// The next token starts a new document. A document without tokens is none.
  void end_document();
  /// Ends the last document, brings everything to disk and into place. Nothing may follow.
  void finish();

  int64_t tokens() const;
  int64_t documents() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads a token file. Whatever is wrong with it is an Error(data) of one line that names the file.
/// Any number of them may be used from any threads; HDF5 itself runs one call at a time.
class TokenFile {
 public:
  /// Opens it and checks everything but the tokens themselves.
  explicit TokenFile(std::string path);
  ~TokenFile();

  const std::string& path() const { return path_; }
  const TokenFileInfo& info() const { return info_; }
  int64_t tokens() const { return document_offsets_.back(); }
  int64_t documents() const { return std::ssize(document_offsets_) - 1; }
  /// Ascending, the first 0, the last tokens().
  const std::vector<int64_t>& document_offsets() const { return document_offsets_; }

  /// Tokens [begin, end) into `out`, whose size is end - begin. Throws Error(data) when a token is
  /// not in the vocabulary or its checksum is wrong.
  void read(int64_t begin, int64_t end, std::span<int32_t> out) const;

 private:
  struct State;

  std::string path_;
  std::unique_ptr<State> state_;
  TokenFileInfo info_;
  std::vector<int64_t> document_offsets_;
};

}  // namespace weft
