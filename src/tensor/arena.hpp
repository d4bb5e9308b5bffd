// Arena: the owner of a slab. Named allocations in stack order, with mark, rewind and a peak.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "src/tensor/tensor.hpp"

namespace weft {

/// Hands out 64-byte aligned tensors from one slab that never grows. On the meta device there are
/// no bytes and no limit: a run there tells the capacity that a real arena needs. Memory is
/// cleared where it is asked for; with poison on (debug builds, tests) it is filled with NaN bytes
/// when it is handed out.
class Arena {
 public:
  struct Item {
    const char* name;  // a literal: nothing is allocated inside a step
    int64_t bytes;
  };
  struct Mark {
    size_t items;
    int64_t used;
  };

  /// `capacity` in bytes; ignored on meta. Throws Error(memory) when the slab cannot be had. On
  /// CUDA the slab is of the calling thread's GPU, and `stream` is the one whose work uses it:
  /// poison is enqueued there (without it every allocation under poison stops the GPU).
  Arena(std::string name, Device device, int64_t capacity, Stream* stream = nullptr);

  /// A contiguous tensor, valid until a rewind below it. Throws Error(memory) past the capacity.
  /// `user`: the stream that writes it first, where that is not the arena's; it has waited for
  /// whatever used the memory before, and poison goes there, or it could come after the writing.
  Tensor allocate(const char* name, DType dtype, std::initializer_list<int64_t> shape,
                  Stream* user = nullptr);
  /// The same, every element 0: on CUDA in the order of the arena's stream.
  Tensor allocate_zeros(const char* name, DType dtype, std::initializer_list<int64_t> shape);

  Mark mark() const { return {items_.size(), used_}; }
  /// Frees everything handed out since the mark. The caller has made sure that nothing in flight
  /// uses it: the compute stream has waited on the last event of any communication that does.
  void rewind(const Mark& mark);

  const std::string& name() const { return name_; }
  Device device() const { return device_; }
  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  /// What was allocated at the moment of the peak, in order.
  const std::vector<Item>& at_peak() const { return at_peak_; }

 private:
  struct Release {
    Device device;
    int64_t bytes;
    void operator()(std::byte* slab) const;
  };

  std::string name_;
  Device device_;
  int64_t capacity_;
  Stream* stream_;
  std::unique_ptr<std::byte, Release> slab_;
  std::vector<Item> items_;
  std::vector<Item> at_peak_;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

/// Rewinds an arena when it goes out of scope.
class Scope {
 public:
  explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~Scope() { arena_.rewind(mark_); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

/// Fill what every arena hands out with bytes that read as NaN, so that reading memory that nobody
/// wrote shows. On by default in debug builds; tests turn it on.
void set_poison(bool on);
bool poison();
/// Poisons one contiguous tensor; on CUDA in the order of `stream`, or with none alone on the GPU.
void poison_fill(const Tensor& tensor, Stream* stream = nullptr);

}  // namespace weft
