// Rows of tokens across the tensor axis (Megatron-LM's sequence-parallel regions, Korthikanti et
// al., arXiv 2205.05198). The R = B T rows of a micro-batch are cut evenly: a rank keeps the
// residual stream of its own r rows and norms them; a branch, whose heads or columns are cut,
// computes with all R of them and ends in partial sums.
//
//   own rows [r, C]  -- gather -->  all rows [R, C]  -- branch -->  partial sums [R, C]  -- sum -->
//   own rows [r, C]
#pragma once

#include "parallel/layer.hpp"

namespace weft {

class TokenRows {
 public:
  /// `layer`: for the ledger, -1 where it is no layer's. Nothing here outlives the frame or ctx.
  TokenRows(const Frame& frame, int layer, StepContext& ctx);

  int64_t all() const { return cuts_.total(); }         // R
  int64_t size() const { return cuts_.size(rank_); }    // r
  int64_t begin() const { return cuts_.begin(rank_); }  // the first own row

  /// Room for all rows of C columns in the scratch; absent in a group of one, where they are the
  /// own ones.
  Tensor room(const char* name, DType dtype, int64_t width) const;

  /// All rows [R, C], in `room`, from the own ones [r, C]; the own tensor in a group of one. Goes
  /// over the lane of the pass, as the sums do.
  Tensor gather(const Tensor& own, const Tensor& room, Tag::Pass pass) const;
  /// The same over another lane, beside what is computed until it is awaited.
  Arriving begin_gather(const Tensor& own, const Tensor& room, Tag::Pass pass, Lane lane) const;

  /// The own rows [r, C] of the sum over the ranks of `partial` [R, C]: a view of it. The rest of
  /// `partial` is undefined afterwards.
  Tensor sum(const Tensor& partial, Tag::Pass pass) const;
  /// The same into `own` [r, C], which in a group of one is `partial` itself.
  void sum_into(const Tensor& own, const Tensor& partial, Tag::Pass pass) const;

 private:
  Communicator& group(Lane lane) const { return ctx_.mesh.along(Axis::tensor, lane); }
  Tensor own_rows(const Tensor& all) const;
  /// [R, C] as one dim, and the cuts of that.
  static Tensor flat(const Tensor& all) { return all.reshape({all.numel()}); }
  Cuts elements(int64_t width) const;
  Tag tag(Tag::Pass pass) const;

  StepContext& ctx_;
  int rank_, ranks_;
  Cuts cuts_;
  int layer_, micro_batch_;
};

}  // namespace weft
