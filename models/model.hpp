// The decoder: embedding, layers, loss head; and the frame of a micro-batch.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/decoder_layer.hpp"
#include "models/embedding.hpp"
#include "models/loss_head.hpp"
#include "src/tensor/staging.hpp"

namespace weft {

/// The shard of a micro-batch as the loader gives it. On the meta device the spans of ids are
/// empty.
struct TokenShard {
  std::span<const SegmentMap> segments;     // B: the documents of each whole sequence
  std::span<const int32_t> tokens, labels;  // [B, T]; a label is the next token, or -1
};

/// How the layers cross the sequence axis.
struct SequenceStrategies {
  /// One for all softmax layers, or one for each of them.
  std::vector<const AttentionStrategy*> attention{&attention_strategy("ring")};
  /// One for all layers with a state, L and G, or one for each of them.
  std::vector<const StateScanKind*> scans{&state_scan("zeco")};
  StateScanOptions scan_options;
};

class Model {
 public:
  /// `loss_slice`: tokens whose logits exist at once. `place`: which heads, columns and tokens of
  /// the vocabulary are this rank's.
  Model(const ModelConfig& config, const SequenceStrategies& strategies, int64_t loss_slice,
        const TensorPlace& place = {});
  Model(const Model&) = delete;  // stores point at its parameters
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  /// Those of this rank, in the order of a forward. Their units: 0 the embedding, then the layers,
  /// last the head.
  std::vector<Parameter*> parameters();

  /// Pushes what all layers read: tokens, labels, positions, visible keys, rotary tables. What the
  /// host knows of it goes through `staging`, which has begun the step.
  void begin(const TokenShard& shard, Frame& frame, Staging& staging, StepContext& ctx) const;
  /// Adds this shard's token losses to ctx.loss_sum.
  void forward(Frame& frame, StepContext& ctx);
  /// Adds the gradients of loss x ctx.loss_scale; leaves the frame empty.
  void backward(Frame& frame, StepContext& ctx);

 private:
  /// What begin() pushes for the layers that the model has.
  struct Inputs {
    bool keys = false;          // softmax layers: "key begin", "key end", "cos", "sin"
    bool windows = false;       // W
    bool all_keys = false;      // some strategy computes for queries of other ranks
    bool state_rotary = false;  // some state mixer rotates: "state cos", "state sin"
  };
  Inputs inputs_of(const SequenceStrategies& strategies) const;
  using InputSlot = std::function<void(const char*, DType, std::initializer_list<int64_t>)>;
  /// Calls f with the name, type and shape of every slot that begin() pushes, in order.
  void for_each_input(const Frame& frame, DType dtype, const InputSlot& f) const;
  void write_inputs(const TokenShard& shard, const Frame& frame, Staging& staging,
                    StepContext& ctx) const;

  ModelConfig config_;
  Inputs inputs_;
  std::vector<double> frequencies_;        // rotary, D/2
  std::vector<double> state_frequencies_;  // of state mixers, K/2
  Embedding embedding_;
  std::vector<std::unique_ptr<DecoderLayer>> layers_;
  std::unique_ptr<LossHead> head_;
};

}  // namespace weft
