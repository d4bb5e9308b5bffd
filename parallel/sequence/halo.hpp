// The tokens just before a shard, of tensors that a layer reads across the cut: keys and values of
// a sliding window, what a short convolution mixes. A halo spans as many shards as it needs.
//
// What travels lies token by token, [t, B, heads, D]: the last tokens of a shard and the pieces of
// a halo are then stretches of memory for any B.
#pragma once

#include <vector>

#include "parallel/layer.hpp"

namespace weft {

/// Tokens [begin, end) of the sequence, never none, that travel between a rank and `peer`.
struct HaloPiece {
  int peer;
  int64_t begin, end;

  int64_t tokens() const { return end - begin; }
  bool operator==(const HaloPiece&) const = default;
};

/// What `rank` receives: the window - 1 tokens before its first, or as many as there are, from
/// their owners in ascending order. A rank without tokens has no queries and receives nothing.
std::vector<HaloPiece> halo_pieces(const Cuts& cuts, int64_t window, int rank);

/// What `rank` sends: its part of the halo of every later rank, in ascending order. Each piece ends
/// with the shard, and none is longer than the first.
std::vector<HaloPiece> halo_sends(const Cuts& cuts, int64_t window, int rank);

/// One exchange of halos, on Lane::forward, and one of their gradients, on Lane::backward. Takes
/// buffers from the scratch arena: the caller's scope of it encloses all calls and their waits.
/// Collective over the sequence axis.
class TokenHalo {
 public:
  /// Of the `tokens` tokens before each shard of `cuts`, or as many as there are. A rank without
  /// tokens has no halo.
  TokenHalo(const Cuts& cuts, int64_t tokens, const Tag& tag, StepContext& ctx);

  /// The halo is the tokens [begin(), first own token).
  int64_t begin() const { return halo_begin_; }
  int64_t tokens() const { return begin_ - halo_begin_; }
  int64_t first_own() const { return begin_; }

  /// Gives others the last tokens of each `own` [B, T, heads, D], and fills each `halo`
  /// [tokens(), B, heads, D] by the event.
  Event fetch(const std::vector<Tensor>& halos, const std::vector<Tensor>& own) const;

  /// Gradients of tokens that other ranks read, on their way to their owner.
  struct Returning {
    Event arrived;
    std::vector<std::vector<Tensor>> parts;  // by reader, ascending; then as the halos
  };
  /// Sends each halo's gradient to the owners. Nothing may write to it before add_returned().
  Returning give_back(const std::vector<Tensor>& halos) const;
  /// Waits, and adds what the readers found to the last tokens of each `own`.
  void add_returned(const Returning& returning, const std::vector<Tensor>& own) const;

 private:
  /// The tokens that others see, [t, B, heads, D], of all our tokens.
  Tensor tail(const Tensor& own) const;
  /// The same without gaps; a single sequence's has none.
  Tensor packed_tail(const Tensor& own) const;

  StepContext& ctx_;
  Tag tag_;
  std::vector<HaloPiece> receives_, sends_;
  int64_t begin_, end_;  // of our tokens
  int64_t halo_begin_;   // the halo is [halo_begin_, begin_)
  int64_t tail_begin_;   // others see our tokens [tail_begin_, end_)
};

}  // namespace weft
