// AdamW, what Muon adds to it, and the global norm they clip by.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Before the squares of a step are added: squared_norm = 0 where it, of the step before, and
/// loss_sum are finite. Where one is not it is NaN, whatever is added to it, and so in every step
/// after: none of them changes anything.
struct BeginNormArgs {
  Tensor squared_norm;  // [1] f64, updated
  Tensor loss_sum;      // [1] f64: of this step's token losses
};
Cost cost(const BeginNormArgs& args);
void begin_norm(const BeginNormArgs& args, Stream& stream);

/// total += sum of x^2.
struct SquaredSumArgs {
  Tensor total;  // [1] f64, accumulates
  Tensor x;      // [n]
};
Cost cost(const SquaredSumArgs& args);
void squared_sum(const SquaredSumArgs& args, Stream& stream);

/// One AdamW update with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101):
///   g = grad * min(1, grad_clip / sqrt(squared_norm));  m, v as Adam's, bias-corrected by `step`
///   param -= lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * param)
/// Where squared_norm is not finite nothing changes, so that a bad step cannot spread; the host
/// learns of it when it reads the norm.
struct AdamWArgs {
  Tensor param, m, v;    // [n], updated
  Tensor grad;           // [n]
  Tensor squared_norm;   // [1] f64: of all gradients of the model
  double grad_clip = 0;  // 0: none
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;  // 1 at the first update
};
Cost cost(const AdamWArgs& args);
void adamw(const AdamWArgs& args, Stream& stream);

/// Nesterov momentum: g = grad * min(1, grad_clip / sqrt(squared_norm));
///   m = momentum * m + g;  update = g + momentum * m
/// Where squared_norm is not finite nothing changes.
struct NesterovArgs {
  Tensor update;         // [n]; may be grad
  Tensor m;              // [n], updated
  Tensor grad;           // [n]
  Tensor squared_norm;   // [1] f64: of all gradients of the model
  double grad_clip = 0;  // 0: none
  double momentum = 0.95;
};
Cost cost(const NesterovArgs& args);
void nesterov(const NesterovArgs& args, Stream& stream);

/// param -= lr * (scale * update + weight_decay * param). Where squared_norm is not finite nothing
/// changes.
struct DecayedStepArgs {
  Tensor param;         // [n], updated
  Tensor update;        // [n]
  Tensor squared_norm;  // [1] f64: of all gradients of the model
  double lr = 0;
  double scale = 1;
  double weight_decay = 0;
};
Cost cost(const DecayedStepArgs& args);
void decayed_step(const DecayedStepArgs& args, Stream& stream);

/// x /= sqrt(squared_sum) + eps.
struct NormalizeArgs {
  Tensor x;            // contiguous, updated
  Tensor squared_sum;  // [1] f64
  double eps = 1e-7;
};
Cost cost(const NormalizeArgs& args);
void normalize(const NormalizeArgs& args, Stream& stream);

/// y += alpha * x.
struct AddScaledArgs {
  Tensor y, x;  // one shape, contiguous
  double alpha = 1;
};
Cost cost(const AddScaledArgs& args);
void add_scaled(const AddScaledArgs& args, Stream& stream);

namespace cpu {
void begin_norm(const BeginNormArgs& args);
void squared_sum(const SquaredSumArgs& args);
void adamw(const AdamWArgs& args);
void nesterov(const NesterovArgs& args);
void decayed_step(const DecayedStepArgs& args);
void normalize(const NormalizeArgs& args);
void add_scaled(const AddScaledArgs& args);
}  // namespace cpu

namespace cuda {
void begin_norm(const BeginNormArgs& args, Stream& stream);
void squared_sum(const SquaredSumArgs& args, Stream& stream);
void adamw(const AdamWArgs& args, Stream& stream);
void nesterov(const NesterovArgs& args, Stream& stream);
void decayed_step(const DecayedStepArgs& args, Stream& stream);
void normalize(const NormalizeArgs& args, Stream& stream);
void add_scaled(const AddScaledArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
