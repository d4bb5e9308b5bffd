// The decoder: embedding, layers, loss head, or the pieces of it that a pipeline stage holds; and
// the frame of a micro-batch.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
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

/// Consecutive layers [begin, end) of the model, and what stands at its ends.
struct ModelPiece {
  int begin = 0, end = 0;
  bool embedding = true;  // in front of the layers
  bool head = true;       // behind them
};

/// A list of pieces: the chunks of a pipeline stage, in the order of a forward.
class Model {
 public:
  /// `loss_slice`: tokens whose logits exist at once. `place`: which heads, columns and tokens of
  /// the vocabulary are this rank's. Without `pieces` all of the model is one.
  Model(const ModelConfig& config, const SequenceStrategies& strategies, int64_t loss_slice,
        const TensorPlace& place = {}, const std::vector<ModelPiece>& pieces = {});
  Model(const Model&) = delete;  // stores point at its parameters
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  /// Those of this rank, in the order of a forward. Their units: 0 the embedding, then the layers,
  /// the head's norm, last the head's matrix.
  std::vector<Parameter*> parameters();

  /// Pushes what the layers of a chunk read: tokens, labels, positions, visible keys, rotary
  /// tables. What the host knows of it goes through `staging`, which has begun the step. Returns
  /// where the stream that enters the chunk shall be, [r, C], this rank's rows; absent where it
  /// comes from the embedding.
  Tensor begin(int chunk, const TokenShard& shard, Frame& frame, Staging& staging,
               StepContext& ctx) const;
  /// Returns the stream that leaves the chunk, [r, C], in the frame; absent behind the head, which
  /// adds this shard's token losses to ctx.loss_sum.
  Tensor forward(int chunk, Frame& frame, StepContext& ctx);
  /// d: [r, C], in place: the gradient of what leaves the chunk becomes that of what enters it.
  /// Behind the head it is of loss x ctx.loss_scale, whatever was there. Adds the gradients of
  /// parameters; leaves the frame empty.
  void backward(int chunk, const Tensor& d, Frame& frame, StepContext& ctx);
  /// Says that products of weights that waited are done, those of the last micro-batch.
  void complete(int chunk, StepContext& ctx) const;

 private:
  /// Of the head; its matrix is the unit after it.
  int norm_unit() const { return static_cast<int>(config_.num_hidden_layers) + 1; }
  /// What begin() pushes for the layers that a chunk has.
  struct Inputs {
    bool tokens = false;        // the embedding
    bool labels = false;        // the head
    bool keys = false;          // softmax layers: "key begin", "key end", "cos", "sin"
    bool windows = false;       // W
    bool all_keys = false;      // some strategy computes for queries of other ranks
    bool state_rotary = false;  // some state mixer rotates: "state cos", "state sin"
  };
  struct Chunk {
    ModelPiece piece;
    Inputs inputs;
    std::vector<std::unique_ptr<DecoderLayer>> layers;
  };

  Chunk make_chunk(const ModelPiece& piece, const SequenceStrategies& strategies,
                   const TensorPlace& place) const;
  using InputSlot = std::function<void(const char*, DType, std::initializer_list<int64_t>)>;
  /// Calls f with the name, type and shape of every slot that begin() pushes, in order.
  void for_each_input(const Inputs& inputs, const Frame& frame, DType dtype,
                      const InputSlot& f) const;
  void write_inputs(const Inputs& inputs, const TokenShard& shard, const Frame& frame,
                    Staging& staging, StepContext& ctx) const;

  ModelConfig config_;
  std::vector<double> frequencies_;        // rotary, D/2
  std::vector<double> state_frequencies_;  // of state mixers, K/2
  std::optional<Embedding> embedding_;     // where there is the embedding, or a head tied to it
  std::vector<Chunk> chunks_;
  std::unique_ptr<LossHead> head_;  // where there is the head
};

}  // namespace weft
