// Cross-entropy as the ranks of a group compute it, one after the other.
#pragma once

#include <vector>

#include "src/kernels/loss.hpp"

namespace weft {

struct CrossEntropyCall {
  Tensor loss_sum;             // counted by the first rank
  std::vector<Tensor> logits;  // [R, V_p] by rank
  Tensor statistics;           // [ranks, 3, R]
  Tensor labels;
  double scale = 1.0;
  bool gradient = true;
};

inline void cross_entropy(const CrossEntropyCall& call, Stream& stream) {
  int64_t vocab = 0, begin = 0;
  for (const Tensor& piece : call.logits) vocab += piece.dim(1);
  const int64_t rows = call.labels.dim(0);
  for (int p = 0; p < std::ssize(call.logits); ++p) {
    const Tensor own = call.statistics.slice(0, p, p + 1).reshape({kRowStatistics, rows});
    cross_entropy_shard({.statistics = own,
                         .logits = call.logits[p],
                         .labels = call.labels,
                         .vocab_begin = begin,
                         .vocab = vocab,
                         .scale = call.scale,
                         .gradient = call.gradient},
                        stream);
    begin += call.logits[p].dim(1);
  }
  begin = 0;
  for (int p = 0; p < std::ssize(call.logits); ++p) {
    cross_entropy_combine({.loss_sum = p == 0 ? call.loss_sum : Tensor{},
                           .logits = call.logits[p],
                           .statistics = call.statistics,
                           .labels = call.labels,
                           .rank = p,
                           .vocab_begin = begin,
                           .scale = call.scale,
                           .gradient = call.gradient},
                          stream);
    begin += call.logits[p].dim(1);
  }
}

/// The columns of `logits` [R, vocab], cut into pieces of these widths.
inline std::vector<Tensor> column_pieces(const Tensor& logits, const std::vector<int64_t>& widths) {
  std::vector<Tensor> pieces;
  int64_t begin = 0;
  for (const int64_t width : widths) {
    pieces.push_back(logits.slice(1, begin, begin + width));
    begin += width;
  }
  return pieces;
}

}  // namespace weft
