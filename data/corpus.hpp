// Corpus: the files under some folders, each streamed as one document.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct CorpusOptions {
  /// Files, and folders that are searched to any depth. Links to folders inside them are not
  /// followed.
  std::vector<std::string> inputs;
  /// Keep only files in folders that end in one of these ("h", "cpp"); empty keeps all. A file that
  /// `inputs` names itself is always kept.
  std::vector<std::string> extensions = {};
  /// Without a seed, files come input by input, sorted inside each; with one, in an order drawn
  /// from it, so that a bounded part is a fair sample of everything.
  std::optional<uint64_t> shuffle_seed = {};
  /// Read no more than this in total; the document that reaches it is cut.
  int64_t max_bytes = std::numeric_limits<int64_t>::max();
};

/// Walks the documents of a corpus:
///
///   while (corpus.next_document()) {
///     for (auto piece = corpus.read(); !piece.empty(); piece = corpus.read()) ...
///   }
///
/// Every file counts once, however many links lead to it. Empty files are no documents. What cannot
/// be read is left out and counted.
class Corpus {
 public:
  /// Lists the files. Throws Error(data) when an input does not exist or is neither a file nor a
  /// folder.
  explicit Corpus(const CorpusOptions& options);

  /// Goes to the next document; false when there is none or `max_bytes` are used up.
  bool next_document();

  /// The next bytes of the current document, valid until the next call; empty at its end. Throws
  /// Error(io) when a file that could be read at first fails later.
  std::string_view read();

  const std::vector<std::filesystem::path>& files() const { return files_; }
  /// What read() has handed out so far.
  int64_t bytes() const { return bytes_; }
  /// Files and folders that could not be read so far.
  int64_t unreadable() const { return unreadable_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void list_input(const std::string& input, const std::vector<std::string>& extensions);
  void list_folder(const std::filesystem::path& folder, const std::vector<std::string>& extensions,
                   std::vector<std::filesystem::path>& found);
  void list_file(const std::filesystem::path& path, std::vector<std::filesystem::path>& found);
  /// Fills piece_ from the current file; false on a read error.
  bool fill();

  std::vector<std::filesystem::path> files_;
  size_t next_file_ = 0;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<char> buffer_;
  std::string_view piece_;    // of the buffer, read ahead: what read() hands out next
  bool piece_handed_ = true;  // whether read() has handed piece_ out
  int64_t max_bytes_;
  int64_t bytes_ = 0;
  int64_t unreadable_ = 0;
};

}  // namespace weft
