#include "src/core/device.hpp"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "src/core/check.hpp"
#include "src/core/virtual_time.hpp"

namespace weft {

const char* name(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      return "cuda";
    case Device::meta:
      return "meta";
  }
  return "?";
}

namespace {

/// An event that a thread completes.
struct HostState final : Event::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  double virtual_time = 0;  // of the thread that completed it
  std::exception_ptr error;
  std::function<void()> deliver;

  void wait() override {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done; });
    VirtualTime::reach(virtual_time);
    if (error) std::rethrow_exception(error);
    if (const auto deliver_now = std::exchange(deliver, nullptr)) deliver_now();
  }

  bool ready() override {
    const std::lock_guard lock(mutex);
    return done;
  }

  static HostState& of(const std::shared_ptr<Event::State>& state) {
    auto* host = dynamic_cast<HostState*>(state.get());
    WEFT_CHECK(host != nullptr, "not an event of Event::pending()");
    return *host;
  }
};

/// An event that stands for another one, which is not there yet.
class HandedOver final : public Event::State {
 public:
  HandedOver(Event issued, std::shared_ptr<const Event> event)
      : issued_(std::move(issued)), event_(std::move(event)) {}

  void wait() override { Event(handed_over()).wait(); }
  bool ready() override { return issued_.ready() && event_->ready(); }
  std::shared_ptr<Event::State> handed_over() override {
    issued_.wait();
    return event_->state();
  }

 private:
  Event issued_;
  std::shared_ptr<const Event> event_;
};

}  // namespace

Event Event::handed_over(Event issued, std::shared_ptr<const Event> event) {
  return Event(std::make_shared<HandedOver>(std::move(issued), std::move(event)));
}

Event Event::pending() {
  return Event(std::make_shared<HostState>());
}

void Event::complete(std::exception_ptr error) const {
  HostState& state = HostState::of(state_);
  {
    const std::lock_guard lock(state.mutex);
    state.done = true;
    state.virtual_time = VirtualTime::now();
    state.error = std::move(error);
  }
  state.changed.notify_all();
}

void Event::on_first_wait(std::function<void()> deliver) const {
  HostState& state = HostState::of(state_);
  const std::lock_guard lock(state.mutex);
  state.deliver = std::move(deliver);
}

void Event::wait() const {
  if (state_) state_->wait();
}

bool Event::ready() const {
  return !state_ || state_->ready();
}

namespace {

class InlineStream final : public Stream {
 public:
  Device device() const override { return Device::cpu; }
  void enqueue(std::function<void()> work) override { work(); }
  Event record() override { return {}; }
  double waited_s() const override { return waited_s_; }

  void wait(const Event& event) override {
    if (event.ready()) return event.wait();  // deliveries and errors still come out
    const auto start = std::chrono::steady_clock::now();
    event.wait();
    waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  double waited_s_ = 0;
};

class WorkerStream final : public Stream {
 public:
  explicit WorkerStream(const std::string& label) : worker_([this] { run(); }) {
    // Shown by debuggers and top; the kernel takes 15 characters.
    pthread_setname_np(worker_.native_handle(), label.substr(0, 15).c_str());
  }

  ~WorkerStream() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  Device device() const override { return Device::cpu; }

  void enqueue(std::function<void()> work) override { push({std::move(work), std::nullopt}); }

  Event record() override {
    const Event event = Event::pending();
    push({nullptr, event});
    return event;
  }

  void wait(const Event& event) override {
    enqueue([event] { event.wait(); });
  }

 private:
  struct Item {
    std::function<void()> work;
    std::optional<Event> completes;
  };

  void push(Item item) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
    }
    changed_.notify_all();
  }

  void run() {
    std::exception_ptr error;
    for (;;) {
      Item item;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
        if (queue_.empty()) return;
        item = std::move(queue_.front());
        queue_.pop_front();
      }
      if (item.completes) {
        item.completes->complete(error);
      } else if (!error) {
        try {
          item.work();
        } catch (...) {
          error = std::current_exception();
        }
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  bool closing_ = false;
  std::thread worker_;  // last: starts when all above is there
};

class MetaStream final : public Stream {
 public:
  explicit MetaStream(std::function<void(const KernelCall&)> trace) : trace_(std::move(trace)) {}
  Device device() const override { return Device::meta; }
  void enqueue(std::function<void()>) override {}
  Event record() override { return {}; }
  void wait(const Event&) override {}
  std::unique_ptr<Stream> make_beside(const std::string&) const override {
    return make_meta_stream(trace_);
  }
  bool traces() const override { return static_cast<bool>(trace_); }
  void trace(const KernelCall& call) override { trace_(call); }

 private:
  std::function<void(const KernelCall&)> trace_;
};

}  // namespace

std::unique_ptr<Stream> Stream::make_beside(const std::string& label) const {
  WEFT_CHECK(device() == Device::cpu, "a worker thread beside a stream of ", name(device()));
  return make_worker_stream(label);
}

std::unique_ptr<Stream> make_inline_stream() {
  return std::make_unique<InlineStream>();
}

std::unique_ptr<Stream> make_worker_stream(const std::string& label) {
  return std::make_unique<WorkerStream>(label);
}

std::unique_ptr<Stream> make_meta_stream(std::function<void(const KernelCall&)> trace) {
  return std::make_unique<MetaStream>(std::move(trace));
}

}  // namespace weft
