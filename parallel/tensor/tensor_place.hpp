// What layers know of the tensor axis when they are made: the piece of a dim that is theirs.
#pragma once

#include "parallel/parameter.hpp"
#include "src/core/shard.hpp"

namespace weft {

/// Indices [begin, end) of a dim of `total`, which `copies` consecutive ranks of the tensor axis
/// hold alike; this rank's is number `copy` of them.
struct Piece {
  int64_t begin = 0, end = 0, total = 0;
  int copies = 1, copy = 0;

  int64_t size() const { return end - begin; }
  /// The same of a dim with `n` indices for each of this one: heads to channels.
  Piece times(int64_t n) const { return {begin * n, end * n, total * n, copies, copy}; }
};

/// A rank's place on the tensor axis.
struct TensorPlace {
  int rank = 0;
  int size = 1;

  /// Of a dim cut as evenly as can be.
  Piece piece(int64_t total) const {
    const Cuts cuts = Cuts::even(total, size);
    return {cuts.begin(rank), cuts.end(rank), total};
  }
  /// A dim that every rank has whole.
  Piece whole(int64_t total) const { return {0, total, total, size, rank}; }
};

/// Makes of the description of a whole parameter that of `piece` along its dim `dim`.
inline Parameter cut(Parameter parameter, int dim, const Piece& piece) {
  WEFT_CHECK(parameter.shape.at(dim) == piece.total, parameter.name, ": ", piece.total,
             " along dim ", dim);
  parameter.holders.tensor = piece.copies;
  if (piece.size() == piece.total) return parameter;
  parameter.cut_dim = dim;
  parameter.begin = piece.begin;
  parameter.end = piece.end;
  return parameter;
}

}  // namespace weft
