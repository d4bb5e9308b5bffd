#include "src/kernels/naive/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace weft::naive {
namespace {

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(double* y, double a, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

/// One query: P = softmax(scale q k^T) over what it sees, out = P v;
/// dP = dout v^T, dS = P (dP - sum(P dP)), dv += P dout, dq = scale dS k, dk += scale dS q.
class Query {
 public:
  Query(const AttentionInputs& in, int64_t b, int64_t h, int64_t i)
      : in_(in),
        row_(((b * in.queries + i) * in.heads + h) * in.width),
        first_(((b * in.keys) * in.kv_heads + h / (in.heads / in.kv_heads)) * in.width),
        begin_(std::max<int64_t>(in.key_begin[b * in.queries + i], 0)),
        end_(std::min(in.key_end[b * in.queries + i], in.keys)),
        lse_row_((b * in.heads + h) * in.queries + i) {}

  void run(AttentionResult& r) {
    r.lse[lse_row_] = -std::numeric_limits<double>::infinity();
    if (begin_ >= end_) return;
    forward(r);
    backward(r);
  }

 private:
  int64_t key(int64_t j) const { return first_ + j * in_.kv_heads * in_.width; }

  void forward(AttentionResult& r) {
    const double* q = in_.q.data() + row_;
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = begin_; j < end_; ++j) {
      probs_.push_back(in_.scale * dot(q, in_.k.data() + key(j), in_.width));
      most = std::max(most, probs_.back());
    }
    for (double& p : probs_) sum += p = std::exp(p - most);
    for (double& p : probs_) p /= sum;
    for (int64_t j = begin_; j < end_; ++j) {
      add_scaled(r.out.data() + row_, probs_[j - begin_], in_.v.data() + key(j), in_.width);
    }
    r.lse[lse_row_] = most + std::log(sum);
  }

  void backward(AttentionResult& r) {
    const double* q = in_.q.data() + row_;
    const double* dout = in_.dout.data() + row_;
    std::vector<double> dprobs;
    double mean = 0;
    for (int64_t j = begin_; j < end_; ++j) {
      dprobs.push_back(dot(dout, in_.v.data() + key(j), in_.width));
      mean += probs_[j - begin_] * dprobs.back();
    }
    for (int64_t j = begin_; j < end_; ++j) {
      const double p = probs_[j - begin_];
      const double dscore = in_.scale * p * (dprobs[j - begin_] - mean);
      add_scaled(r.dv.data() + key(j), p, dout, in_.width);
      add_scaled(r.dq.data() + row_, dscore, in_.k.data() + key(j), in_.width);
      add_scaled(r.dk.data() + key(j), dscore, q, in_.width);
    }
  }

  const AttentionInputs& in_;
  int64_t row_, first_, begin_, end_, lse_row_;
  std::vector<double> probs_;
};

}  // namespace

AttentionResult attention(const AttentionInputs& in) {
  AttentionResult r;
  for (auto* rows : {&r.out, &r.dq}) rows->resize(in.q.size());
  for (auto* rows : {&r.dk, &r.dv}) rows->resize(in.k.size());
  r.lse.resize(in.batch * in.heads * in.queries);
  for (int64_t b = 0; b < in.batch; ++b) {
    for (int64_t h = 0; h < in.heads; ++h) {
      for (int64_t i = 0; i < in.queries; ++i) Query(in, b, h, i).run(r);
    }
  }
  return r;
}

}  // namespace weft::naive
