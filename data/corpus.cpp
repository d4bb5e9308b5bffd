#include "data/corpus.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "src/core/check.hpp"
#include "src/core/random.hpp"

namespace weft {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPieceBytes = 4 << 20;

bool has_extension(const fs::path& path, const std::vector<std::string>& extensions) {
  if (extensions.empty()) return true;
  return std::any_of(extensions.begin(), extensions.end(), [&](const std::string& known) {
    return path.native().ends_with("." + known);
  });
}

/// Keeps the first of equal paths.
void drop_repeated(std::vector<fs::path>& files) {
  std::unordered_set<std::string> seen;
  std::erase_if(files, [&](const fs::path& file) { return !seen.insert(file.native()).second; });
}

void shuffle(std::vector<fs::path>& files, uint64_t seed) {
  const RandomStream random(seed, "corpus order");
  for (size_t i = files.size(); i > 1; --i) std::swap(files[i - 1], files[random.below(i, i)]);
}

}  // namespace

Corpus::Corpus(const CorpusOptions& options) : buffer_(kPieceBytes), max_bytes_(options.max_bytes) {
  for (const std::string& input : options.inputs) list_input(input, options.extensions);
  drop_repeated(files_);
  if (options.shuffle_seed) shuffle(files_, *options.shuffle_seed);
}

void Corpus::list_input(const std::string& input, const std::vector<std::string>& extensions) {
  std::error_code error;
  const fs::path path = fs::canonical(input, error);
  WEFT_REQUIRE(!error, ExitCode::data, input, ": expected a file or a folder, got nothing (",
               error.message(), ")");
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::regular) {
    files_.push_back(path);
    return;
  }
  WEFT_REQUIRE(type == fs::file_type::directory, ExitCode::data, input,
               ": expected a file or a folder, got something else");
  std::vector<fs::path> found;
  list_folder(path, extensions, found);
  std::sort(found.begin(), found.end());
  files_.insert(files_.end(), found.begin(), found.end());
}

void Corpus::list_folder(const fs::path& folder, const std::vector<std::string>& extensions,
                         std::vector<fs::path>& found) {
  std::vector<fs::path> folders{folder};
  while (!folders.empty()) {
    const fs::path current = std::move(folders.back());
    folders.pop_back();
    std::error_code error;
    for (fs::directory_iterator entry(current, error), end; !error && entry != end;
         entry.increment(error)) {
      std::error_code unknown;  // of this entry alone: the folder's other entries still count
      if (entry->symlink_status(unknown).type() == fs::file_type::directory) {
        folders.push_back(entry->path());
      } else if (has_extension(entry->path(), extensions)) {
        list_file(entry->path(), found);
      }
    }
    if (error) ++unreadable_;
  }
}

void Corpus::list_file(const fs::path& path, std::vector<fs::path>& found) {
  std::error_code error;
  // The target stands for a link, so that links to one file are seen as equal.
  const fs::path file = fs::is_symlink(path, error) ? fs::canonical(path, error) : path;
  if (error) {
    ++unreadable_;  // it leads nowhere
  } else if (fs::is_regular_file(file, error)) {
    found.push_back(file);
  }
}

bool Corpus::fill() {
  const int64_t room = std::min(std::ssize(buffer_), max_bytes_ - bytes_);
  piece_ = {buffer_.data(), std::fread(buffer_.data(), 1, room, file_.get())};
  piece_handed_ = false;
  return std::ferror(file_.get()) == 0;
}

bool Corpus::next_document() {
  while (next_file_ < files_.size() && bytes_ < max_bytes_) {
    file_.reset(std::fopen(files_[next_file_++].c_str(), "rb"));
    if (!file_ || !fill()) {
      ++unreadable_;
    } else if (!piece_.empty()) {
      return true;
    }
  }
  return false;
}

std::string_view Corpus::read() {
  if (piece_handed_) {
    WEFT_REQUIRE(fill(), ExitCode::io, files_[next_file_ - 1].native(), ": cannot be read (",
                 std::strerror(errno), ")");
  }
  piece_handed_ = true;
  bytes_ += std::ssize(piece_);
  return piece_;
}

}  // namespace weft
