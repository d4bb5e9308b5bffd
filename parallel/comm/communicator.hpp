// Communicator: one group of ranks on one communication stream. The shell around every transport
// that orders transfers against computation, checks arguments, compares what the ranks are about to
// do, and books the bytes.
//
//   calls that block, on the CPU   a worker thread waits for computation, then makes the call
//   calls that block, on a GPU     the worker makes the call, which enqueues on a GPU stream behind
//                                  an event of the computation; nobody waits for the GPU
//   calls that return, on a GPU    the same without the worker
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/backend.hpp"
#include "parallel/comm/ledger.hpp"
#include "src/core/device.hpp"

namespace weft {

/// Where transfers are booked: `predicted` by the shell from shapes, `counted` by the transport
/// from the buffers it is handed. Either may be null.
struct Ledgers {
  Ledger* predicted = nullptr;
  Ledger* counted = nullptr;
};

/// Every call enqueues and returns an Event. The transfer starts after what is enqueued on `after`
/// so far; its buffers belong to it until the event is waited for. All ranks of the group make the
/// same calls in the same order; two operations in flight at once need two communicators.
class Communicator {
 public:
  /// `group` names the group in the ledger; `strict` compares fingerprints on every transport.
  Communicator(std::unique_ptr<Backend> backend, Device device, std::string group, Ledgers ledgers,
               bool strict);
  ~Communicator();

  int rank() const { return backend_->rank(); }
  int size() const { return backend_->size(); }
  int next() const { return (rank() + 1) % size(); }
  int prev() const { return before(1); }
  /// The rank `distance` places before this one on the ring of ranks; 0 <= distance <= size.
  int before(int distance) const { return (rank() + size() - distance) % size(); }
  const std::string& group() const { return group_; }
  /// Calls so far, those of a group of one and of the meta device included.
  int64_t calls() const { return static_cast<int64_t>(calls_); }
  /// How often transfers have waited for a GPU on the host so far.
  int64_t host_waits() const { return backend_->host_waits(); }

  /// Point-to-point messages, all at once.
  Event exchange(std::vector<Message> messages, const Tag& tag, Stream& after);

  /// buffer: 1-D, the pieces of all ranks one after the other, cut by `cuts` (in elements). The own
  /// piece is there; afterwards all are.
  Event all_gather(const Tensor& buffer, const Cuts& cuts, const Tag& tag, Stream& after);

  /// buffer as above, floating; afterwards the own piece is the sum over the ranks. `scratch`: 1-D,
  /// at least cuts.size(rank()) elements of the same type.
  Event reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch,
                       const Tag& tag, Stream& after);

  /// buffer: 1-D, floating; afterwards the sum over the ranks, the same bits on all. `scratch`: at
  /// least ceil(n / P) elements.
  Event all_reduce(const Tensor& buffer, const Tensor& scratch, const Tag& tag, Stream& after);

  Event broadcast(const Tensor& buffer, int root, const Tag& tag, Stream& after);
  Event barrier(Stream& after);

  /// The stream of the kernels that stand between two transfers of this group (receive, combine,
  /// send) while `compute` goes on: transfers take it for `after`, and it waits for their events.
  /// `compute` itself in a group of one and on the meta device, where nothing runs. A receive into
  /// a buffer that it still uses is a mistake, also where the order of events allows it: late
  /// delivery poisons a buffer when the call is made.
  Stream& beside(Stream& compute);

 private:
  struct Call {
    Operation operation;
    DType dtype;
    Tag tag;
    int64_t counts_hash;
    int64_t bytes;  // that this rank sends
  };
  class Deliveries;

  Event submit(const Call& call, Stream& after, std::shared_ptr<Deliveries> late,
               std::function<void(Backend&)> work);
  Event run(const Event& ready, std::function<void()> transfer);

  std::unique_ptr<Backend> backend_;
  Device device_;
  std::string group_;
  Ledgers ledgers_;
  bool strict_;
  uint64_t calls_ = 0;
  std::unique_ptr<Stream> beside_;  // made when it is asked for
  std::unique_ptr<Stream> worker_;  // made at the first transfer; last, so that it stops first
};

/// Late delivery, a test of waits: what a transfer receives is kept aside, the buffer is poisoned,
/// and the first wait for the event puts the data there. Code that reads without waiting reads NaN.
void set_late_delivery(bool on);

}  // namespace weft
