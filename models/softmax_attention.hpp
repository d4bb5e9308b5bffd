#pragma once

#include <memory>

#include "models/head_projection.hpp"
#include "models/tensor_axis.hpp"
#include "parallel/sequence/attention_parallel.hpp"

namespace weft {

/// Grouped-query softmax attention with rotary positions: projections and rotation are local to a
/// token, what crosses the sequence axis is the strategy's. Reads the frame's "cos", "sin",
/// "key begin" and "key end"; pushes "q", "k", "v" (rotated), "out" and "lse". Where those last two
/// are kept, a recomputation does without the strategy.
class SoftmaxAttention final : public Layer {
 public:
  /// `prefix`: "model.layers.<layer>.self_attn.". With a `window` a query sees no key further back,
  /// and its part of the frame's "window begin" stands in for "key begin"; 0: all keys of its
  /// document.
  SoftmaxAttention(const std::string& prefix, int layer, const ModelConfig& config,
                   const TensorPlace& place, std::unique_ptr<AttentionParallel> strategy,
                   int64_t window = 0);

  void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) override;
  void backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                StepContext& ctx) override;
  void visit(const std::function<void(Parameter&)>& f) override;

 private:
  AttentionShard shard(const Tensor& q, const Tensor& k, const Tensor& v, const Frame& frame,
                       const StepContext& ctx) const;
  /// [B, T]: the first key that each query sees.
  Tensor key_begin(const Frame& frame) const;

  int layer_;
  bool causal_;
  int64_t window_;
  int64_t window_index_ = 0;  // of it among the model's windows
  AttentionHeads heads_;      // H and G
  int64_t head_dim_;          // D
  HeadProjection q_, k_, v_;
  Linear o_;
  std::unique_ptr<AttentionParallel> strategy_;
};

}  // namespace weft
