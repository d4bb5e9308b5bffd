// The ledger: every byte that leaves a rank, by layer, group, purpose, pass and micro-batch.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace weft {

/// What a transfer is for: the ledger's key. The communicator adds its group's name.
struct Tag {
  /// balance: what moves work from busy ranks to idle ones. state: what crosses shards of a
  /// recurrence. convolution: the tokens that a short convolution reads across a cut. activation:
  /// rows of the residual stream, between stages and over the tensor axis.
  enum class Purpose : uint8_t {
    activation,
    attention,
    balance,
    state,
    convolution,
    gradient,
    parameter,
    norm,
    loss,
    control
  };
  enum class Pass : uint8_t { forward, backward, update };

  int layer = -1;  // -1: no layer's
  Purpose purpose = Purpose::control;
  Pass pass = Pass::forward;
  int micro_batch = 0;

  auto operator<=>(const Tag&) const = default;
};

const char* name(Tag::Purpose purpose);
const char* name(Tag::Pass pass);
/// "attention forward of layer 3, micro-batch 0"
std::string text(const Tag& tag);

/// Payload bytes sent by one rank. "Sent" is what leaves the rank: an all-gather sends the own
/// piece P-1 times, a reduce-scatter everything but the own piece, an all-reduce both (2 (P-1)/P of
/// the buffer on average), a broadcast's root the buffer P-1 times, an exchange its messages.
/// Safe to use from several threads.
class Ledger {
 public:
  struct Key {
    std::string group;
    Tag tag;
    auto operator<=>(const Key&) const = default;
  };

  void book(const std::string& group, const Tag& tag, int64_t bytes);
  void clear();

  std::map<Key, int64_t> entries() const;
  /// Bytes by group name.
  std::map<std::string, int64_t> by_group() const;

 private:
  mutable std::mutex mutex_;
  std::map<Key, int64_t> bytes_;
};

}  // namespace weft
