#include "tests/oracle.hpp"

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

/// One query head of one sample: rows of D numbers.
struct Head {
  std::vector<std::vector<double>> q, k, v, dout;
  std::vector<int64_t> begin, end;
};

struct HeadResult {
  std::vector<std::vector<double>> out, dq, dk, dv;
  std::vector<double> lse;
};

using Rows = std::vector<std::vector<double>>;

/// Rows [b, :, head, :] of a [B, T, heads, D] tensor given by its values.
Rows head_rows(const std::vector<double>& x, const Tensor& shape, int64_t b, int64_t head) {
  const int64_t tokens = shape.dim(1), heads = shape.dim(2), width = shape.dim(3);
  Rows rows(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = x.begin() + ((b * tokens + t) * heads + head) * width;
    rows[t].assign(first, first + width);
  }
  return rows;
}

/// Adds rows to [b, :, head, :]: what makes the sum over the query heads that share a kv head.
void add_head_rows(std::vector<double>& x, const Tensor& shape, int64_t b, int64_t head,
                   const Rows& rows) {
  const int64_t tokens = shape.dim(1), heads = shape.dim(2), width = shape.dim(3);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t d = 0; d < width; ++d) {
      x[((b * tokens + t) * heads + head) * width + d] += rows[t][d];
    }
  }
}

Rows zero_rows(size_t rows, int64_t width) {
  return Rows(rows, std::vector<double>(width));
}

void axpy(std::vector<double>& y, double a, const std::vector<double>& x) {
  for (size_t d = 0; d < y.size(); ++d) y[d] += a * x[d];
}

/// P = softmax(scale q k^T + mask), out = P v; dP = dout v^T, dS = P (dP - rowsum(P dP)).
HeadResult attend(const Head& in, double scale, int64_t width) {
  HeadResult r{zero_rows(in.q.size(), width), zero_rows(in.q.size(), width),
               zero_rows(in.k.size(), width), zero_rows(in.k.size(), width),
               std::vector<double>(in.q.size(), -kInfinity)};
  for (size_t i = 0; i < in.q.size(); ++i) {
    const int64_t begin = std::max<int64_t>(in.begin[i], 0);
    const int64_t end = std::min<int64_t>(in.end[i], std::ssize(in.k));
    if (begin >= end) continue;
    std::vector<double> p(end - begin), dp(end - begin);
    for (int64_t j = begin; j < end; ++j) p[j - begin] = scale * dot(in.q[i], in.k[j]);
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (const double score : p) sum += std::exp(score - top);
    r.lse[i] = top + std::log(sum);
    double row = 0;
    for (int64_t j = begin; j < end; ++j) {
      double& weight = p[j - begin];
      weight = std::exp(weight - top) / sum;
      axpy(r.out[i], weight, in.v[j]);
      axpy(r.dv[j], weight, in.dout[i]);
      dp[j - begin] = dot(in.dout[i], in.v[j]);
      row += weight * dp[j - begin];
    }
    for (int64_t j = begin; j < end; ++j) {
      const double ds = p[j - begin] * (dp[j - begin] - row);
      axpy(r.dq[i], scale * ds, in.k[j]);
      axpy(r.dk[j], scale * ds, in.q[i]);
    }
  }
  return r;
}

/// Row b of a [B, Tq] tensor of indices.
std::vector<int64_t> index_row(const Tensor& t, int64_t b) {
  const std::vector<double> row = values(t.slice(0, b, b + 1));
  return {row.begin(), row.end()};
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
  const int64_t batch = q.dim(0), tokens = q.dim(1), heads = q.dim(2), width = q.dim(3);
  const int64_t group = heads / k.dim(2);
  const auto vq = values(q), vk = values(k), vv = values(v);
  const auto vd = dout ? values(dout) : std::vector<double>(q.numel());
  AttentionResult r;
  for (auto* x : {&r.out, &r.dq}) x->resize(q.numel());
  for (auto* x : {&r.dk, &r.dv}) x->resize(k.numel());
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const Head head{head_rows(vq, q, b, h),         head_rows(vk, k, b, h / group),
                      head_rows(vv, v, b, h / group), head_rows(vd, q, b, h),
                      index_row(key_begin, b),        index_row(key_end, b)};
      const HeadResult one = attend(head, scale, width);
      add_head_rows(r.out, q, b, h, one.out);
      add_head_rows(r.dq, q, b, h, one.dq);
      add_head_rows(r.dk, k, b, h / group, one.dk);
      add_head_rows(r.dv, k, b, h / group, one.dv);
      r.lse.insert(r.lse.end(), one.lse.begin(), one.lse.end());
    }
  }
  WEFT_CHECK(std::ssize(r.lse) == batch * heads * tokens);
  return r;
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
