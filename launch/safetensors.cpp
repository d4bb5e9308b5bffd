#include "launch/safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "launch/quote.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace {

using Json = nlohmann::json;
using Entry = SafetensorsFile::Entry;

constexpr uint64_t kLengthBytes = 8;              // the header's length, little-endian
constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit
constexpr int kDeepestHeader = 8;                 // levels of JSON; three are in use

struct FileType {
  const char* name;
  uint64_t bytes;  // of an element
  std::optional<DType> dtype;
};
// A dtype that is in nobody's table has no size to check and cannot be asked for.
constexpr FileType kFileTypes[] = {
    {"F64", 8, DType::f64}, {"F32", 4, DType::f32}, {"BF16", 2, DType::bf16},
    {"I64", 8, DType::i64}, {"I32", 4, DType::i32}, {"U8", 1, DType::u8},
    {"F16", 2, {}},         {"I16", 2, {}},         {"U16", 2, {}},
    {"U32", 4, {}},         {"U64", 8, {}},         {"I8", 1, {}},
    {"BOOL", 1, {}},        {"F8_E5M2", 1, {}},     {"F8_E4M3", 1, {}},
    {"C64", 8, {}},
};

const FileType* find_type(const std::string& name) {
  for (const FileType& type : kFileTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

template <class... Args>
void require(bool holds, const std::string& path, const Args&... message) {
  WEFT_REQUIRE(holds, ExitCode::data, path, ": ", message...);
}

/// JSON without duplicate names or deep nesting. Offsets in messages are the file's.
Json parse_strict(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> names;  // of every open object
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    require(depth <= kDeepestHeader, path, "expected a flat header, got ", depth, " levels");
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      require(names.back().insert(name).second, path, "expected each name once, got ", quote(name),
              " twice");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& e) {
    const uint64_t byte = kLengthBytes + std::max<size_t>(e.byte, 1) - 1;
    throw Error(ExitCode::data, concat(path, ": byte ", byte, ": expected JSON, got other text"));
  } catch (const Json::exception&) {
    throw Error(ExitCode::data, path + ": expected JSON, got a number out of range");
  }
}

std::map<std::string, std::string> parse_metadata(const Json& json, const std::string& path) {
  require(json.is_object(), path, "__metadata__: expected an object of strings");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : json.items()) {
    require(value.is_string(), path, "__metadata__: expected a string for ", quote(key));
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

/// A list of integers in [0, 2^63).
std::optional<std::vector<int64_t>> parse_integers(const Json& json) {
  if (!json.is_array()) return {};
  std::vector<int64_t> integers;
  for (const Json& item : json) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > INT64_MAX) return {};
    integers.push_back(item.get<int64_t>());
  }
  return integers;
}

/// Elements x element size, or nothing past 64 bits. A dim of 0 makes it 0 whatever the others are.
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, uint64_t element) {
  if (std::count(shape.begin(), shape.end(), 0) > 0) return 0;
  uint64_t bytes = element;
  for (const int64_t dim : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return {};
  }
  return bytes;
}

Entry parse_entry(const Json& json, const std::string& place, uint64_t data_bytes) {
  require(json.is_object() && json.size() == 3 && json.contains("dtype") &&
              json.contains("shape") && json.contains("data_offsets"),
          place, "expected dtype, shape and data_offsets");
  require(json["dtype"].is_string(), place, "expected a dtype in quotes");
  const auto shape = parse_integers(json["shape"]);
  require(shape.has_value(), place, "expected a shape of integers >= 0");
  const auto offsets = parse_integers(json["data_offsets"]);
  require(offsets && offsets->size() == 2, place, "expected two data_offsets >= 0");
  const auto begin = static_cast<uint64_t>((*offsets)[0]);
  const auto end = static_cast<uint64_t>((*offsets)[1]);
  require(begin <= end && end <= data_bytes, place, "expected data_offsets inside ", data_bytes,
          " bytes of data, got [", begin, ", ", end, ")");

  Entry entry{json["dtype"].get<std::string>(), *shape, begin, end};
  if (const FileType* const type = find_type(entry.dtype)) {
    const auto bytes = bytes_of(entry.shape, type->bytes);
    require(bytes.has_value(), place, "expected a shape of fewer than 2^64 bytes");
    require(*bytes == end - begin, place, "expected ", *bytes, " bytes for its shape, got ",
            end - begin);
  }
  return entry;
}

template <class From, class To>
void convert(const std::byte* from, std::span<To> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    From element;  // the file need not be aligned
    std::memcpy(&element, from + i * sizeof(From), sizeof(From));
    out[i] = static_cast<To>(element);
  }
}

void convert_bf16(const std::byte* from, auto out) {
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t upper;
    std::memcpy(&upper, from + i * sizeof(upper), sizeof(upper));
    out[i] = std::bit_cast<float>(uint32_t{upper} << 16);
  }
}

/// Whether elements of the dtype become T's without a change of kind.
template <class T>
bool converts(DType dtype) {
  const bool floating = dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
  return floating == std::is_floating_point_v<T>;
}

}  // namespace

void SafetensorsFile::Unmap::operator()(const std::byte* mapping) const {
  munmap(const_cast<std::byte*>(mapping), bytes);
}

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)) {
  map_file();
  read_header();
  check_cover();
}

void SafetensorsFile::map_file() {
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  require(file >= 0, path_, "cannot be opened");
  struct stat status {};
  const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<uint64_t>(status.st_size) : 0;
  void* mapping = MAP_FAILED;
  if (size_ > 0) mapping = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  require(regular, path_, "expected a file");
  require(size_ >= kLengthBytes, path_,
          "byte 0: expected a header length of 8 bytes, got a file of ", size_, " bytes");
  require(mapping != MAP_FAILED, path_, "cannot be mapped into memory");
  bytes_ = {static_cast<const std::byte*>(mapping), Unmap{size_}};
}

void SafetensorsFile::read_header() {
  uint64_t length = 0;
  std::memcpy(&length, bytes_.get(), kLengthBytes);
  const uint64_t most = std::min(kLongestHeader, size_ - kLengthBytes);
  require(length <= most, path_, "byte 0: expected a header of at most ", most, " bytes, got ",
          length);
  data_ = kLengthBytes + length;
  const char* const text = reinterpret_cast<const char*>(bytes_.get()) + kLengthBytes;
  const Json header = parse_strict({text, length}, path_);
  require(header.is_object(), path_, "byte 8: expected an object");
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_metadata(json, path_);
    } else {
      entries_.emplace(name, parse_entry(json, path_ + ": tensor " + quote(name), size_ - data_));
    }
  }
}

/// The tensors tile the data: each begins where the one before ends.
void SafetensorsFile::check_cover() const {
  std::vector<std::pair<const std::string*, const Entry*>> by_offset;
  for (const auto& [name, entry] : entries_) by_offset.emplace_back(&name, &entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t covered = 0;
  for (const auto& [name, entry] : by_offset) {
    require(entry->begin == covered, path_, "tensor ", quote(*name), ": expected it to begin at ",
            covered, " where the one before ends, got ", entry->begin);
    covered = entry->end;
  }
  require(covered == size_ - data_, path_, "byte ", data_ + covered,
          ": expected the file to end after the last tensor, got ", size_ - data_ - covered,
          " bytes more");
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

const Entry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  require(found != entries_.end(), path_, "tensor ", quote(name), ": is not in the file");
  return found->second;
}

Tensor SafetensorsFile::view(const std::string& name) const {
  const Entry& found = entry(name);
  const FileType* const type = find_type(found.dtype);
  require(type != nullptr && type->dtype, path_, "tensor ", quote(name),
          ": expected F64, F32, BF16, I64, I32 or U8, got ", quote(found.dtype));
  require(found.shape.size() <= Tensor::kMaxDims, path_, "tensor ", quote(name),
          ": expected at most ", Tensor::kMaxDims, " dims, got ", found.shape.size());
  std::vector<int64_t> shape = found.shape;
  if (shape.empty()) shape.push_back(1);
  auto* const data = const_cast<std::byte*>(bytes_.get() + data_ + found.begin);
  return Tensor::view(data, *type->dtype, Device::cpu, shape);
}

Tensor SafetensorsFile::tensor(const std::string& name) const {
  const Tensor tensor = view(name);
  const auto element = static_cast<uintptr_t>(size_of(tensor.dtype));
  require(reinterpret_cast<uintptr_t>(tensor.data) % element == 0, path_, "tensor ", quote(name),
          ": expected it to begin at a multiple of ", element, " bytes, got byte ",
          tensor.data - bytes_.get());
  return tensor;
}

template <class T>
void SafetensorsFile::read(const std::string& name, std::span<T> out) const {
  const Tensor from = view(name);
  require(converts<T>(from.dtype), path_, "tensor ", quote(name), ": expected ",
          std::is_floating_point_v<T> ? "floating-point numbers" : "integers", ", got ",
          weft::name(from.dtype));
  require(from.numel() == std::ssize(out), path_, "tensor ", quote(name), ": expected ", out.size(),
          " elements, got ", from.numel());
  switch (from.dtype) {
    case DType::f64:
      return convert<double>(from.data, out);
    case DType::f32:
      return convert<float>(from.data, out);
    case DType::bf16:
      return convert_bf16(from.data, out);
    case DType::i64:
      return convert<int64_t>(from.data, out);
    case DType::i32:
      return convert<int32_t>(from.data, out);
    case DType::u8:
      return convert<uint8_t>(from.data, out);
  }
}

template void SafetensorsFile::read(const std::string&, std::span<float>) const;
template void SafetensorsFile::read(const std::string&, std::span<double>) const;
template void SafetensorsFile::read(const std::string&, std::span<int64_t>) const;

}  // namespace weft
