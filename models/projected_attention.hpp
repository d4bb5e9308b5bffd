#pragma once

#include "models/head_projection.hpp"
#include "models/tensor_axis.hpp"
#include "parallel/sequence/projected.hpp"

namespace weft {

/// Softmax attention of every query over R = model.projected_keys learned mixtures of the N keys
/// and values of a sequence, after their rotation (Linformer, Wang et al., arXiv 2006.04768). Sees
/// both ways and knows no documents. Reads the frame's "cos", "sin", "key begin" and "key end";
/// pushes "q", "k", "v" (rotated), "projected", "out" and "lse". Where the last three are kept, a
/// recomputation neither projects nor attends.
class ProjectedAttention final : public Layer {
 public:
  /// `prefix`: "model.layers.<layer>.self_attn."
  ProjectedAttention(const std::string& prefix, int layer, const ModelConfig& config,
                     const TensorPlace& place);

  void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) override;
  void backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                StepContext& ctx) override;
  void visit(const std::function<void(Parameter&)>& f) override;

 private:
  ProjectedShard shard(const Tensor& q, const Tensor& k, const Tensor& v, const Frame& frame,
                       const StepContext& ctx) const;

  int layer_;
  AttentionHeads heads_;  // H and G
  int64_t head_dim_;      // D
  HeadProjection q_, k_, v_;
  Linear o_;
  Parameter k_projection_, v_projection_;  // [R, N]: E and F, shared by the heads
};

}  // namespace weft
