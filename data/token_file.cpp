#include "data/token_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "data/hdf5_id.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace fs = std::filesystem;
namespace {

using hdf5::Id;
using hdf5::Lock;
using hdf5::reason;

constexpr char kFormat[] = "weft-tokens";
constexpr int64_t kVersion = 1;
constexpr int64_t kChunkBytes = 1 << 20;
constexpr size_t kLongestSource = 4096;  // an attribute holds at most 64 KiB

/// Part of another program's text, fit for a line of ours.
std::string quoted(std::string text) {
  if (text.size() > 40) text.replace(40, std::string::npos, "...");
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
  return "'" + text + "'";
}

/// Throws an error of whoever opens or reads `path`.
[[noreturn]] void reject(const std::string& path, const std::string& expected,
                         const std::string& got) {
  throw Error(ExitCode::data, concat(path, ": expected ", expected, ", got ", got));
}

/// Passes on the result of an HDF5 call that reads `path`.
template <class Result>
Result reading(Result result, const std::string& path) {
  if (result < 0) reject(path, "a token file", concat("damaged HDF5 (", reason(), ")"));
  return result;
}

/// Passes on the result of an HDF5 call that writes `path`.
template <class Result>
Result writing(Result result, const std::string& path) {
  WEFT_REQUIRE(result >= 0, ExitCode::io, path, ": cannot be written (", reason(), ")");
  return result;
}

// ---- Writing

/// The file that becomes `path` when all is well; removed otherwise.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : name_(concat(path, ".tmp-", getpid())) {}
  ~TemporaryFile() { unlink(name_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

/// Only files are ever replaced, and only when that is wanted.
void refuse_existing(const std::string& path, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return;
  WEFT_REQUIRE(fs::is_regular_file(status), ExitCode::usage, path,
               ": expected the name of a file to write, got ",
               fs::is_directory(status) ? "a folder" : "something that is no file");
  WEFT_REQUIRE(overwrite, ExitCode::usage, path, ": exists already (--overwrite replaces it)");
}

/// Brings a file or folder to disk.
void sync(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  // EINVAL: a file system that has no such thing for folders.
  const bool done = file >= 0 && (fsync(file) == 0 || errno == EINVAL);
  const int error = errno;
  if (file >= 0) close(file);
  WEFT_REQUIRE(done, ExitCode::io, path, ": cannot be written (", std::strerror(error), ")");
}

Id create_file(const std::string& temporary, const std::string& path) {
  const Id access(writing(H5Pcreate(H5P_FILE_ACCESS), path), H5Pclose);
  // The newest format has checksums on its metadata too.
  writing(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), path);
  writing(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), path);
  const Id layout(writing(H5Pcreate(H5P_FILE_CREATE), path), H5Pclose);
  writing(H5Pset_obj_track_times(layout, false), path);  // the same text, the same bytes
  return {writing(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, layout, access), path), H5Fclose};
}

void write_attribute(hid_t file, const char* name, hid_t type, const void* value,
                     const std::string& path) {
  const Id space(writing(H5Screate(H5S_SCALAR), path), H5Sclose);
  const Id attribute(writing(H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT), path),
                     H5Aclose);
  writing(H5Awrite(attribute, type, value), path);
}

void write_attribute(hid_t file, const char* name, int64_t value, const std::string& path) {
  write_attribute(file, name, H5T_NATIVE_INT64, &value, path);
}

void write_attribute(hid_t file, const char* name, const std::string& value,
                     const std::string& path) {
  const Id type(writing(H5Tcopy(H5T_C_S1), path), H5Tclose);
  writing(H5Tset_size(type, value.size() + 1), path);
  writing(H5Tset_cset(type, H5T_CSET_UTF8), path);
  write_attribute(file, name, type, value.c_str(), path);
}

/// An empty dataset that grows by whole chunks.
Id create_dataset(hid_t file, const char* name, hid_t type, hsize_t chunk,
                  const std::string& path) {
  const hsize_t none = 0, unlimited = H5S_UNLIMITED;
  const Id space(writing(H5Screate_simple(1, &none, &unlimited), path), H5Sclose);
  const Id layout(writing(H5Pcreate(H5P_DATASET_CREATE), path), H5Pclose);
  writing(H5Pset_chunk(layout, 1, &chunk), path);
  writing(H5Pset_fletcher32(layout), path);
  writing(H5Pset_obj_track_times(layout, false), path);
  writing(H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER), path);
  return {writing(H5Dcreate2(file, name, type, space, H5P_DEFAULT, layout, H5P_DEFAULT), path),
          H5Dclose};
}

/// Grows `dataset` from `size` by `count` elements.
void append_elements(hid_t dataset, hsize_t size, hsize_t count, hid_t type, const void* elements,
                     const std::string& path) {
  const hsize_t grown = size + count;
  writing(H5Dset_extent(dataset, &grown), path);
  const Id target(writing(H5Dget_space(dataset), path), H5Sclose);
  writing(H5Sselect_hyperslab(target, H5S_SELECT_SET, &size, nullptr, &count, nullptr), path);
  const Id memory(writing(H5Screate_simple(1, &count, nullptr), path), H5Sclose);
  writing(H5Dwrite(dataset, type, memory, target, H5P_DEFAULT, elements), path);
}

}  // namespace

struct TokenFileWriter::State {
  State(std::string to, const TokenFileInfo& info, bool replace);
  void flush();

  std::string path;
  int64_t vocab_size;
  bool overwrite;
  TemporaryFile temporary;  // outlives the ids below
  Id file;
  Id dataset;                   // once there is something to write: its chunks are the first flush
  std::vector<int32_t> buffer;  // the tokens of the next chunk
  int64_t chunk;                // in tokens
  int64_t flushed = 0;
  std::vector<int64_t> offsets{0};
};

TokenFileWriter::State::State(std::string to, const TokenFileInfo& info, bool replace)
    : path(std::move(to)),
      vocab_size(info.vocab_size),
      overwrite(replace),
      temporary(path),
      chunk(vocab_size <= 256 ? kChunkBytes : kChunkBytes / 4) {
  WEFT_CHECK(vocab_size > 0 && vocab_size <= INT32_MAX, "vocab_size ", vocab_size);
  refuse_existing(path, overwrite);
  file = create_file(temporary.name(), path);
  write_attribute(file, "format", kFormat, path);
  write_attribute(file, "version", kVersion, path);
  write_attribute(file, "vocab_size", vocab_size, path);
  write_attribute(file, "tokenizer", info.tokenizer, path);
  write_attribute(file, "source", info.source.substr(0, kLongestSource), path);
  buffer.reserve(chunk);
}

void TokenFileWriter::State::flush() {
  const Lock lock;
  const hid_t type = vocab_size <= 256 ? H5T_STD_U8LE : H5T_STD_I32LE;
  if (dataset < 0) {
    const hsize_t elements = std::max<size_t>(buffer.size(), 1);
    dataset = create_dataset(file, "tokens", type, elements, path);
  }
  if (!buffer.empty()) {
    append_elements(dataset, flushed, buffer.size(), H5T_NATIVE_INT32, buffer.data(), path);
  }
  flushed += std::ssize(buffer);
  buffer.clear();
}

TokenFileWriter::TokenFileWriter(std::string path, const TokenFileInfo& info, bool overwrite) {
  const Lock lock;
  state_ = std::make_unique<State>(std::move(path), info, overwrite);
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::append(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    WEFT_CHECK(token >= 0 && token < state_->vocab_size, "token ", token);
    state_->buffer.push_back(token);
    if (std::ssize(state_->buffer) == state_->chunk) state_->flush();
  }
}

void TokenFileWriter::end_document() {
  if (tokens() > state_->offsets.back()) state_->offsets.push_back(tokens());
}

void TokenFileWriter::finish() {
  State& s = *state_;
  WEFT_CHECK(s.file >= 0, s.path, " is finished");
  end_document();
  s.flush();
  {
    const Lock lock;
    const hsize_t count = s.offsets.size();
    Id offsets = create_dataset(s.file, "document_offsets", H5T_STD_I64LE,
                                std::min<hsize_t>(count, kChunkBytes / 8), s.path);
    append_elements(offsets, 0, count, H5T_NATIVE_INT64, s.offsets.data(), s.path);
    writing(offsets.close(), s.path);
    writing(s.dataset.close(), s.path);
    writing(H5Fflush(s.file, H5F_SCOPE_LOCAL), s.path);
    writing(s.file.close(), s.path);
  }
  sync(s.temporary.name());
  refuse_existing(s.path, s.overwrite);  // it may have come meanwhile
  WEFT_REQUIRE(std::rename(s.temporary.name().c_str(), s.path.c_str()) == 0, ExitCode::io, s.path,
               ": cannot be written (", std::strerror(errno), ")");
  sync((fs::path(s.path).parent_path() / ".").native());
}

int64_t TokenFileWriter::tokens() const {
  return state_->flushed + std::ssize(state_->buffer);
}
int64_t TokenFileWriter::documents() const {
  return std::ssize(state_->offsets) - 1;
}

// ---- Reading

namespace {

Id open_file(const std::string& path) {
  const char* expected = "a token file";
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::directory) reject(path, expected, "a folder");
  if (error) reject(path, expected, concat("nothing (", error.message(), ")"));
  if (type != fs::file_type::regular) reject(path, expected, "something that is no file");
  if (fs::file_size(path, error) == 0) reject(path, expected, "an empty file");

  const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
  if (is_hdf5 < 0) reject(path, expected, concat("a file that cannot be read (", reason(), ")"));
  if (is_hdf5 == 0) reject(path, expected, "a file that is not HDF5");
  const Id access(reading(H5Pcreate(H5P_FILE_ACCESS), path), H5Pclose);
  // Token files never change once they are in place, and not every cluster's file system has locks.
  reading(H5Pset_file_locking(access, false, true), path);
  return {reading(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), path), H5Fclose};
}

Id open_attribute(hid_t file, const std::string& name, H5T_class_t kind, const std::string& path) {
  const std::string expected =
      concat("attribute '", name, "' to be ", kind == H5T_STRING ? "a text" : "an integer");
  if (reading(H5Aexists(file, name.c_str()), path) == 0) reject(path, expected, "none");
  Id attribute(reading(H5Aopen(file, name.c_str(), H5P_DEFAULT), path), H5Aclose);
  const Id type(reading(H5Aget_type(attribute), path), H5Tclose);
  const Id space(reading(H5Aget_space(attribute), path), H5Sclose);
  if (H5Tget_class(type) != kind || H5Sget_simple_extent_npoints(space) != 1) {
    reject(path, expected, "something else");
  }
  return attribute;
}

int64_t read_integer(hid_t file, const std::string& name, const std::string& path) {
  const Id attribute = open_attribute(file, name, H5T_INTEGER, path);
  int64_t value = 0;
  reading(H5Aread(attribute, H5T_NATIVE_INT64, &value), path);
  return value;
}

/// Ours are of fixed length, those of other programs often are not.
std::string read_text(hid_t file, const std::string& name, const std::string& path) {
  const Id attribute = open_attribute(file, name, H5T_STRING, path);
  const Id type(reading(H5Aget_type(attribute), path), H5Tclose);
  if (reading(H5Tis_variable_str(type), path) > 0) {
    char* text = nullptr;
    reading(H5Aread(attribute, type, &text), path);
    const std::unique_ptr<char, herr_t (*)(void*)> owner(
        text, [](void* memory) { return H5free_memory(memory); });
    return text == nullptr ? "" : text;
  }
  std::string text(H5Tget_size(type), '\0');
  reading(H5Aread(attribute, type, text.data()), path);
  text.resize(std::strlen(text.c_str()));
  return text;
}

/// Opens a list whose bytes are in this file: other names for them are not followed.
Id open_dataset(hid_t file, const std::string& name, const std::string& path) {
  const std::string expected = concat("a dataset '", name, "' of one dimension");
  H5L_info_t link{};
  if (reading(H5Lexists(file, name.c_str(), H5P_DEFAULT), path) == 0) {
    reject(path, expected, "none");
  }
  reading(H5Lget_info(file, name.c_str(), &link, H5P_DEFAULT), path);
  if (link.type != H5L_TYPE_HARD) reject(path, expected, "a link");
  Id dataset(reading(H5Dopen2(file, name.c_str(), H5P_DEFAULT), path), H5Dclose);
  const Id layout(reading(H5Dget_create_plist(dataset), path), H5Pclose);
  if (H5Pget_layout(layout) == H5D_VIRTUAL || H5Pget_external_count(layout) != 0) {
    reject(path, expected, "one that is kept in another file");
  }
  const Id space(reading(H5Dget_space(dataset), path), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank != 1) reject(path, expected, concat(rank));
  return dataset;
}

/// "u8", "i64", ...; the names of our own types.
std::string type_name(hid_t dataset, const std::string& path) {
  const Id type(reading(H5Dget_type(dataset), path), H5Tclose);
  if (H5Tget_class(type) != H5T_INTEGER) return "no integers";
  return concat(H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "i", 8 * H5Tget_size(type));
}

int64_t count_elements(hid_t dataset, const std::string& path) {
  const Id space(reading(H5Dget_space(dataset), path), H5Sclose);
  return reading(H5Sget_simple_extent_npoints(space), path);
}

void read_elements(hid_t dataset, hsize_t begin, hsize_t count, hid_t type, void* out,
                   const std::string& path) {
  const Id source(reading(H5Dget_space(dataset), path), H5Sclose);
  reading(H5Sselect_hyperslab(source, H5S_SELECT_SET, &begin, nullptr, &count, nullptr), path);
  const Id memory(reading(H5Screate_simple(1, &count, nullptr), path), H5Sclose);
  reading(H5Dread(dataset, type, memory, source, H5P_DEFAULT, out), path);
}

TokenFileInfo read_info(hid_t file, const std::string& path) {
  const std::string format = read_text(file, "format", path);
  if (format != kFormat) reject(path, concat("format '", kFormat, "'"), quoted(format));
  const int64_t version = read_integer(file, "version", path);
  if (version != kVersion) reject(path, concat("version ", kVersion), concat(version));
  const int64_t vocab_size = read_integer(file, "vocab_size", path);
  if (vocab_size < 1 || vocab_size > INT32_MAX) {
    reject(path, concat("a vocab_size in [1, ", INT32_MAX, "]"), concat(vocab_size));
  }
  return {vocab_size, read_text(file, "tokenizer", path), read_text(file, "source", path)};
}

std::vector<int64_t> read_offsets(hid_t file, int64_t tokens, const std::string& path) {
  const Id dataset = open_dataset(file, "document_offsets", path);
  if (const std::string type = type_name(dataset, path); type != "i64") {
    reject(path, "document_offsets to be i64", type);
  }
  const int64_t count = count_elements(dataset, path);
  if (count < 1 || count - 1 > tokens) {
    reject(path, concat("1 to ", tokens + 1, " document_offsets for ", tokens, " tokens"),
           concat(count));
  }
  std::vector<int64_t> offsets(count);
  read_elements(dataset, 0, count, H5T_NATIVE_INT64, offsets.data(), path);
  if (offsets.front() != 0) reject(path, "document_offsets from 0", concat(offsets.front()));
  for (int64_t d = 1; d < count; ++d) {
    if (offsets[d] <= offsets[d - 1]) {
      reject(path, "ascending document_offsets",
             concat(offsets[d], " after ", offsets[d - 1], " at ", d));
    }
  }
  if (offsets.back() != tokens) {
    reject(path, concat("document_offsets that end at ", tokens, " tokens"),
           concat(offsets.back()));
  }
  return offsets;
}

}  // namespace

struct TokenFile::State {
  Id file;
  Id dataset;
};

TokenFile::TokenFile(std::string path) : path_(std::move(path)), state_(std::make_unique<State>()) {
  const Lock lock;
  state_->file = open_file(path_);
  info_ = read_info(state_->file, path_);
  state_->dataset = open_dataset(state_->file, "tokens", path_);
  const std::string type = type_name(state_->dataset, path_);
  if (type != "u8" && type != "i32") reject(path_, "tokens to be u8 or i32", type);
  document_offsets_ = read_offsets(state_->file, count_elements(state_->dataset, path_), path_);
}

TokenFile::~TokenFile() = default;

void TokenFile::read(int64_t begin, int64_t end, std::span<int32_t> out) const {
  WEFT_CHECK(begin >= 0 && begin <= end && end <= tokens(), "[", begin, ", ", end, ") of ",
             tokens());
  WEFT_CHECK(std::ssize(out) == end - begin, out.size(), " places for ", end - begin, " tokens");
  if (begin == end) return;
  {
    const Lock lock;
    read_elements(state_->dataset, begin, end - begin, H5T_NATIVE_INT32, out.data(), path_);
  }
  const auto bad = std::find_if(out.begin(), out.end(), [this](int32_t token) {
    return token < 0 || token >= info_.vocab_size;
  });
  if (bad != out.end()) {
    reject(path_, concat("ids in [0, ", info_.vocab_size, ") up to token ", tokens()),
           concat(*bad, " at token ", begin + (bad - out.begin())));
  }
}

}  // namespace weft
