#include "parallel/sequence/halo.hpp"

#include <algorithm>

#include "parallel/sequence/attention_blocks.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Where what `reader`, a later rank, sees of `owner` begins; it ends with the owner's tokens.
int64_t first_seen(const Cuts& cuts, int64_t window, int owner, int reader) {
  if (cuts.size(reader) == 0) return cuts.end(owner);
  return std::clamp(cuts.begin(reader) - (window - 1), cuts.begin(owner), cuts.end(owner));
}

}  // namespace

std::vector<HaloPiece> halo_pieces(const Cuts& cuts, int64_t window, int rank) {
  std::vector<HaloPiece> pieces;
  for (int owner = 0; owner < rank; ++owner) {
    const int64_t begin = first_seen(cuts, window, owner, rank), end = cuts.end(owner);
    if (begin < end) pieces.push_back({owner, begin, end});
  }
  return pieces;
}

std::vector<HaloPiece> halo_sends(const Cuts& cuts, int64_t window, int rank) {
  std::vector<HaloPiece> pieces;
  for (int reader = rank + 1; reader < cuts.pieces(); ++reader) {
    const int64_t begin = first_seen(cuts, window, rank, reader), end = cuts.end(rank);
    if (begin < end) pieces.push_back({reader, begin, end});
  }
  return pieces;
}

TokenHalo::TokenHalo(const Cuts& cuts, int64_t tokens, const Tag& tag, StepContext& ctx)
    : ctx_(ctx), tag_(tag) {
  const int rank = ctx.mesh.along(Axis::sequence).rank();
  receives_ = halo_pieces(cuts, tokens + 1, rank);
  sends_ = halo_sends(cuts, tokens + 1, rank);
  begin_ = cuts.begin(rank);
  end_ = cuts.end(rank);
  halo_begin_ = receives_.empty() ? begin_ : receives_.front().begin;
  tail_begin_ = sends_.empty() ? end_ : sends_.front().begin;
}

Event TokenHalo::fetch(const std::vector<Tensor>& halos, const std::vector<Tensor>& own) const {
  std::vector<Tensor> tails;
  for (const Tensor& t : own) tails.push_back(packed_tail(t));
  std::vector<Message> messages;
  for (const auto& [peer, begin, end] : sends_) {
    for (const Tensor& t : tails) {
      messages.push_back(send_to(peer, t.slice(0, begin - tail_begin_, end - tail_begin_)));
    }
  }
  for (const auto& [peer, begin, end] : receives_) {
    for (const Tensor& halo : halos) {
      messages.push_back(receive_from(peer, halo.slice(0, begin - halo_begin_, end - halo_begin_)));
    }
  }
  return ctx_.mesh.along(Axis::sequence, Lane::forward).exchange(messages, tag_, ctx_.compute);
}

TokenHalo::Returning TokenHalo::give_back(const std::vector<Tensor>& halos) const {
  std::vector<Message> messages;
  for (const auto& [peer, begin, end] : receives_) {
    for (const Tensor& halo : halos) {
      messages.push_back(send_to(peer, halo.slice(0, begin - halo_begin_, end - halo_begin_)));
    }
  }
  Returning returning;
  for (const HaloPiece& piece : sends_) {
    std::vector<Tensor>& parts = returning.parts.emplace_back();
    for (const Tensor& like : halos) {
      parts.push_back(ctx_.scratch.allocate(
          "halo", like.dtype, {piece.tokens(), like.dim(1), like.dim(2), like.dim(3)}));
      messages.push_back(receive_from(piece.peer, parts.back()));
    }
  }
  returning.arrived =
      ctx_.mesh.along(Axis::sequence, Lane::backward).exchange(messages, tag_, ctx_.compute);
  return returning;
}

void TokenHalo::add_returned(const Returning& returning, const std::vector<Tensor>& own) const {
  ctx_.compute.wait(returning.arrived);
  for (size_t i = 0; i < own.size(); ++i) {
    const Tensor sum = packed_tail(own[i]);
    for (const std::vector<Tensor>& parts : returning.parts) {  // each ends with the shard
      const Tensor target = sum.slice(0, sum.dim(0) - parts[i].dim(0), sum.dim(0));
      add({.y = target, .a = target, .b = parts[i]}, ctx_.compute);
    }
    if (!tail(own[i]).contiguous()) copy({.y = tail(own[i]), .x = sum}, ctx_.compute);
  }
}

Tensor TokenHalo::tail(const Tensor& own) const {
  return swapped(own.slice(1, tail_begin_ - begin_, end_ - begin_));
}

Tensor TokenHalo::packed_tail(const Tensor& own) const {
  const Tensor strided = tail(own);
  if (strided.contiguous()) return strided;
  const Tensor packed = ctx_.scratch.allocate(
      "halo", own.dtype, {strided.dim(0), strided.dim(1), strided.dim(2), strided.dim(3)});
  copy({.y = packed, .x = strided}, ctx_.compute);
  return packed;
}

}  // namespace weft
