// Transports with something wrong in them: worlds whose groups are those of another.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/comm/backend.hpp"
#include "tests/testing.hpp"

namespace weft {

class FlawedWorld : public World {
 public:
  explicit FlawedWorld(World& sound) : sound_(sound) {}
  int rank() const override { return sound_.rank(); }
  int size() const override { return sound_.size(); }

 protected:
  World& sound_;
};

/// Takes the first two ranks of every group for one another.
class SwapsRanks final : public FlawedWorld {
  using FlawedWorld::FlawedWorld;
  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    std::vector<int> swapped = members;
    if (swapped.size() > 1) std::swap(swapped[0], swapped[1]);
    return sound_.group(swapped, label);
  }
};

/// Leaves one message of the run where it is: the buffer keeps what was in it.
class LosesAMessage final : public FlawedWorld {
 public:
  /// `countdown`: messages that this rank receives before the lost one; negative: none is lost.
  LosesAMessage(World& sound, int countdown) : FlawedWorld(sound), countdown_(countdown) {}

  bool lost() const { return countdown_ < 0; }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    return std::make_unique<Lossy>(sound_.group(members, label), countdown_);
  }

 private:
  class Lossy final : public Backend {
   public:
    Lossy(std::unique_ptr<Backend> sound, std::atomic<int>& countdown)
        : Backend(sound->rank(), sound->size()), sound_(std::move(sound)), countdown_(countdown) {}

    void exchange(std::span<const Message> messages) override {
      std::vector<Message> received(messages.begin(), messages.end());
      Owned elsewhere;
      for (Message& message : received) {
        if (message.way == Message::Way::send || message.buffer.nbytes() == 0) continue;
        if (countdown_-- != 0) continue;
        elsewhere = Owned(DType::u8, {message.buffer.nbytes()});
        message.buffer = elsewhere;
      }
      sound_->exchange(received);
    }
    void verify(const Fingerprint& mine) override { sound_->verify(mine); }

   private:
    std::unique_ptr<Backend> sound_;
    std::atomic<int>& countdown_;
  };

  std::atomic<int> countdown_;
};

}  // namespace weft
