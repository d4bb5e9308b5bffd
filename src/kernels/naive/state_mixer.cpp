#include "src/kernels/naive/state_mixer.hpp"

#include <cmath>

namespace weft::naive {
namespace {

/// One head of one sequence. Matrices are [K, V], row-major.
class Head {
 public:
  Head(const StateMixerInputs& in, int64_t b, int64_t h)
      : in_(in),
        b_(b),
        h_(h),
        K_(in.key_dim),
        V_(in.value_dim),
        delta_(in.kind == StateKind::delta) {}

  void run(StateMixerResult& r) {
    forward(r);
    backward(r);
  }

 private:
  using Matrix = std::vector<double>;

  int64_t token(int64_t t) const { return (b_ * in_.tokens + t) * in_.heads + h_; }
  int64_t state() const { return (b_ * in_.heads + h_) * K_ * V_; }
  double beta(int64_t t) const { return delta_ ? in_.beta[token(t)] : 1.0; }

  /// alpha of row i of the state; 0 where a document starts.
  double alpha(int64_t t, int64_t i) const {
    if (in_.positions[b_ * in_.tokens + t] == 0) return 0.0;
    switch (in_.kind) {
      case StateKind::none:
        return 1.0;
      case StateKind::fixed:
        return std::exp(in_.log_decay[h_]);
      case StateKind::scalar:
      case StateKind::delta:
        return std::exp(in_.log_decay[token(t)]);
      case StateKind::vector:
        return std::exp(in_.log_decay[token(t) * K_ + i]);
    }
    return 0.0;
  }

  /// diag(alpha_t) S_{t-1}: the state as the token finds it.
  Matrix decayed(int64_t t) const {
    Matrix s = states_[t];
    for (int64_t i = 0; i < K_; ++i) {
      for (int64_t j = 0; j < V_; ++j) s[i * V_ + j] *= alpha(t, i);
    }
    return s;
  }

  /// What the token writes under its key: v, for delta less what the key reads.
  std::vector<double> value(int64_t t, const Matrix& found) const {
    const double* k = in_.k.data() + token(t) * K_;
    std::vector<double> v(in_.v.begin() + token(t) * V_, in_.v.begin() + (token(t) + 1) * V_);
    for (int64_t i = 0; delta_ && i < K_; ++i) {
      for (int64_t j = 0; j < V_; ++j) v[j] -= found[i * V_ + j] * k[i];
    }
    return v;
  }

  void forward(StateMixerResult& r) {
    states_.push_back(Matrix(in_.h0.begin() + state(), in_.h0.begin() + state() + K_ * V_));
    for (int64_t t = 0; t < in_.tokens; ++t) {
      Matrix s = decayed(t);
      const std::vector<double> written = value(t, s);
      for (int64_t i = 0; i < K_; ++i) {
        for (int64_t j = 0; j < V_; ++j) {
          s[i * V_ + j] += beta(t) * in_.k[token(t) * K_ + i] * written[j];
          r.out[token(t) * V_ + j] += s[i * V_ + j] * in_.scale * in_.q[token(t) * K_ + i];
        }
      }
      states_.push_back(s);
    }
    std::copy(states_.back().begin(), states_.back().end(), r.hT.begin() + state());
  }

  /// D is the gradient of S_t; on return that of S_{t-1}.
  void backward_of_token(int64_t t, Matrix& D, StateMixerResult& r) const {
    const double* q = in_.q.data() + token(t) * K_;
    const double* k = in_.k.data() + token(t) * K_;
    const double* dout = in_.dout.data() + token(t) * V_;
    const Matrix found = decayed(t);
    const std::vector<double> written = value(t, found);
    std::vector<double> dwritten(V_, 0.0);  // D^T k
    for (int64_t i = 0; i < K_; ++i) {
      for (int64_t j = 0; j < V_; ++j) {
        r.dq[token(t) * K_ + i] += in_.scale * states_[t + 1][i * V_ + j] * dout[j];
        D[i * V_ + j] += in_.scale * q[i] * dout[j];
        dwritten[j] += D[i * V_ + j] * k[i];
      }
    }
    for (int64_t j = 0; j < V_; ++j) {
      r.dv[token(t) * V_ + j] = beta(t) * dwritten[j];
      if (delta_) r.dbeta[token(t)] += dwritten[j] * written[j];
    }
    for (int64_t i = 0; i < K_; ++i) {
      for (int64_t j = 0; j < V_; ++j) {
        double& d = D[i * V_ + j];
        double& dk = r.dk[token(t) * K_ + i];
        dk += beta(t) * d * written[j];
        if (delta_) {  // S_t = found + beta k (v - found^T k)^T
          dk -= beta(t) * found[i * V_ + j] * dwritten[j];
          d -= beta(t) * k[i] * dwritten[j];
        }
        if (in_.kind == StateKind::vector) {
          r.dlog_decay[token(t) * K_ + i] += d * found[i * V_ + j];
        } else if (!r.dlog_decay.empty()) {
          r.dlog_decay[token(t)] += d * found[i * V_ + j];
        }
        d *= alpha(t, i);
      }
    }
  }

  void backward(StateMixerResult& r) const {
    Matrix D(in_.dhT.begin() + state(), in_.dhT.begin() + state() + K_ * V_);
    for (int64_t t = in_.tokens - 1; t >= 0; --t) backward_of_token(t, D, r);
    std::copy(D.begin(), D.end(), r.dh0.begin() + state());
  }

  const StateMixerInputs& in_;
  int64_t b_, h_, K_, V_;
  bool delta_;
  std::vector<Matrix> states_;  // S_{t-1} at t
};

}  // namespace

StateMixerResult state_mixer(const StateMixerInputs& in) {
  StateMixerResult r;
  for (auto* rows : {&r.out, &r.dv}) rows->resize(in.v.size());
  for (auto* rows : {&r.dq, &r.dk}) rows->resize(in.k.size());
  for (auto* state : {&r.hT, &r.dh0}) state->resize(in.h0.size());
  if (in.kind != StateKind::fixed) r.dlog_decay.resize(in.log_decay.size());
  r.dbeta.resize(in.beta.size());
  for (int64_t b = 0; b < in.batch; ++b) {
    for (int64_t h = 0; h < in.heads; ++h) Head(in, b, h).run(r);
  }
  return r;
}

}  // namespace weft::naive
