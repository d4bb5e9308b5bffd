// HDF5 for C++: the lock, the owner of an id, the reason of a failure. For token_file.cpp, the only
// place that calls HDF5.
#pragma once

#include <hdf5.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace weft::hdf5 {

/// HDF5 as distributions build it is not thread-safe, and ranks may be threads: whoever calls it
/// holds this. Recursive, so that an Id may close anywhere.
class Lock {
 public:
  Lock() : lock_(mutex()) {
    // Every id has an owner here. HDF5's own clean-up at exit loops on a file it failed to flush.
    static const bool once = (H5dont_atexit(), true);
    static_cast<void>(once);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // we print errors, not HDF5
  }

 private:
  static std::recursive_mutex& mutex() {
    static std::recursive_mutex instance;
    return instance;
  }

  std::lock_guard<std::recursive_mutex> lock_;
};

/// Owner of one HDF5 id.
class Id {
 public:
  using Close = herr_t (*)(hid_t);

  Id() = default;
  Id(hid_t id, Close closer) : id_(id), close_(closer) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Id() { close(); }

  operator hid_t() const { return id_; }  // HDF5's functions take it as it is

  /// Closing a file writes, so it can fail.
  herr_t close() {
    if (id_ < 0) return 0;
    const Lock lock;
    return close_(std::exchange(id_, -1));
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// Why the last HDF5 call failed: its innermost error, which for a system call names errno.
inline std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &text);
  const std::string_view mark = "error message = '";
  if (const size_t at = text.find(mark); at != std::string::npos) {
    text.erase(0, at + mark.size());
    text.erase(std::min(text.find('\''), text.size()));
  }
  return text.empty() ? "no reason given" : text;
}

}  // namespace weft::hdf5
