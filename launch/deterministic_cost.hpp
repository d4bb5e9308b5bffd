// What train.deterministic costs: attention's backward pass by own kernels, where cuDNN computes it
// otherwise.
#pragma once

#include <algorithm>
#include <string>

#include "launch/config.hpp"
#include "launch/kernel_workbench.hpp"
#include "parallel/comm/backend.hpp"

namespace weft {

/// Whether cuDNN would compute attention's backward pass for the config, train.device resolved.
/// Everything else has one order of sums with or without train.deterministic.
bool has_other_backward(const Config& config);

/// A causal block of attention's backward pass, seconds a call either way.
struct BackwardTimes {
  std::string shape;  // "1 x 8192 x 16 x 128": B, T, H, D
  double flops = 0;
  double own_s = 0, cudnn_s = 0;

  /// What own kernels take longer for so many FLOPs of such blocks, seconds; 0 where they do not.
  double extra_s(double backward_flops) const {
    return backward_flops / flops * std::max(0.0, own_s - cudnn_s);
  }
};

/// The block that is measured for a rank of the config: its heads and its micro-batch, and as many
/// of its tokens as fill a GPU, since longer blocks run at the rate of these.
KernelSizes sizes_of_backward(const Config& config);

/// One line for the log: `backward_flops` of the rank's step are of such blocks, and all FLOPs of a
/// step take `products_s` at the rate of matrix products.
std::string text(const BackwardTimes& times, double backward_flops, double products_s);

/// Measures on the world's GPU, in memory that is given back. Throws Error(memory) where it is not
/// to be had. Not collective.
BackwardTimes measure_backward(const Config& config, const World& world);

}  // namespace weft
