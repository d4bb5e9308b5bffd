// Attention over projected keys and values as its equations say it, in f64 (Linformer, Wang et al.,
// arXiv 2006.04768): K' = E K and V' = F V along the tokens, then full softmax over the rows.
#pragma once

#include "src/kernels/naive/attention.hpp"

namespace weft::naive {

/// Every query sees every row: the intervals of `attention` are not looked at.
struct ProjectedInputs {
  AttentionInputs attention;
  int64_t rows;              // R
  std::vector<double> e, f;  // [R, Tk]
};

struct ProjectedResult {
  AttentionResult attention;   // dk, dv: of the keys and values before the projection
  std::vector<double> de, df;  // [R, Tk], summed over the batch
};

ProjectedResult projected_attention(const ProjectedInputs& in);

}  // namespace weft::naive
