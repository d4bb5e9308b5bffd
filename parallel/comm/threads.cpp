#include "parallel/comm/threads.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

namespace weft {
namespace {

/// What the ranks of one group share. A send posts a pointer; the receiver copies straight from it.
class Mailboxes {
 public:
  explicit Mailboxes(int size) : size_(size), boxes_(size * size) {}

  struct Posting {
    const std::byte* data;
    int64_t bytes;
    int* pending;  // of the sender: counts down as receivers finish
  };

  void post(int from, int to, const Posting& posting) {
    {
      const std::lock_guard lock(mutex_);
      boxes_[from * size_ + to].push_back(posting);
    }
    changed_.notify_all();
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

  void finish(const Posting& posting) {
    {
      const std::lock_guard lock(mutex_);
      --*posting.pending;
    }
    changed_.notify_all();
  }

  void wait_for_receivers(int rank, const int& pending) {
    std::unique_lock lock(mutex_);
    wait(
        lock, [&] { return pending == 0; }, rank, rank);
  }

  /// After a failure: takes back what nobody has taken and lets the copies under way finish, so
  /// that no receiver touches the sender's memory afterwards.
  void withdraw(int& pending) {
    std::unique_lock lock(mutex_);
    for (auto& box : boxes_) {
      pending -= static_cast<int>(
          std::erase_if(box, [&](const Posting& posting) { return posting.pending == &pending; }));
    }
    changed_.wait(lock, [&] { return pending == 0; });
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
    changed_.notify_all();
  }

 private:
  struct Entry {
    Fingerprint print;
    int rank;
    int arrived;
  };

  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, Ready&& ready, int from, int to) {
    const auto limit = std::chrono::duration<double>(wait_deadline());
    const bool woken = changed_.wait_for(lock, limit, [&] { return aborted_ || ready(); });
    WEFT_REQUIRE(!aborted_, ExitCode::retry, "a peer ended the job");
    WEFT_REQUIRE(woken, ExitCode::hang, "no message from rank ", from, " to rank ", to, " within ",
                 wait_deadline(), " s");
  }

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<Posting>> boxes_;  // [from, to]
  std::map<uint64_t, Entry> prints_;
  bool aborted_ = false;
};

class ThreadBackend final : public Backend {
 public:
  ThreadBackend(int rank, int size, std::shared_ptr<Mailboxes> mailboxes)
      : Backend(rank, size), mailboxes_(std::move(mailboxes)) {}

  void exchange(std::span<const Message> messages) override {
    int pending = 0;
    for (const auto& [way, peer, buffer] : messages) {
      pending += way == Message::Way::send && buffer.nbytes() > 0 ? 1 : 0;
    }
    for (const auto& [way, peer, buffer] : messages) {
      if (way != Message::Way::send || buffer.nbytes() == 0) continue;
      mailboxes_->post(rank(), peer, {buffer.data, buffer.nbytes(), &pending});
      count_sent(buffer.nbytes());
    }
    try {
      receive(messages);
      mailboxes_->wait_for_receivers(rank(), pending);
    } catch (...) {
      mailboxes_->withdraw(pending);
      throw;
    }
  }

  void verify(const Fingerprint& mine) override { mailboxes_->compare(rank(), mine); }
  bool verify_is_cheap() const override { return true; }

 private:
  void receive(std::span<const Message> messages) {
    for (const auto& [way, peer, buffer] : messages) {
      if (way != Message::Way::receive || buffer.nbytes() == 0) continue;
      const auto posting = mailboxes_->take(peer, rank());
      if (posting.bytes == buffer.nbytes()) std::memcpy(buffer.data, posting.data, posting.bytes);
      mailboxes_->finish(posting);
      WEFT_REQUIRE(posting.bytes == buffer.nbytes(), ExitCode::mismatch,
                   "collective mismatch: rank ", rank(), " expects ", buffer.nbytes(),
                   " bytes, rank ", peer, " sends ", posting.bytes);
    }
  }

  std::shared_ptr<Mailboxes> mailboxes_;
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

 private:
  std::mutex mutex_;
  std::map<std::pair<std::vector<int>, std::string>, std::shared_ptr<Mailboxes>> groups_;
  bool aborted_ = false;
};

class ThreadWorld final : public World {
 public:
  ThreadWorld(int rank, int size, Registry& registry)
      : rank_(rank), size_(size), registry_(registry) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    return std::make_unique<ThreadBackend>(
        place_in(members, label), static_cast<int>(members.size()), registry_.find(members, label));
  }

 private:
  int rank_;
  int size_;
  Registry& registry_;
};

}  // namespace

void run_ranks(int ranks, const std::function<void(World&)>& body,
               const std::function<void(int)>& on_error) {
  Registry registry;
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto run = [&](int rank) {
    try {
      ThreadWorld world(rank, ranks, registry);
      body(world);
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

}  // namespace weft
