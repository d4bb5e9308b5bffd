#include "parallel/comm/communicator.hpp"

#include <atomic>
#include <cstring>

#include "src/tensor/arena.hpp"

namespace weft {
namespace {

std::atomic<bool> late_delivery{false};

int64_t hash_of(const Cuts& cuts) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a over the bounds
  for (int p = 0; p < cuts.pieces(); ++p) {
    hash = (hash ^ static_cast<uint64_t>(cuts.end(p))) * 0x100000001B3;
  }
  return static_cast<int64_t>(hash >> 1) | 1;  // never 0, which means "not compared"
}

void check_flat(const Tensor& buffer) {
  WEFT_CHECK(buffer.ndim == 1 && buffer.contiguous(), buffer.text());
}

}  // namespace

void set_late_delivery(bool on) {
  late_delivery = on;
}

/// The buffers of one transfer in late-delivery mode: it works on copies.
class Communicator::Deliveries {
 public:
  /// Null when the mode is off.
  static std::shared_ptr<Deliveries> begin() {
    return late_delivery ? std::make_shared<Deliveries>() : nullptr;
  }

  /// A copy of `target` for the transfer to work on; the target is poisoned.
  Tensor divert(const Tensor& target) {
    WEFT_CHECK(target.contiguous(), target.text());
    Item item{target, std::vector<std::byte>(target.nbytes() + 1)};
    if (target.nbytes() > 0) std::memcpy(item.bytes.data(), target.data, target.nbytes());
    poison_fill(target);
    Tensor copy = target;
    copy.data = item.bytes.data();
    items_.push_back(std::move(item));
    return copy;
  }

  void deliver() const {
    for (const auto& [target, bytes] : items_) {
      if (target.nbytes() > 0) std::memcpy(target.data, bytes.data(), target.nbytes());
    }
  }

 private:
  struct Item {
    Tensor target;
    std::vector<std::byte> bytes;
  };
  std::vector<Item> items_;
};

Communicator::Communicator(std::unique_ptr<Backend> backend, Device device, std::string group,
                           Ledgers ledgers, bool strict)
    : backend_(std::move(backend)),
      device_(device),
      group_(std::move(group)),
      ledgers_(ledgers),
      strict_(strict) {}

Communicator::~Communicator() = default;

Event Communicator::submit(const Call& call, Stream& after, std::shared_ptr<Deliveries> late,
                           std::function<void(Backend&)> work) {
  if (ledgers_.predicted) ledgers_.predicted->book(group_, call.tag, call.bytes);
  const Fingerprint print{calls_++, call.operation, call.dtype, call.tag, call.counts_hash};
  if (size() == 1 || device_ == Device::meta) return {};
  const Event event = run(after.record(), [this, print, work = std::move(work)] {
    if (strict_ || backend_->verify_is_cheap()) backend_->verify(print);
    backend_->take_bytes_sent();
    work(*backend_);
    const int64_t sent = backend_->take_bytes_sent();
    // A barrier's tokens carry no payload.
    if (ledgers_.counted && print.operation != Operation::barrier) {
      ledgers_.counted->book(group_, print.tag, sent);
    }
  });
  if (late) event.on_first_wait([late] { late->deliver(); });
  return event;
}

/// Makes a transport's call after `ready`, from the thread that it wants; the event of its end.
Event Communicator::run(const Event& ready, std::function<void()> transfer) {
  Stream* const gpu = backend_->device_stream();
  if (!backend_->calls_block()) {
    WEFT_CHECK(gpu != nullptr, "a call on the CPU that does not block");
    gpu->wait(ready);
    transfer();
    const Event done = gpu->record();
    backend_->in_flight(ready, done);
    return done;
  }
  if (!worker_) worker_ = make_worker_stream(group_);
  if (gpu == nullptr) {
    worker_->wait(ready);
    worker_->enqueue(std::move(transfer));
    return worker_->record();
  }
  const auto done = std::make_shared<Event>();
  worker_->enqueue([gpu, ready, done, transfer = std::move(transfer)] {
    gpu->wait(ready);
    transfer();
    *done = gpu->record();
  });
  return Event::handed_over(worker_->record(), done);
}

Event Communicator::exchange(std::vector<Message> messages, const Tag& tag, Stream& after) {
  int64_t bytes = 0;
  const auto late = device_ == Device::cpu ? Deliveries::begin() : nullptr;
  for (Message& message : messages) {
    WEFT_CHECK(message.peer >= 0 && message.peer < size() && message.peer != rank(), "peer ",
               message.peer, " of rank ", rank(), " in a group of ", size());
    WEFT_CHECK(message.buffer.contiguous(), message.buffer.text());
    if (message.way == Message::Way::send) {
      bytes += message.buffer.nbytes();
    } else if (late) {
      message.buffer = late->divert(message.buffer);
    }
  }
  // The ranks' messages differ, and a rank may have none: there is no type to compare.
  return submit({Operation::exchange, DType::u8, tag, 0, bytes}, after, late,
                [messages = std::move(messages)](Backend& b) { b.exchange(messages); });
}

Event Communicator::all_gather(const Tensor& buffer, const Cuts& cuts, const Tag& tag,
                               Stream& after) {
  check_flat(buffer);
  WEFT_CHECK(cuts.pieces() == size() && cuts.total() == buffer.numel(), buffer.text());
  const auto late = device_ == Device::cpu && size() > 1 ? Deliveries::begin() : nullptr;
  const Tensor target = late ? late->divert(buffer) : buffer;
  const int64_t bytes = cuts.size(rank()) * size_of(buffer.dtype) * (size() - 1);
  return submit({Operation::all_gather, buffer.dtype, tag, hash_of(cuts), bytes}, after, late,
                [target, cuts](Backend& b) { b.all_gather(target, cuts); });
}

Event Communicator::reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch,
                                   const Tag& tag, Stream& after) {
  check_flat(buffer);
  WEFT_CHECK(cuts.pieces() == size() && cuts.total() == buffer.numel(), buffer.text());
  WEFT_CHECK(size() == 1 || (scratch.dtype == buffer.dtype && scratch.dim(0) >= cuts.size(rank())),
             scratch.text());
  const auto late = device_ == Device::cpu && size() > 1 ? Deliveries::begin() : nullptr;
  const Tensor target = late ? late->divert(buffer) : buffer;
  const int64_t bytes = (buffer.numel() - cuts.size(rank())) * size_of(buffer.dtype);
  return submit({Operation::reduce_scatter, buffer.dtype, tag, hash_of(cuts), bytes}, after, late,
                [target, cuts, scratch](Backend& b) { b.reduce_scatter(target, cuts, scratch); });
}

Event Communicator::all_reduce(const Tensor& buffer, const Tensor& scratch, const Tag& tag,
                               Stream& after) {
  check_flat(buffer);
  const Cuts cuts = Cuts::even(buffer.numel(), size());
  WEFT_CHECK(size() == 1 || (scratch.dtype == buffer.dtype && scratch.dim(0) >= cuts.size(rank())),
             scratch.text());
  const auto late = device_ == Device::cpu && size() > 1 ? Deliveries::begin() : nullptr;
  const Tensor target = late ? late->divert(buffer) : buffer;
  const int64_t own = cuts.size(rank());
  const int64_t bytes = (buffer.numel() - own + own * (size() - 1)) * size_of(buffer.dtype);
  return submit({Operation::all_reduce, buffer.dtype, tag, hash_of(cuts), bytes}, after, late,
                [target, scratch](Backend& b) { b.all_reduce(target, scratch); });
}

Event Communicator::broadcast(const Tensor& buffer, int root, const Tag& tag, Stream& after) {
  check_flat(buffer);
  WEFT_CHECK(root >= 0 && root < size(), "root ", root, " of ", size());
  const auto late =
      device_ == Device::cpu && size() > 1 && rank() != root ? Deliveries::begin() : nullptr;
  const Tensor target = late ? late->divert(buffer) : buffer;
  const int64_t bytes = rank() == root ? buffer.nbytes() * (size() - 1) : 0;
  return submit({Operation::broadcast, buffer.dtype, tag, buffer.numel() + 1, bytes}, after, late,
                [target, root](Backend& b) { b.broadcast(target, root); });
}

Event Communicator::barrier(Stream& after) {
  return submit({Operation::barrier, DType::u8, Tag{}, 0, 0}, after, nullptr,
                [](Backend& b) { b.barrier(); });
}

Stream& Communicator::beside(Stream& compute) {
  if (size() == 1 || device_ == Device::meta) return compute;
  if (!beside_) beside_ = compute.make_beside(concat(group_, " kernels"));
  return *beside_;
}

}  // namespace weft
