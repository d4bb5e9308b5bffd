#include "parallel/comm/staged.hpp"

#include <atomic>

#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

class StagedBackend final : public Backend {
 public:
  StagedBackend(std::unique_ptr<Backend> inner, int gpu)
      : Backend(inner->rank(), inner->size()),
        inner_(std::move(inner)),
        stream_(cuda::make_transfer_stream(gpu)) {}

  Stream* device_stream() override { return stream_.get(); }
  int64_t host_waits() const override { return host_waits_; }

  void exchange(std::span<const Message> messages) override {
    const std::vector<Message> staged = in_staging(messages);
    for (size_t i = 0; i < messages.size(); ++i) {
      if (messages[i].way == Message::Way::receive) continue;
      copy(staged[i].buffer, messages[i].buffer);
    }
    wait_for_gpu();             // also for the last exchange's copies out of the staging memory
    inner_->take_bytes_sent();  // of fingerprints and barriers
    inner_->exchange(staged);
    count_sent(inner_->take_bytes_sent());
    for (size_t i = 0; i < messages.size(); ++i) {
      if (messages[i].way == Message::Way::receive) copy(messages[i].buffer, staged[i].buffer);
    }
  }

  void verify(const Fingerprint& mine) override { inner_->verify(mine); }
  bool verify_is_cheap() const override { return inner_->verify_is_cheap(); }

  void barrier() override {
    wait_for_gpu();
    inner_->barrier();
  }

 private:
  /// The messages with buffers in staging memory, one behind the other.
  std::vector<Message> in_staging(std::span<const Message> messages) {
    int64_t bytes = 0;
    for (const Message& message : messages) bytes += message.buffer.nbytes();
    if (bytes > staging_bytes_) {
      wait_for_gpu();
      staging_ = {};
      staging_ = cuda::allocate_pinned("staging of messages", bytes);
      staging_bytes_ = bytes;
    }
    std::vector<Message> staged;
    int64_t used = 0;
    for (const auto& [way, peer, buffer] : messages) {
      const int64_t dims[] = {buffer.nbytes()};
      staged.push_back(
          {way, peer, Tensor::view(staging_.get() + used, DType::u8, Device::cpu, dims)});
      used += buffer.nbytes();
    }
    return staged;
  }

  void copy(const Tensor& to, const Tensor& from) {
    cuda::copy_bytes(to.data, from.data, to.nbytes(), *stream_);
  }

  void wait_for_gpu() {
    stream_->record().wait();
    ++host_waits_;
  }

  std::unique_ptr<Backend> inner_;
  cuda::PinnedMemory staging_;
  int64_t staging_bytes_ = 0;
  std::atomic<int64_t> host_waits_ = 0;
  std::unique_ptr<Stream> stream_;  // last: waits for the copies before the memory goes
};

class StagedWorld final : public World {
 public:
  StagedWorld(World& inner, int gpu) : inner_(inner), gpu_(gpu) {
    const int gpus = cuda::device_count();
    WEFT_REQUIRE(gpu >= 0 && gpu < gpus, ExitCode::usage, "rank ", inner.rank(), " wants GPU ", gpu,
                 ", this host shows ", gpus);
    WEFT_CHECK(inner.device() == Device::cpu, name(inner.device()));
    cuda::open_path(gpu, gpu);
  }

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  Device device() const override { return Device::cuda; }
  int gpu() const override { return gpu_; }
  bool ended() const override { return inner_.ended(); }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    std::unique_ptr<Backend> inner = inner_.group(members, label);
    if (inner->size() == 1) return inner;  // nothing travels
    return std::make_unique<StagedBackend>(std::move(inner), gpu_);
  }

  std::unique_ptr<Backend> host_group(const std::vector<int>& members,
                                      const std::string& label) override {
    return inner_.group(members, label);
  }

 private:
  World& inner_;
  int gpu_;
};

}  // namespace

std::unique_ptr<World> make_staged_world(World& inner, int gpu) {
  return std::make_unique<StagedWorld>(inner, gpu);
}

}  // namespace weft
