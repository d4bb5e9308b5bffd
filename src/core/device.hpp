// Where work runs and in which order: Device, Event, Stream.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "src/core/kernel_call.hpp"

namespace weft {

enum class Device { cpu, cuda, meta };  // meta: shapes without bytes

const char* name(Device device);

/// A point in a stream that others can wait for. A copyable handle; a default one is complete.
class Event {
 public:
  Event() = default;

  /// Blocks until the work before the event is done; rethrows the error that work failed with.
  void wait() const;
  bool ready() const;

  /// What stands behind an event: each kind of stream brings its own.
  struct State {
    virtual ~State() = default;
    virtual void wait() = 0;
    virtual bool ready() = 0;
    /// For work that another thread hands to a GPU: blocks until it has, and gives the event that a
    /// GPU can wait for. Null for every other event.
    virtual std::shared_ptr<State> handed_over() { return nullptr; }
  };
  explicit Event(std::shared_ptr<State> state) : state_(std::move(state)) {}
  const std::shared_ptr<State>& state() const { return state_; }

  /// A new event that nothing has completed.
  static Event pending();
  /// Completes an event made by pending(); a failed one hands `error` to every waiter.
  void complete(std::exception_ptr error = nullptr) const;
  /// An event of work that another thread hands to a GPU. `*event` is the GPU's own event, there
  /// once `issued` is complete; an error of `issued` is handed to every waiter.
  static Event handed_over(Event issued, std::shared_ptr<const Event> event);
  /// Called once by the first waiter, after completion and before its wait returns. Late delivery,
  /// which proves that nobody reads before waiting, is made of this.
  void on_first_wait(std::function<void()> deliver) const;

 private:
  std::shared_ptr<State> state_;
};

/// A FIFO of work. Calls enqueue; what is enqueued starts in order.
class Stream {
 public:
  virtual ~Stream() = default;

  virtual Device device() const = 0;
  /// Runs `work` after everything enqueued before it.
  virtual void enqueue(std::function<void()> work) = 0;
  /// An event that completes when everything enqueued so far is done.
  virtual Event record() = 0;
  /// What is enqueued later starts only after `event`.
  virtual void wait(const Event& event) = 0;
  /// A further stream of the same device, whose work runs beside this one's: by default, for the
  /// streams of the CPU, a worker thread.
  virtual std::unique_ptr<Stream> make_beside(const std::string& label) const;
  /// Host seconds spent so far waiting for events that were not complete: transfers that nothing
  /// hid.
  virtual double waited_s() const { return 0; }
  /// Whether trace() wants to see kernel calls: only then is one described.
  virtual bool traces() const { return false; }
  /// Told of every kernel call, before the work that it enqueues.
  virtual void trace(const KernelCall&) {}
};

/// The compute stream of a CPU rank: work runs in place, in the caller.
std::unique_ptr<Stream> make_inline_stream();

/// A communication stream of a CPU rank: one worker thread. After a piece of work has thrown, the
/// rest is not run and every later event completes with that error.
std::unique_ptr<Stream> make_worker_stream(const std::string& label);

/// A stream of the meta device: runs nothing, shows every kernel call to `trace`.
std::unique_ptr<Stream> make_meta_stream(std::function<void(const KernelCall&)> trace);

}  // namespace weft
