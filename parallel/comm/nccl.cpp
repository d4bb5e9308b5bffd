#include "parallel/comm/nccl.hpp"

#include <nccl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "src/core/cuda/cuda_stream.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {

template <>
std::string status_text(const ncclResult_t& status) {
  const char* details = ncclGetLastError(nullptr);
  return concat(ncclGetErrorString(status), details && *details ? concat(" (", details, ")") : "");
}

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    default:
      break;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("a sum of ", name(dtype)));
}

/// A group of NCCL calls, ended also when one of them fails.
class Group {
 public:
  Group() { WEFT_CALL(ncclGroupStart()); }
  ~Group() {
    if (open_) ncclGroupEnd();
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void end() {
    open_ = false;
    WEFT_CALL(ncclGroupEnd());
  }

 private:
  bool open_ = true;
};

/// One communicator with its stream. Transfers are issued by the rank's thread and looked at by the
/// watch.
class Line {
 public:
  Line(const ncclUniqueId& id, int rank, int size, int gpu, std::string label)
      : label_(std::move(label)),
        stream_(cuda::make_transfer_stream(gpu)),
        cuda_stream_(cuda::cuda_stream(*stream_)) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.commName = label_.c_str();
    WEFT_CALL(ncclCommInitRankConfig(&comm_, size, id, rank, &config));
  }

  ~Line() {
    if (comm_ != nullptr) ncclCommDestroy(comm_);
  }

  cuda::CudaStream& stream() { return cuda_stream_; }

  /// calls(communicator, stream) enqueues transfers.
  template <class F>
  void issue(F&& calls) {
    const std::lock_guard lock(mutex_);
    if (woken_ && !error_) abort(absent_peer());  // woken just as the last call came back
    if (error_) std::rethrow_exception(error_);
    issuing_since_ = Clock::now().time_since_epoch();
    std::optional<Error> failed;
    try {
      calls(comm_, cuda_stream_.get());
    } catch (const Error& error) {
      failed = error;
    }
    issuing_since_ = Clock::duration::zero();
    if (woken_) failed = absent_peer();
    if (!failed) return;
    abort(*failed);
    throw *failed;
  }

  /// One operation: from now on it is watched.
  void watch(const Event& ready, const Event& done) {
    const std::lock_guard lock(mutex_);
    in_flight_.push_back({ready, done, {}});
  }

  /// The watch's part: finds what is wrong and ends it. `ended`: a peer has ended the job.
  void look(bool ended) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return look_at_issuing(ended);
    if (error_ || woken_) return;
    if (const auto wrong = find_wrong(ended)) abort(*wrong);
  }

  /// Ends what is in flight, for a rank that has failed.
  void abort() {
    const std::lock_guard lock(mutex_);
    if (!error_) abort(Error(ExitCode::retry, "this rank has ended the job"));
  }

 private:
  struct Flight {
    Event ready, done;
    std::optional<Clock::time_point> started;  // when it was first seen ready
  };

  Error absent_peer() const {
    return {ExitCode::hang, concat("group '", label_, "': a peer has not made its call")};
  }

  std::optional<Error> find_wrong(bool ended) {
    try {
      while (!in_flight_.empty() && in_flight_.front().done.ready()) in_flight_.pop_front();
      ncclResult_t status = ncclSuccess;
      WEFT_CALL(ncclCommGetAsyncError(comm_, &status));
      const bool well = status == ncclSuccess || status == ncclInProgress;
      WEFT_REQUIRE(well, ExitCode::hang, "group '", label_, "': NCCL: ", status_text(status));
      if (in_flight_.empty()) return std::nullopt;
      WEFT_REQUIRE(!ended, ExitCode::retry, "a peer ended the job");
      Flight& oldest = in_flight_.front();
      if (!oldest.ready.ready()) return std::nullopt;
      if (!oldest.started) oldest.started = Clock::now();
      WEFT_REQUIRE(seconds_since(*oldest.started) < wait_deadline(), ExitCode::hang, "group '",
                   label_, "': a transfer has not ended within ", wait_deadline(), " s");
    } catch (const Error& error) {
      return error;
    }
    return std::nullopt;
  }

  /// The rank's thread is inside a call, which on first use waits for peers. The lock comes back
  /// soon unless a peer is missing; then nothing but an abort wakes the call.
  void look_at_issuing(bool ended) {
    constexpr double kGraceSeconds = 5;
    const Clock::duration since = issuing_since_;
    if (since == Clock::duration::zero() || woken_) return;
    const double limit = ended ? kGraceSeconds : wait_deadline();
    if (seconds_since(Clock::time_point(since)) < limit) return;
    woken_ = true;
    ncclCommAbort(comm_);
  }

  void abort(const Error& error) {
    error_ = std::make_exception_ptr(error);
    cuda_stream_.fail(error_);  // before the abort, which completes the events
    if (!woken_) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  std::string label_;
  std::unique_ptr<Stream> stream_;
  cuda::CudaStream& cuda_stream_;
  ncclComm_t comm_ = nullptr;
  std::mutex mutex_;
  std::exception_ptr error_;
  std::deque<Flight> in_flight_;
  std::atomic<Clock::duration> issuing_since_ = Clock::duration::zero();  // of the epoch
  std::atomic<bool> woken_ = false;                                       // aborted inside a call
};

/// The thread that looks at all lines of a rank.
class Watch {
 public:
  Watch(World& setup, int gpu) : thread_([this, &setup, gpu] { run(setup, gpu); }) {}

  ~Watch() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void add(Line& line) {
    const std::lock_guard lock(mutex_);
    lines_.push_back(&line);
  }
  void remove(Line& line) {
    const std::lock_guard lock(mutex_);
    std::erase(lines_, &line);
  }

 private:
  void run(const World& setup, int gpu) {
    constexpr std::chrono::milliseconds kPause(20);
    cudaSetDevice(gpu);
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kPause, [&] { return closing_; })) {
      const bool ended = setup.ended();
      for (Line* line : lines_) line->look(ended);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Line*> lines_;
  bool closing_ = false;
  std::thread thread_;  // last: starts when all above is there
};

class NcclBackend final : public Backend {
 public:
  NcclBackend(std::unique_ptr<Backend> setup, const ncclUniqueId& id, int gpu,
              const std::string& label, std::shared_ptr<Watch> watch)
      : Backend(setup->rank(), setup->size()),
        setup_(std::move(setup)),
        watch_(std::move(watch)),
        tokens_(cuda::allocate_device("tokens of barriers", size())),
        line_(id, rank(), size(), gpu, label) {
    watch_->add(line_);
  }

  ~NcclBackend() override {
    if (std::uncaught_exceptions() > 0) line_.abort();
    try {
      line_.stream().record().wait();  // under watch, so that a lost peer cannot hold us
    } catch (const Error&) {
      // whoever waited for the transfer has it
    }
    watch_->remove(line_);
  }

  Stream* device_stream() override { return &line_.stream(); }
  bool calls_block() const override { return false; }
  void in_flight(const Event& ready, const Event& done) override { line_.watch(ready, done); }

  void verify(const Fingerprint& mine) override { setup_->verify(mine); }
  bool verify_is_cheap() const override { return setup_->verify_is_cheap(); }

  void exchange(std::span<const Message> messages) override {
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      Group group;
      for (const auto& [way, peer, buffer] : messages) {
        if (buffer.nbytes() == 0) continue;
        if (way == Message::Way::send) {
          WEFT_CALL(ncclSend(buffer.data, buffer.nbytes(), ncclUint8, peer, comm, stream));
          count_sent(buffer.nbytes());
        } else {
          WEFT_CALL(ncclRecv(buffer.data, buffer.nbytes(), ncclUint8, peer, comm, stream));
        }
      }
      group.end();
    });
  }

  void all_gather(const Tensor& buffer, const Cuts& cuts) override {
    if (!of_one_size(cuts)) return Backend::all_gather(buffer, cuts);
    const Tensor own = own_piece(buffer, cuts);
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      WEFT_CALL(ncclAllGather(own.data, buffer.data, own.nbytes(), ncclUint8, comm, stream));
    });
    count_sent(own.nbytes() * (size() - 1));
  }

  void reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch) override {
    if (!of_one_size(cuts)) return Backend::reduce_scatter(buffer, cuts, scratch);
    const Tensor own = own_piece(buffer, cuts);
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      WEFT_CALL(ncclReduceScatter(buffer.data, own.data, own.numel(), nccl_type(own.dtype), ncclSum,
                                  comm, stream));
    });
    count_sent(buffer.nbytes() - own.nbytes());
  }

  void all_reduce(const Tensor& buffer, const Tensor&) override {
    if (buffer.numel() == 0) return;
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      WEFT_CALL(ncclAllReduce(buffer.data, buffer.data, buffer.numel(), nccl_type(buffer.dtype),
                              ncclSum, comm, stream));
    });
    const Tensor own = own_piece(buffer, Cuts::even(buffer.numel(), size()));
    count_sent(buffer.nbytes() - own.nbytes() + own.nbytes() * (size() - 1));
  }

  void broadcast(const Tensor& buffer, int root) override {
    if (buffer.numel() == 0) return;
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      WEFT_CALL(
          ncclBroadcast(buffer.data, buffer.data, buffer.nbytes(), ncclUint8, root, comm, stream));
    });
    if (rank() == root) count_sent(buffer.nbytes() * (size() - 1));
  }

  void barrier() override {
    line_.issue([&](ncclComm_t comm, cudaStream_t stream) {
      WEFT_CALL(ncclAllReduce(tokens_.get(), tokens_.get(), 1, ncclUint8, ncclMax, comm, stream));
    });
  }

  /// Sends a token to whom this rank will talk to, while all ranks of the group are here: the first
  /// message to a peer holds the caller until the peer takes part.
  void connect() {
    constexpr int kFew = 8;  // connections cost memory
    const int64_t dims[] = {size()};
    const Tensor tokens = Tensor::view(tokens_.get(), DType::u8, Device::cuda, dims);
    if (size() <= kFew) {
      Backend::all_gather(tokens, Cuts::even(size(), size()));
    } else {
      const int next = (rank() + 1) % size(), prev = (rank() + size() - 1) % size();
      exchange(std::array{
          send_to(next, tokens.slice(0, 0, 1)), send_to(prev, tokens.slice(0, 0, 1)),
          receive_from(prev, tokens.slice(0, 1, 2)), receive_from(next, tokens.slice(0, 2, 3))});
    }
    barrier();
    const Event done = line_.stream().record();
    line_.watch({}, done);
    done.wait();
    take_bytes_sent();
  }

 private:
  static bool of_one_size(const Cuts& cuts) {
    return cuts.size(0) > 0 && cuts.largest() * cuts.pieces() == cuts.total();
  }

  Tensor own_piece(const Tensor& buffer, const Cuts& cuts) const {
    return buffer.slice(0, cuts.begin(rank()), cuts.end(rank()));
  }

  std::unique_ptr<Backend> setup_;
  std::shared_ptr<Watch> watch_;
  cuda::DeviceMemory tokens_;  // one a rank
  Line line_;                  // after the tokens, which its stream uses
};

/// Before NCCL reads it, once.
void set_environment() {
  static std::once_flag once;
  std::call_once(once, [] {
    setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/1);
    // Transfers of several groups start in the order in which the rank's thread enqueued them, so
    // that two GPUs never hold each other's in opposite orders.
    setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", /*overwrite=*/0);
    // The paths of its collectives are made with the communicator, when all ranks are there.
    setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0);
  });
}

class NcclWorld final : public World {
 public:
  NcclWorld(World& setup, int gpu) : setup_(setup), gpu_(gpu) {
    set_environment();
    const int gpus = cuda::device_count();
    WEFT_REQUIRE(gpu >= 0 && gpu < gpus, ExitCode::usage, "rank ", setup.rank(), " wants GPU ", gpu,
                 ", this host shows ", gpus, ": NCCL needs a GPU for every rank");
    WEFT_CHECK(setup.device() == Device::cpu, name(setup.device()));
    WEFT_CALL(cudaSetDevice(gpu));
    watch_ = std::make_shared<Watch>(setup, gpu);
  }

  int rank() const override { return setup_.rank(); }
  int size() const override { return setup_.size(); }
  Device device() const override { return Device::cuda; }
  int gpu() const override { return gpu_; }
  bool ended() const override { return setup_.ended(); }
  int64_t group_bytes() const override { return group_bytes_; }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    std::unique_ptr<Backend> setup = setup_.group(members, label);
    if (setup->size() == 1) return setup;  // nothing travels
    const int64_t before = cuda::bytes_in_use();
    ncclUniqueId id{};
    if (setup->rank() == 0) WEFT_CALL(ncclGetUniqueId(&id));
    const int64_t dims[] = {sizeof(id)};
    setup->broadcast(Tensor::view(&id, DType::u8, Device::cpu, dims), 0);
    auto backend = std::make_unique<NcclBackend>(std::move(setup), id, gpu_, label, watch_);
    backend->connect();
    group_bytes_ += cuda::bytes_in_use() - before;
    return backend;
  }

  std::unique_ptr<Backend> host_group(const std::vector<int>& members,
                                      const std::string& label) override {
    return setup_.group(members, label);
  }

 private:
  World& setup_;
  int gpu_;
  std::shared_ptr<Watch> watch_;
  int64_t group_bytes_ = 0;  // buffers and paths of the communicators
};

}  // namespace

bool has_nccl() {
  return true;
}

std::unique_ptr<World> make_nccl_world(World& setup, int gpu) {
  return std::make_unique<NcclWorld>(setup, gpu);
}

}  // namespace weft
