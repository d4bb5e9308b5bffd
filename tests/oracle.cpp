#include "tests/oracle.hpp"

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

std::vector<int64_t> indices(const Tensor& t) {
  const std::vector<double> all = values(t);
  return {all.begin(), all.end()};
}

}  // namespace

std::vector<Range> ranges(const std::vector<int64_t>& bounds) {
  std::vector<Range> pieces;
  for (size_t i = 1; i < bounds.size(); ++i) pieces.push_back({bounds[i - 1], bounds[i]});
  return pieces;
}

AttentionProblem attention_problem(DType dtype, const AttentionShape& s, int64_t tokens,
                                   KeyIntervals keys) {
  const int64_t queries = keys.begin.view().dim(1);
  return {normals(dtype, {s.batch, queries, s.heads, s.width}, "q"),
          normals(dtype, {s.batch, tokens, s.kv_heads, s.width}, "k"),
          normals(dtype, {s.batch, tokens, s.kv_heads, s.width}, "v"),
          normals(dtype, {s.batch, queries, s.heads, s.width}, "dout"),
          std::move(keys),
          1 / std::sqrt(static_cast<double>(s.width)),
          s};
}

AttentionResult oracle_attention(const AttentionProblem& p) {
  return oracle_attention(p.q, p.k, p.v, p.keys.begin, p.keys.end, p.scale, p.dout);
}

AttentionResult oracle_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& key_begin, const Tensor& key_end, double scale,
                                 const Tensor& dout) {
  return naive::attention({.batch = q.dim(0),
                           .queries = q.dim(1),
                           .keys = k.dim(1),
                           .heads = q.dim(2),
                           .kv_heads = k.dim(2),
                           .width = q.dim(3),
                           .scale = scale,
                           .q = values(q),
                           .k = values(k),
                           .v = values(v),
                           .dout = dout ? values(dout) : std::vector<double>(q.numel()),
                           .key_begin = indices(key_begin),
                           .key_end = indices(key_end)});
}

QueryPiece query_piece(const AttentionProblem& p, Range r) {
  const DType dtype = p.q.view().dtype;
  const std::vector<int64_t> rows = {p.shape.batch, p.shape.heads, r.size()};
  const auto cut = [&](const Owned& t) { return copy_of(t.view().slice(1, r.begin, r.end)); };
  Owned q = cut(p.q);
  const std::vector<int64_t> shape(q.view().shape.begin(), q.view().shape.begin() + 4);
  return {std::move(q),       cut(p.dout),         cut(p.keys.begin),
          cut(p.keys.end),    zeros(dtype, shape), filled(dtype, rows, -kInfinity),
          Owned(dtype, rows), zeros(dtype, shape)};
}

KeyPiece key_piece(const AttentionProblem& p, Range r) {
  const std::vector<int64_t> shape = {p.shape.batch, r.size(), p.shape.kv_heads, p.shape.width};
  const auto cut = [&](const Owned& t) { return copy_of(t.view().slice(1, r.begin, r.end)); };
  const DType dtype = p.q.view().dtype;
  return {cut(p.k), cut(p.v), zeros(dtype, shape), zeros(dtype, shape), r.begin};
}

namespace {

AttentionBlock block_of(const QueryPiece& q, const KeyPiece& k, double scale) {
  return {q.q, k.k, k.v, q.begin, q.end, k.first, scale, 0};
}

Owned scratch_of(const AttentionProblem& p) {
  return Owned(DType::u8, {attention_scratch_bytes(p.q.view().dtype, p.shape.width)});
}

}  // namespace

void forward(const AttentionProblem& p, const QueryPiece& q, const KeyPiece& k) {
  attention_forward({q.out, q.lse, scratch_of(p), block_of(q, k, p.scale)}, cpu_stream());
}

void backward(const AttentionProblem& p, const QueryPiece& q, const KeyPiece& k) {
  attention_backward(
      {q.dq, k.dk, k.dv, scratch_of(p), q.dout, q.lse, q.delta, block_of(q, k, p.scale)},
      cpu_stream());
}

AttentionResult attend(const AttentionProblem& p, const std::vector<Range>& queries,
                       const std::vector<Range>& blocks) {
  const Owned out = copy_of(p.q), dq = copy_of(p.q), dk = copy_of(p.k), dv = copy_of(p.v);
  const Owned lse(p.q.view().dtype, {p.shape.batch, p.shape.heads, p.queries()});
  std::vector<KeyPiece> keys;
  for (const Range& block : blocks) keys.push_back(key_piece(p, block));
  for (const Range& range : queries) {
    const QueryPiece q = query_piece(p, range);
    for (auto k = keys.begin(); k != keys.end(); ++k) forward(p, q, *k);
    attention_delta({q.delta, q.out, q.dout}, cpu_stream());
    for (auto k = keys.rbegin(); k != keys.rend(); ++k) backward(p, q, *k);
    assign(out.view().slice(1, range.begin, range.end), values(q.out));
    assign(dq.view().slice(1, range.begin, range.end), values(q.dq));
    assign(lse.view().slice(2, range.begin, range.end), values(q.lse));
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    assign(dk.view().slice(1, blocks[b].begin, blocks[b].end), values(keys[b].dk));
    assign(dv.view().slice(1, blocks[b].begin, blocks[b].end), values(keys[b].dv));
  }
  return {values(out), values(lse), values(dq), values(dk), values(dv)};
}

std::vector<double> oracle_matmul(const MatmulArgs& g, std::vector<double> c) {
  const auto a = values(g.a), b = values(g.b);
  const int64_t m = g.c.dim(0), n = g.c.dim(1), k = g.a.dim(g.transpose_a ? 0 : 1);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += a[g.transpose_a ? l * m + i : i * k + l] * b[g.transpose_b ? j * k + l : l * n + j];
      }
      c[i * n + j] += g.alpha * sum;
    }
  }
  return c;
}

OracleNorm oracle_rmsnorm(const std::vector<double>& x, const std::vector<double>& weight,
                          const std::vector<double>& dy, double eps) {
  const size_t columns = weight.size(), rows = x.size() / columns;
  OracleNorm r{x, std::vector<double>(rows), dy, std::vector<double>(columns)};
  for (size_t i = 0; i < rows; ++i) {
    double squares = 0, inner = 0;
    for (size_t j = i * columns; j < (i + 1) * columns; ++j) {
      squares += x[j] * x[j];
      inner += dy[j] * weight[j % columns] * x[j];
    }
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(columns) + eps);
    r.rstd[i] = rstd;
    const double pull = rstd * rstd * inner / static_cast<double>(columns);
    for (size_t j = i * columns; j < (i + 1) * columns; ++j) {
      r.y[j] = x[j] * rstd * weight[j % columns];
      r.dx[j] = rstd * (dy[j] * weight[j % columns] - x[j] * pull);
      r.dweight[j % columns] += dy[j] * x[j] * rstd;
    }
  }
  return r;
}

OracleLoss oracle_cross_entropy(const std::vector<double>& logits,
                                const std::vector<double>& labels, double scale) {
  OracleLoss r{0, std::vector<double>(logits.size())};
  const size_t vocab = labels.empty() ? 0 : logits.size() / labels.size();
  for (size_t row = 0; row < labels.size(); ++row) {
    if (labels[row] < 0) continue;
    const double* x = &logits[row * vocab];
    double total = 0;
    const double top = *std::max_element(x, x + vocab);
    for (size_t j = 0; j < vocab; ++j) total += std::exp(x[j] - top);
    const auto label = static_cast<size_t>(labels[row]);
    r.sum += std::log(total) + (top - x[label]);
    for (size_t j = 0; j < vocab; ++j) {
      r.gradient[row * vocab + j] =
          scale * (std::exp(x[j] - top) / total - (j == label ? 1.0 : 0.0));
    }
  }
  return r;
}

void OracleAdamW::update(const std::vector<double>& grad, double squared_norm, const AdamWArgs& a) {
  const double norm = std::sqrt(squared_norm);
  const double clip = a.grad_clip > 0 && norm > a.grad_clip ? a.grad_clip / norm : 1.0;
  for (size_t i = 0; i < param.size(); ++i) {
    const double g = grad[i] * clip;
    m[i] = a.beta1 * m[i] + (1 - a.beta1) * g;
    v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
    const double m_hat = m[i] / (1 - std::pow(a.beta1, a.step));
    const double v_hat = v[i] / (1 - std::pow(a.beta2, a.step));
    param[i] -= a.lr * (m_hat / (std::sqrt(v_hat) + a.eps) + a.weight_decay * param[i]);
  }
}

}  // namespace weft
