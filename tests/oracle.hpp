// References in f64, straight from the equations: no tiles, no merging, no saved intermediates. And
// the pieces of attention that kernels work on, to be compared with them.
#pragma once

#include <vector>

#include "src/kernels/attention.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/naive/attention.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/tensor/tensor.hpp"
#include "tests/testing.hpp"

namespace weft {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

/// The pieces between neighbouring bounds.
std::vector<Range> ranges(const std::vector<int64_t>& bounds);

struct AttentionShape {
  int64_t batch, heads, kv_heads, width;
};

/// Random queries [B, Tq, H, D] of one shard, and keys [B, Tk, G, D] of the whole sample.
struct AttentionProblem {
  Owned q, k, v, dout;
  KeyIntervals keys;  // of the queries
  double scale;       // D^-1/2
  AttentionShape shape;

  int64_t queries() const { return q.view().dim(1); }
};

AttentionProblem attention_problem(DType dtype, const AttentionShape& shape, int64_t tokens,
                                   KeyIntervals keys);

using naive::AttentionResult;

/// Softmax attention of q [B, Tq, H, D] over the keys [0, Tk) of k, v [B, Tk, G, D], where query i
/// sees [key_begin, key_end) of [B, Tq]. A query that sees nothing has out 0 and lse -inf. Without
/// dout [B, Tq, H, D] the gradients are those of dout = 0.
AttentionResult oracle_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& key_begin, const Tensor& key_end, double scale,
                                 const Tensor& dout = {});
AttentionResult oracle_attention(const AttentionProblem& problem);

/// What one rank holds of the queries, and one block of keys with its gradients.
struct QueryPiece {
  Owned q, dout, begin, end, out, lse, delta, dq;
};
struct KeyPiece {
  Owned k, v, dk, dv;
  int64_t first;
};

/// Contiguous copies of tokens [begin, end), with out and gradients 0 and lse -inf.
QueryPiece query_piece(const AttentionProblem& p, Range range);
KeyPiece key_piece(const AttentionProblem& p, Range range);

/// One kernel call on pieces of p.
void forward(const AttentionProblem& p, const QueryPiece& q, const KeyPiece& k);
void backward(const AttentionProblem& p, const QueryPiece& q, const KeyPiece& k);

/// Runs every piece of the queries over the blocks of keys in the given order, backward in the
/// opposite order, and puts the results together.
AttentionResult attend(const AttentionProblem& p, const std::vector<Range>& queries,
                       const std::vector<Range>& blocks);

/// alpha op(a) op(b) + c; of args.c only the shape is read.
std::vector<double> oracle_matmul(const MatmulArgs& args, std::vector<double> c);

struct OracleNorm {
  std::vector<double> y, rstd, dx, dweight;
};

/// RMSNorm of rows of weight.size() numbers, and its gradients for dy.
OracleNorm oracle_rmsnorm(const std::vector<double>& x, const std::vector<double>& weight,
                          const std::vector<double>& dy, double eps);

struct OracleLoss {
  double sum = 0;                // of -log softmax[label] over rows whose label is not negative
  std::vector<double> gradient;  // scale x d sum / d logits
};

OracleLoss oracle_cross_entropy(const std::vector<double>& logits,
                                const std::vector<double>& labels, double scale);

/// Parameters and moments; one update takes the hyper-parameters from `args` and no tensor.
struct OracleAdamW {
  std::vector<double> param, m, v;

  void update(const std::vector<double>& grad, double squared_norm, const AdamWArgs& args);
};

}  // namespace weft
