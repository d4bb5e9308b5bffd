#include "src/core/cuda/stream.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "src/core/cuda/cuda_stream.hpp"

namespace weft::cuda {
namespace {

/// A recorded cudaEvent_t, and what the host work before it threw.
class CudaEvent final : public Event::State {
 public:
  CudaEvent(cudaStream_t stream, std::shared_ptr<Failure> failure) : failure_(std::move(failure)) {
    WEFT_CALL(cudaEventCreateWithFlags(event_.out(), cudaEventDisableTiming));
    WEFT_CALL(cudaEventRecord(event_.get(), stream));
  }

  void wait() override {
    WEFT_CALL(cudaEventSynchronize(event_.get()));
    failure_->rethrow();
  }

  bool ready() override {
    const cudaError_t status = cudaEventQuery(event_.get());
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // or the next launch would report it
      return false;
    }
    WEFT_CALL(status);
    return true;
  }

  cudaEvent_t get() const { return event_.get(); }
  const std::shared_ptr<Failure>& failure() const { return failure_; }

 private:
  Handle<cudaEvent_t, cudaEventDestroy> event_;
  std::shared_ptr<Failure> failure_;
};

struct HostWork {
  std::function<void()> work;
  std::shared_ptr<Failure> failure;
};

void run_host_work(void* data) {
  const std::unique_ptr<HostWork> job(static_cast<HostWork*>(data));
  try {
    job->work();
  } catch (...) {
    job->failure->set(std::current_exception());
  }
}

/// Before the first call of CUDA, which reads it: as many queues into the card as it has. Streams
/// that share one wait for each other, and ranks that share a card have many streams.
void set_environment() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0); });
}

}  // namespace

void Failure::set(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = std::move(error);
}

void Failure::follow(const std::shared_ptr<Failure>& other) {
  const std::lock_guard lock(mutex_);
  const bool known = std::any_of(followed_.begin(), followed_.end(), [&](const auto& one) {
    return !one.owner_before(other) && !other.owner_before(one);
  });
  if (!known && other.get() != this) followed_.push_back(other);
}

void Failure::rethrow() const {
  std::vector<std::shared_ptr<const Failure>> reached;  // keeps them; streams may follow in a ring
  const auto look = [&](const Failure& failure) {
    const std::lock_guard lock(failure.mutex_);
    if (failure.error_) std::rethrow_exception(failure.error_);
    for (const auto& weak : failure.followed_) {
      const std::shared_ptr<const Failure> next = weak.lock();
      if (next && std::find(reached.begin(), reached.end(), next) == reached.end()) {
        reached.push_back(next);
      }
    }
  };
  look(*this);
  for (size_t i = 0; i < reached.size(); ++i) look(*reached[i]);
}

CudaStream::CudaStream(int device, int64_t workspace_bytes, int priority)
    : gpu_(device), workspace_bytes_(workspace_bytes) {
  set_environment();
  make_current();
  WEFT_CALL(cudaStreamCreateWithPriority(stream_.out(), cudaStreamNonBlocking, priority));
  workspace_ = allocate_device("workspace of a stream", workspace_bytes);
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_.get());
}

void CudaStream::make_current() const {
  WEFT_CALL(cudaSetDevice(gpu_));
}

void CudaStream::enqueue(std::function<void()> work) {
  make_current();
  auto job = std::make_unique<HostWork>(HostWork{std::move(work), failure_});
  WEFT_CALL(cudaLaunchHostFunc(stream_.get(), run_host_work, job.get()));
  static_cast<void>(job.release());  // run_host_work owns it now
}

Event CudaStream::record() {
  make_current();
  return Event(std::make_shared<CudaEvent>(stream_.get(), failure_));
}

void CudaStream::wait(const Event& event) {
  make_current();
  if (!event.state()) return;
  if (const auto* cuda_event = dynamic_cast<const CudaEvent*>(event.state().get())) {
    WEFT_CALL(cudaStreamWaitEvent(stream_.get(), cuda_event->get()));
    failure_->follow(cuda_event->failure());
    return;
  }
  const bool there = event.ready();
  const auto start = std::chrono::steady_clock::now();
  if (const auto other = event.state()->handed_over()) {
    wait(Event(other));
  } else {
    event.wait();  // of a ready event too: deliveries and errors come out here
  }
  if (there) return;
  waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::unique_ptr<Stream> CudaStream::make_beside(const std::string&) const {
  return make_stream(gpu_, 0);
}

std::byte* CudaStream::workspace(int64_t bytes) const {
  WEFT_REQUIRE(bytes <= workspace_bytes_, ExitCode::memory, "a kernel needs a workspace of ", bytes,
               " bytes, the stream has ", workspace_bytes_);
  return workspace_.get();
}

CudaStream& cuda_stream(Stream& stream) {
  WEFT_CHECK(stream.device() == Device::cuda, "a stream of ", name(stream.device()));
  return static_cast<CudaStream&>(stream);
}

bool in_build() {
  return true;
}

int device_count() {
  set_environment();
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string device_name(int device) {
  set_environment();
  cudaDeviceProp properties{};
  WEFT_CALL(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

std::unique_ptr<Stream> make_stream(int device, int64_t workspace_bytes) {
  return std::make_unique<CudaStream>(device, workspace_bytes);
}

std::unique_ptr<Stream> make_transfer_stream(int device) {
  set_environment();
  int lowest = 0, highest = 0;
  WEFT_CALL(cudaSetDevice(device));
  WEFT_CALL(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  return std::make_unique<CudaStream>(device, 0, highest);
}

void open_path(int device, int peer) {
  set_environment();
  WEFT_CALL(cudaSetDevice(device));
  int linked = 0;
  if (device != peer) WEFT_CALL(cudaDeviceCanAccessPeer(&linked, device, peer));
  if (!linked) return;
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();  // or the next launch would report it
    return;
  }
  WEFT_CALL(status);
}

}  // namespace weft::cuda
