// AdamW sharded over the replicas (ZeRO stage 1; Rajbhandari et al., arXiv 1910.02054): every rank
// of data x sequence updates one piece of the flat parameters and holds moments for that piece
// only.
#pragma once

#include "parallel/layer.hpp"

namespace weft {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices only
  double grad_clip = 1.0;     // of the global norm; 0: none
};

class ShardedOptimizer {
 public:
  /// Moments, and in bf16 the f32 masters, come from `arena`. The store must outlive the optimizer.
  ShardedOptimizer(const AdamWConfig& config, const ParameterStore& store, int rank, int replicas,
                   Arena& arena);

  /// One update, `step` counting from 1: gradients are summed over the replicas (reduce-scatter),
  /// their global norm taken (all-reduce), the own piece updated, the values gathered. Gradients
  /// are the own piece's sums afterwards; other pieces are undefined. squared_norm: [1] f64,
  /// overwritten with the same bits on every rank.
  void step(double learning_rate, int64_t step, const Tensor& squared_norm, StepContext& ctx);

  const Cuts& cuts() const { return cuts_; }

 private:
  AdamWConfig config_;
  const ParameterStore& store_;
  Cuts cuts_;  // of the flat buffers over the replicas
  int64_t begin_, end_;
  Tensor m_, v_;  // [end - begin], of the gradients' type
  /// [end - begin]: where the values are rounded to bf16, the own piece of them that is not. Taken
  /// from the values at the first step.
  Tensor masters_;
  bool has_masters_ = false;
};

}  // namespace weft
