// A reader of safetensors files: a JSON header and the bytes of named tensors. The file may come
// from anywhere, so everything that the header claims is checked before any byte is handed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/tensor/tensor.hpp"

namespace weft {

/// A file mapped for reading. All errors are Error(data), one line with the file and the byte or
/// the tensor. Move-only; reading from several threads is fine.
class SafetensorsFile {
 public:
  /// What the header says of one tensor.
  struct Entry {
    std::string dtype;  // as in the file
    std::vector<int64_t> shape;
    uint64_t begin = 0;  // bytes of the data section
    uint64_t end = 0;
  };

  /// Maps the file and checks the whole header: no duplicate names, shapes that fit the offsets,
  /// tensors that cover the data without overlap or hole.
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return path_; }
  /// In alphabetical order.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return entries_.contains(name); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Shape and dtype, also of a tensor that Weft cannot hold.
  const Entry& entry(const std::string& name) const;

  /// A CPU view into the mapping: read-only, and valid while this object lives. A tensor without
  /// dims comes as [1]. Refuses dtypes that Weft has not, more than 5 dims, and a tensor that does
  /// not start at a multiple of its element size (read() takes it).
  Tensor tensor(const std::string& name) const;

  /// Copies all elements, converted. T is float or double for F64, F32 and BF16, or int64_t for
  /// I64, I32 and U8; `out` has exactly the tensor's element count.
  template <class T>
  void read(const std::string& name, std::span<T> out) const;

 private:
  struct Unmap {
    uint64_t bytes;
    void operator()(const std::byte* mapping) const;
  };

  void map_file();
  void read_header();
  void check_cover() const;
  /// The view, with data that may be unaligned.
  Tensor view(const std::string& name) const;

  std::string path_;
  std::unique_ptr<const std::byte, Unmap> bytes_;
  uint64_t size_ = 0;  // of the file, in bytes
  uint64_t data_ = 0;  // where the data section starts
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace weft
