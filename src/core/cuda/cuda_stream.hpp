// A CUDA stream as the kernels see it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "src/core/cuda/call.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/core/device.hpp"
#include "src/core/handle.hpp"

namespace weft::cuda {

/// The first error of a stream; every later event hands it to its waiters. A stream that has waited
/// for an event of another one has the other's errors too: what it computes from then on is not to
/// be trusted.
class Failure {
 public:
  void set(std::exception_ptr error);
  void follow(const std::shared_ptr<Failure>& other);
  /// Throws the error of this stream or of one that it follows, however far; nothing when there is
  /// none.
  void rethrow() const;

 private:
  mutable std::mutex mutex_;
  std::exception_ptr error_;
  std::vector<std::weak_ptr<Failure>> followed_;  // weak: two streams often follow each other
};

/// A non-blocking CUDA stream with its workspace. Kernels of the layer take it and enqueue.
class CudaStream final : public Stream {
 public:
  /// `priority` as CUDA counts: the lower, the earlier.
  CudaStream(int device, int64_t workspace_bytes, int priority = 0);
  ~CudaStream() override;  // waits for what is enqueued

  Device device() const override { return Device::cuda; }
  /// Host work between device work. It must not call CUDA; what it throws comes out of later
  /// events.
  void enqueue(std::function<void()> work) override;
  Event record() override;
  /// A CUDA event is waited for by the GPU. Any other blocks the caller, as on a CPU stream.
  void wait(const Event& event) override;
  /// Every later event of this stream, and of those that follow it, hands `error` to its waiters.
  void fail(std::exception_ptr error) { failure_->set(std::move(error)); }
  /// Of the same GPU, and without a workspace.
  std::unique_ptr<Stream> make_beside(const std::string& label) const override;
  double waited_s() const override { return waited_s_; }

  cudaStream_t get() const { return stream_.get(); }
  /// The first `bytes` of the workspace, for one kernel call: the next call overwrites them.
  /// Throws Error(memory) when the workspace is smaller.
  std::byte* workspace(int64_t bytes) const;

 private:
  void make_current() const;  // its GPU becomes the calling thread's

  int gpu_;
  Handle<cudaStream_t, cudaStreamDestroy> stream_;
  DeviceMemory workspace_;
  int64_t workspace_bytes_;
  std::shared_ptr<Failure> failure_ = std::make_shared<Failure>();
  double waited_s_ = 0;
};

/// The CudaStream behind a stream whose device() is cuda.
CudaStream& cuda_stream(Stream& stream);
inline cudaStream_t native(Stream& stream) {
  return cuda_stream(stream).get();
}

/// Hands out pieces of the workspace for one kernel call. Counting first, taking second:
///   Carver carver;  int* a = carver.take<int>(n);  ...  carver.bytes()
/// gives offsets from null; the same calls on Carver(stream.workspace(bytes)) give addresses.
class Carver {
 public:
  explicit Carver(std::byte* base = nullptr) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    std::byte* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }
  int64_t bytes() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace weft::cuda
