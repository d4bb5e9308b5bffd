// State mixers as their equations say them, in f64: token by token, every state kept, gradients by
// the recurrence that runs the other way. What every kernel is held against.
#pragma once

#include <cstdint>
#include <vector>

#include "src/kernels/state_mixer.hpp"

namespace weft::naive {

struct StateMixerInputs {
  StateKind kind = StateKind::none;
  int64_t batch = 0, tokens = 0, heads = 0, key_dim = 0, value_dim = 0;  // B, T, H, K, V
  double scale = 1;
  std::vector<double> q, k;        // [B, T, H, K]
  std::vector<double> v;           // [B, T, H, V]
  std::vector<double> log_decay;   // none: empty; fixed [H]; scalar, delta [B, T, H];
                                   // vector [B, T, H, K]
  std::vector<double> beta;        // delta: [B, T, H]
  std::vector<int64_t> positions;  // [B, T]: the state is reset to 0 before a token at 0
  std::vector<double> h0;          // [B, H, K, V]
  std::vector<double> dout;        // [B, T, H, V]
  std::vector<double> dhT;         // [B, H, K, V]
};

struct StateMixerResult {
  std::vector<double> out, hT;     // [B, T, H, V], [B, H, K, V]
  std::vector<double> dq, dk, dv;  // as q, k, v
  std::vector<double> dlog_decay;  // as log_decay; empty for none and fixed
  std::vector<double> dbeta;       // as beta
  std::vector<double> dh0;         // [B, H, K, V]
};

StateMixerResult state_mixer(const StateMixerInputs& in);

}  // namespace weft::naive
