#include "parallel/comm/simulated.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "parallel/comm/threads.hpp"
#include "src/core/virtual_time.hpp"

namespace weft {
namespace {

/// Both kinds of time behind one face: what passes, passes in sleep_until.
class Clock {
 public:
  explicit Clock(SimulatedTime time) : time_(time) {}

  /// From now on seconds count from here.
  void start() { epoch_ = Steady::now(); }

  double now() const {
    return time_ == SimulatedTime::critical_path
               ? VirtualTime::now()
               : std::chrono::duration<double>(Steady::now() - epoch_).count();
  }

  void sleep_until(double seconds) const {
    if (time_ == SimulatedTime::critical_path) {
      VirtualTime::reach(seconds);
    } else {
      std::this_thread::sleep_until(epoch_ + std::chrono::duration<double>(seconds));
    }
  }

 private:
  using Steady = std::chrono::steady_clock;

  SimulatedTime time_;
  Steady::time_point epoch_ = Steady::now();
};

/// A stream beside another: its kernels take time on a thread of their own.
class SimulatedBeside final : public Stream {
 public:
  SimulatedBeside(const SimulatedMachine& machine, const Clock& clock, const std::string& label)
      : machine_(machine), clock_(clock), worker_(make_worker_stream(label)) {}

  Device device() const override { return Device::meta; }
  bool traces() const override { return true; }
  void trace(const KernelCall& call) override {
    worker_->enqueue([this, seconds = machine_.kernel_s(call.cost)] {
      clock_.sleep_until(clock_.now() + seconds);
    });
  }
  void enqueue(std::function<void()>) override {}
  Event record() override { return worker_->record(); }
  void wait(const Event& event) override { worker_->wait(event); }
  std::unique_ptr<Stream> make_beside(const std::string& label) const override {
    return std::make_unique<SimulatedBeside>(machine_, clock_, label);
  }

 private:
  SimulatedMachine machine_;
  const Clock& clock_;
  std::unique_ptr<Stream> worker_;
};

/// A compute stream on which kernels take time and do nothing. One sleep does for all kernels
/// between two looks at the stream, so that what a sleep costs is not counted a kernel.
class SimulatedStream final : public Stream {
 public:
  SimulatedStream(const SimulatedMachine& machine, const Clock& clock)
      : machine_(machine), clock_(clock) {}

  Device device() const override { return Device::meta; }
  bool traces() const override { return true; }
  void trace(const KernelCall& call) override {
    busy_until_ = std::max(busy_until_, clock_.now()) + machine_.kernel_s(call.cost);
  }
  void enqueue(std::function<void()>) override {}

  Event record() override {
    finish();
    const Event event = Event::pending();
    event.complete();  // at this thread's time
    return event;
  }

  void wait(const Event& event) override {
    const double start = finish();
    event.wait();
    waited_s_ += clock_.now() - start;
  }
  double waited_s() const override { return waited_s_; }
  std::unique_ptr<Stream> make_beside(const std::string& label) const override {
    return std::make_unique<SimulatedBeside>(machine_, clock_, label);
  }

  /// Sleeps until all kernels are done; the time then.
  double finish() const {
    clock_.sleep_until(busy_until_);
    return clock_.now();
  }

 private:
  SimulatedMachine machine_;
  const Clock& clock_;
  double busy_until_ = 0;
  double waited_s_ = 0;
};

/// Tells the peers of an exchange when this rank reached it and how much it brings, over a real
/// transport, and passes the time that the payload would have taken.
class SimulatedBackend final : public Backend {
 public:
  SimulatedBackend(std::unique_ptr<Backend> inner, const SimulatedMachine& machine,
                   const Clock& clock)
      : Backend(inner->rank(), inner->size()),
        inner_(std::move(inner)),
        machine_(machine),
        clock_(clock) {}

  void exchange(std::span<const Message> messages) override {
    std::map<int, Peer> peers;
    int64_t sends = 0, receives = 0, sent = 0, received = 0;
    for (const auto& [way, peer, buffer] : messages) {
      const int64_t bytes = buffer.nbytes();
      if (bytes == 0) continue;  // no message, as on every transport
      if (way == Message::Way::send) {
        ++sends;
        sent += bytes;
        peers[peer].ours.bytes += static_cast<double>(bytes);
        count_sent(bytes);
      } else {
        ++receives;
        received += bytes;
        peers[peer].expected_bytes += static_cast<double>(bytes);
      }
    }
    const double start = meet(peers);
    clock_.sleep_until(start + std::max(machine_.transfer_s(sends, sent),
                                        machine_.transfer_s(receives, received)));
  }

  void verify(const Fingerprint& mine) override { inner_->verify(mine); }
  bool verify_is_cheap() const override { return inner_->verify_is_cheap(); }

 private:
  /// What two ranks tell each other.
  struct Greeting {
    double time = 0;   // when the rank reached the exchange
    double bytes = 0;  // that it sends to the other
  };
  struct Peer {
    Greeting ours, theirs;
    double expected_bytes = 0;
  };

  static Tensor view(Greeting& greeting) {
    static_assert(sizeof(Greeting) == 2 * sizeof(double));
    const int64_t two[] = {2};
    return Tensor::view(&greeting, DType::f64, Device::cpu, two);
  }

  /// When this rank and all its peers have reached the exchange.
  double meet(std::map<int, Peer>& peers) {
    const double now = clock_.now();
    std::vector<Message> greetings;
    for (auto& [rank, peer] : peers) {
      peer.ours.time = now;
      greetings.push_back(send_to(rank, view(peer.ours)));
      greetings.push_back(receive_from(rank, view(peer.theirs)));
    }
    inner_->exchange(greetings);
    double last = now;
    for (const auto& [peer_rank, peer] : peers) {
      WEFT_REQUIRE(peer.theirs.bytes == peer.expected_bytes, ExitCode::mismatch,
                   "collective mismatch: rank ", rank(), " expects ", peer.expected_bytes,
                   " bytes, rank ", peer_rank, " sends ", peer.theirs.bytes);
      last = std::max(last, peer.theirs.time);
    }
    return last;
  }

  std::unique_ptr<Backend> inner_;
  SimulatedMachine machine_;
  const Clock& clock_;
};

class SimulatedWorld final : public World {
 public:
  SimulatedWorld(World& inner, const SimulatedMachine& machine, const Clock& clock)
      : inner_(inner), machine_(machine), clock_(clock) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    return std::make_unique<SimulatedBackend>(inner_.group(members, label), machine_, clock_);
  }

 private:
  World& inner_;
  SimulatedMachine machine_;
  const Clock& clock_;
};

}  // namespace

double SimulatedMachine::kernel_s(const Cost& cost) const {
  return std::max(cost.flops / flops_per_s, cost.bytes / memory_bytes_per_s);
}

double SimulatedMachine::transfer_s(int64_t messages, int64_t bytes) const {
  return static_cast<double>(messages) * message_s + static_cast<double>(bytes) / link_bytes_per_s;
}

SimulatedMachine SimulatedMachine::slower(double factor) const {
  return {.flops_per_s = flops_per_s / factor,
          .memory_bytes_per_s = memory_bytes_per_s / factor,
          .link_bytes_per_s = link_bytes_per_s / factor,
          .message_s = message_s * factor};
}

SimulatedMachine SimulatedMachine::without_transfers() const {
  return {.flops_per_s = flops_per_s, .memory_bytes_per_s = memory_bytes_per_s};
}

SimulatedMachine SimulatedMachine::without_kernels() const {
  return {.link_bytes_per_s = link_bytes_per_s, .message_s = message_s};
}

std::vector<double> simulate(int ranks, const SimulatedMachine& machine, SimulatedTime time,
                             const std::function<void(const SimulatedRank&)>& program) {
  Clock clock(time);
  std::vector<double> ends(ranks);
  run_ranks(ranks, [&](World& threads) {
    SimulatedWorld world(threads, machine, clock);
    SimulatedStream compute(machine, clock);
    VirtualTime::restart();  // rank 0 is the caller's thread, which may have simulated before
    if (threads.rank() == 0) clock.start();
    threads.everyone("start")->barrier();
    program({world, compute, [&compute] { return compute.finish(); }});
    ends[threads.rank()] = compute.finish();
  });
  return ends;
}

}  // namespace weft
