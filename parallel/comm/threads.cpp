#include "parallel/comm/threads.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

/// What the ranks of one group share. A send posts a pointer; the receiver copies straight from it.
/// On GPUs both sides only enqueue, and what they tell each other are events: recorded first, then
/// shown, because an event that was never recorded counts as complete.
class Mailboxes {
 public:
  explicit Mailboxes(int size) : size_(size), changed_(size), boxes_(size * size) {}

  /// The sends of one exchange of one rank.
  struct Sends {
    int rank;
    int pending = 0;           // counts down as receivers finish
    std::vector<Event> taken;  // their copies
  };

  struct Posting {
    const std::byte* data;
    int64_t bytes;
    Event ready;  // the data is there
    Sends* sends;
  };

  void post(int from, int to, const Posting& posting) {
    {
      const std::lock_guard lock(mutex_);
      boxes_[from * size_ + to].push_back(posting);
    }
    changed_[to].notify_all();
  }

  Posting take(int from, int to) {
    std::unique_lock lock(mutex_);
    auto& box = boxes_[from * size_ + to];
    wait(
        lock, [&] { return !box.empty(); }, from, to);
    const Posting posting = box.front();
    box.pop_front();
    return posting;
  }

  void finish(const Posting& posting, const Event& taken) {
    const std::lock_guard lock(mutex_);  // to the end: the sender goes on, and its sends with it
    --posting.sends->pending;
    posting.sends->taken.push_back(taken);
    changed_[posting.sends->rank].notify_all();
  }

  void wait_for_receivers(const Sends& sends) {
    std::unique_lock lock(mutex_);
    wait(
        lock, [&] { return sends.pending == 0; }, sends.rank, sends.rank);
  }

  /// After a failure: takes back what nobody has taken and lets the copies under way finish, so
  /// that no receiver touches the sender's memory afterwards.
  void withdraw(Sends& sends) {
    std::unique_lock lock(mutex_);
    for (auto& box : boxes_) {
      sends.pending -= static_cast<int>(
          std::erase_if(box, [&](const Posting& posting) { return posting.sends == &sends; }));
    }
    changed_[sends.rank].wait(lock, [&] { return sends.pending == 0; });
  }

  /// The first rank to reach a call leaves its fingerprint, the others compare with it.
  void compare(int rank, const Fingerprint& mine) {
    const std::lock_guard lock(mutex_);
    auto [entry, first] = prints_.try_emplace(mine.sequence, Entry{mine, rank, 0});
    WEFT_REQUIRE(first || entry->second.print == mine, ExitCode::mismatch,
                 "collective mismatch: rank ", rank, " enters ", mine.text(), "; rank ",
                 entry->second.rank, " enters ", entry->second.print.text());
    if (++entry->second.arrived == size_) prints_.erase(entry);
  }

  void abort() {
    {
      const std::lock_guard lock(mutex_);
      aborted_ = true;
    }
    for (std::condition_variable& changed : changed_) changed.notify_all();
  }

 private:
  struct Entry {
    Fingerprint print;
    int rank;
    int arrived;
  };

  /// Rank `to` waits, for something of rank `from`.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, Ready&& ready, int from, int to) {
    const auto limit = std::chrono::duration<double>(wait_deadline());
    const bool woken = changed_[to].wait_for(lock, limit, [&] { return aborted_ || ready(); });
    WEFT_REQUIRE(!aborted_, ExitCode::retry, "a peer ended the job");
    WEFT_REQUIRE(woken, ExitCode::hang, "no message from rank ", from, " to rank ", to, " within ",
                 wait_deadline(), " s");
  }

  const int size_;
  std::mutex mutex_;
  std::vector<std::condition_variable> changed_;  // a rank's: something it may wait for
  std::vector<std::deque<Posting>> boxes_;        // [from, to]
  std::map<uint64_t, Entry> prints_;
  bool aborted_ = false;
};

class ThreadBackend : public Backend {
 public:
  ThreadBackend(int rank, int size, std::shared_ptr<Mailboxes> mailboxes)
      : Backend(rank, size), mailboxes_(std::move(mailboxes)) {}

  void exchange(std::span<const Message> messages) override {
    Mailboxes::Sends sends{.rank = rank(), .taken = {}};
    for (const auto& [way, peer, buffer] : messages) {
      sends.pending += way == Message::Way::send && buffer.nbytes() > 0 ? 1 : 0;
    }
    const Event ready = point();
    for (const auto& [way, peer, buffer] : messages) {
      if (way != Message::Way::send || buffer.nbytes() == 0) continue;
      mailboxes_->post(rank(), peer, {buffer.data, buffer.nbytes(), ready, &sends});
      count_sent(buffer.nbytes());
    }
    try {
      receive(messages);
      mailboxes_->wait_for_receivers(sends);
    } catch (...) {
      mailboxes_->withdraw(sends);
      throw;
    }
    for (const Event& taken : sends.taken) follow(taken);
  }

  void verify(const Fingerprint& mine) override { mailboxes_->compare(rank(), mine); }
  bool verify_is_cheap() const override { return true; }

 protected:
  /// What is enqueued so far, and waiting for that: on the CPU a call is done when it returns.
  virtual Event point() { return {}; }
  virtual void follow(const Event&) {}
  virtual void copy(std::byte* to, const std::byte* from, int64_t bytes) {
    std::memcpy(to, from, bytes);
  }

 private:
  void receive(std::span<const Message> messages) {
    for (const auto& [way, peer, buffer] : messages) {
      if (way != Message::Way::receive || buffer.nbytes() == 0) continue;
      const auto posting = mailboxes_->take(peer, rank());
      Event taken;
      try {
        follow(posting.ready);
        if (posting.bytes == buffer.nbytes()) copy(buffer.data, posting.data, posting.bytes);
        taken = point();
      } catch (...) {
        mailboxes_->finish(posting, {});  // or the sender would wait for us
        throw;
      }
      mailboxes_->finish(posting, taken);
      WEFT_REQUIRE(posting.bytes == buffer.nbytes(), ExitCode::mismatch,
                   "collective mismatch: rank ", rank(), " expects ", buffer.nbytes(),
                   " bytes, rank ", peer, " sends ", posting.bytes);
    }
  }

  std::shared_ptr<Mailboxes> mailboxes_;
};

class GpuThreadBackend final : public ThreadBackend {
 public:
  GpuThreadBackend(int rank, int size, std::shared_ptr<Mailboxes> mailboxes, int gpu)
      : ThreadBackend(rank, size, std::move(mailboxes)), gpu_(gpu) {}

  /// Made at the first transfer: a card runs only so many streams side by side, and ranks that
  /// share it share those.
  Stream* device_stream() override {
    if (!stream_) {
      stream_ = cuda::make_transfer_stream(gpu_);
      tokens_ = cuda::allocate_device("tokens of barriers", 2);
    }
    return stream_.get();
  }

  void barrier() override {
    const int64_t two[] = {2};
    barrier_of_exchanges(Tensor::view(tokens_.get(), DType::u8, Device::cuda, two));
  }

 protected:
  Event point() override { return stream_->record(); }
  void follow(const Event& event) override { stream_->wait(event); }
  void copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    // A peer that has failed may have freed `from`: an address that is no device memory any more.
    cuda::copy_device_bytes(to, from, bytes, *stream_);
  }

 private:
  int gpu_;
  cuda::DeviceMemory tokens_;
  std::unique_ptr<Stream> stream_;  // last: waits for what uses the tokens
};

/// Groups of the process, made by whichever member asks first.
class Registry {
 public:
  std::shared_ptr<Mailboxes> find(const std::vector<int>& members, const std::string& label) {
    const std::lock_guard lock(mutex_);
    auto& found = groups_[{members, label}];
    if (!found) {
      found = std::make_shared<Mailboxes>(static_cast<int>(members.size()));
      if (aborted_) found->abort();
    }
    return found;
  }

  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (const auto& [key, group] : groups_) group->abort();
  }

  bool aborted() {
    const std::lock_guard lock(mutex_);
    return aborted_;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::vector<int>, std::string>, std::shared_ptr<Mailboxes>> groups_;
  bool aborted_ = false;
};

class ThreadWorld : public World {
 public:
  ThreadWorld(int rank, int size, Registry& registry)
      : rank_(rank), size_(size), registry_(registry) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool ended() const override { return registry_.aborted(); }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    return std::make_unique<ThreadBackend>(
        place_in(members, label), static_cast<int>(members.size()), registry_.find(members, label));
  }

 protected:
  Registry& registry() { return registry_; }

 private:
  int rank_;
  int size_;
  Registry& registry_;
};

class GpuThreadWorld final : public ThreadWorld {
 public:
  GpuThreadWorld(int rank, const std::vector<int>& gpus, Registry& registry)
      : ThreadWorld(rank, static_cast<int>(gpus.size()), registry), gpu_(gpus[rank]) {
    for (const int peer : std::set<int>(gpus.begin(), gpus.end())) cuda::open_path(gpu_, peer);
  }

  Device device() const override { return Device::cuda; }
  int gpu() const override { return gpu_; }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    if (members.size() == 1) return ThreadWorld::group(members, label);  // nothing travels
    return std::make_unique<GpuThreadBackend>(place_in(members, label),
                                              static_cast<int>(members.size()),
                                              registry().find(members, label), gpu_);
  }

  std::unique_ptr<Backend> host_group(const std::vector<int>& members,
                                      const std::string& label) override {
    return ThreadWorld::group(members, label);
  }

 private:
  int gpu_;
};

using MakeWorld = std::function<std::unique_ptr<World>(int rank, Registry& registry)>;

void run_threads(int ranks, const MakeWorld& make_world, const std::function<void(World&)>& body,
                 const std::function<void(int)>& on_error) {
  Registry registry;
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto run = [&](int rank) {
    try {
      const std::unique_ptr<World> world = make_world(rank, registry);
      body(*world);
    } catch (...) {
      {
        const std::lock_guard lock(mutex);
        if (!first_error) {
          first_error = std::current_exception();
          if (on_error) on_error(rank);
        }
      }
      registry.abort();
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < ranks; ++rank) threads.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace

void run_ranks(int ranks, const std::function<void(World&)>& body,
               const std::function<void(int)>& on_error) {
  run_threads(
      ranks,
      [&](int rank, Registry& registry) {
        return std::make_unique<ThreadWorld>(rank, ranks, registry);
      },
      body, on_error);
}

void run_ranks_on_gpus(const std::vector<int>& gpus, const std::function<void(World&)>& body,
                       const std::function<void(int)>& on_error) {
  run_threads(
      static_cast<int>(gpus.size()),
      [&](int rank, Registry& registry) {
        return std::make_unique<GpuThreadWorld>(rank, gpus, registry);
      },
      body, on_error);
}

}  // namespace weft
