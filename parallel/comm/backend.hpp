// What a transport must do: move bytes between the ranks of one group. Order against computation,
// checks and the ledger are the Communicator's business.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/comm/ledger.hpp"
#include "src/core/shard.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// One message of an exchange. `buffer` is contiguous; both sides agree on its bytes.
struct Message {
  enum class Way { send, receive };
  Way way;
  int peer;  // rank in the group
  Tensor buffer;
};
inline Message send_to(int peer, const Tensor& t) {
  return {Message::Way::send, peer, t};
}
inline Message receive_from(int peer, const Tensor& t) {
  return {Message::Way::receive, peer, t};
}

enum class Operation : uint8_t {
  exchange,
  all_gather,
  reduce_scatter,
  all_reduce,
  broadcast,
  barrier
};
const char* name(Operation operation);

/// What all ranks of a group must agree on before a collective.
struct Fingerprint {
  uint64_t sequence = 0;  // number of the call in its communicator
  Operation operation = Operation::barrier;
  DType dtype = DType::u8;
  Tag tag;
  int64_t counts = 0;  // hash of the counts per rank; 0 for an exchange, whose sides differ

  bool operator==(const Fingerprint&) const = default;
  std::string text() const;
};

/// One group of one rank. Calls come from one thread at a time. On the CPU they block until done; a
/// transport with a device_stream() enqueues there and returns. Collectives are in place over a
/// buffer of pieces, one a rank, one after the other; unless a transport has its own, they are made
/// of exchanges with fixed summation order, so that all transports agree bit for bit.
class Backend {
 public:
  Backend(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Backend() = default;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// The GPU stream that the calls enqueue on; null on the CPU.
  virtual Stream* device_stream() { return nullptr; }
  /// Whether a call returns only when peers have made theirs, or when bytes have moved: such calls
  /// get a thread of their own. Others are made by the rank's thread, which keeps them in one order
  /// over all groups.
  virtual bool calls_block() const { return true; }
  /// Told of every operation of calls that do not block: they start after `ready`, `done` is their
  /// end.
  virtual void in_flight(const Event& ready, const Event& done) {}
  /// How often calls have waited for a GPU so far: transports that go through the host do.
  virtual int64_t host_waits() const { return 0; }

  /// All sends and receives at once; messages between two ranks match in order. Adds the payload
  /// handed to the transport to bytes_sent().
  virtual void exchange(std::span<const Message> messages) = 0;

  /// Compares what the ranks are about to do; throws Error(mismatch) naming both sides.
  virtual void verify(const Fingerprint& mine) = 0;
  /// Whether verify costs next to nothing, so that it always runs.
  virtual bool verify_is_cheap() const { return false; }

  virtual void all_gather(const Tensor& buffer, const Cuts& cuts);
  /// Afterwards the own piece holds the sum; the others are as they were. `scratch` holds a piece.
  virtual void reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch);
  /// The sum over the ranks, the same bits on all. `scratch` holds a piece of the even cuts.
  virtual void all_reduce(const Tensor& buffer, const Tensor& scratch);
  virtual void broadcast(const Tensor& buffer, int root);
  virtual void barrier();

  /// Payload handed to the transport since the last call; counted where it is handed over.
  int64_t take_bytes_sent() { return std::exchange(bytes_sent_, 0); }

 protected:
  void count_sent(int64_t bytes) { bytes_sent_ += bytes; }
  /// A barrier that sends and receives `tokens`, u8 [2], where exchanges run.
  void barrier_of_exchanges(const Tensor& tokens);

 private:
  int rank_;
  int size_;
  int64_t bytes_sent_ = 0;
};

/// All ranks of a job as one rank sees them, and the maker of groups.
class World {
 public:
  virtual ~World() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Where tensors that travel are: Device::meta when the ranks are only recorded.
  virtual Device device() const { return Device::cpu; }
  /// The rank's GPU, as this process counts them; 0 on other devices. Making the world makes it the
  /// calling thread's GPU.
  virtual int gpu() const { return 0; }
  /// Whether a peer has ended the job. Only ranks of one process can tell.
  virtual bool ended() const { return false; }
  /// The group of `members` (world ranks; the caller is one). All members call with the same
  /// arguments, in one order of calls; `label` tells groups of the same members apart.
  virtual std::unique_ptr<Backend> group(const std::vector<int>& members,
                                         const std::string& label) = 0;
  /// The same for buffers in host memory, wherever tensors are.
  virtual std::unique_ptr<Backend> host_group(const std::vector<int>& members,
                                              const std::string& label) {
    return group(members, label);
  }
  /// Bytes of the rank's GPU that the groups made so far have taken, as the card counts them; 0
  /// where they take none.
  virtual int64_t group_bytes() const { return 0; }
  /// The group of all ranks, for set-up traffic between hosts that no ledger books.
  std::unique_ptr<Backend> everyone(const std::string& label);
  /// A stream of device() for the computation of this rank.
  std::unique_ptr<Stream> make_compute_stream() const;

 protected:
  /// This rank's place among `members`.
  int place_in(const std::vector<int>& members, const std::string& label) const;
};

/// A longer wait for a peer than this is an Error(hang). Process-wide, in seconds.
void set_wait_deadline(double seconds);
double wait_deadline();

}  // namespace weft
