// The decoder: embedding, layers, loss head; and the frame of a micro-batch.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/decoder_layer.hpp"
#include "models/embedding.hpp"
#include "models/loss_head.hpp"

namespace weft {

/// The shard of a micro-batch as the loader gives it. On the meta device the spans of ids are
/// empty.
struct TokenShard {
  std::span<const SegmentMap> segments;     // B: the documents of each whole sequence
  std::span<const int32_t> tokens, labels;  // [B, T]; a label is the next token, or -1
};

class Model {
 public:
  /// `attention`: one strategy for all softmax layers, or one for each of them.
  /// `loss_slice`: tokens whose logits exist at once.
  Model(const ModelConfig& config, const std::vector<const AttentionStrategy*>& attention,
        int64_t loss_slice);
  Model(const Model&) = delete;  // stores point at its parameters
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  void visit(const std::function<void(Parameter&)>& f);
  std::vector<Parameter*> parameters();

  /// Pushes what all layers read: tokens, labels, positions, visible keys, rotary tables.
  void begin(const TokenShard& shard, Frame& frame, StepContext& ctx) const;
  /// Adds this shard's token losses to ctx.loss_sum.
  void forward(Frame& frame, StepContext& ctx);
  /// Adds the gradients of loss x ctx.loss_scale; leaves the frame empty.
  void backward(Frame& frame, StepContext& ctx);

 private:
  ModelConfig config_;
  bool all_intervals_ = false;       // some strategy computes for queries of other ranks
  std::vector<double> frequencies_;  // rotary, D/2
  Embedding embedding_;
  std::vector<std::unique_ptr<DecoderLayer>> layers_;
  std::unique_ptr<LossHead> head_;
};

}  // namespace weft
