// A pipeline stage of the model at work: the frames and waiting products of a step's micro-batches.
#pragma once

#include <optional>

#include "models/model.hpp"
#include "parallel/pipeline/executor.hpp"
#include "parallel/pipeline/slots.hpp"

namespace weft {

/// Memories in which the frames of micro-batches, or their waiting products, take turns. One stage
/// in its schedule needs `plan.count` of them.
struct StageSlots {
  SlotPlan plan;
  std::vector<Arena> slabs;

  Arena& of(int chunk, int micro_batch) { return slabs[plan.taken[chunk][micro_batch]]; }
};

/// What the executor drives in one step.
class ModelStage final : public StageWork {
 public:
  struct Layout {
    const PipelineSchedule& schedule;
    const std::vector<ModelPiece>& pieces;  // of all stages
    const Cuts& tokens;                     // of a sequence over its ranks
    int shard;                              // this rank's
    Recompute recompute;
  };

  /// `shards`: this rank's, by micro-batch. All of it must outlive the stage.
  ModelStage(Model& model, const Layout& layout, std::vector<TokenShard> shards, StageSlots& frames,
             StageSlots& products, Staging& staging, StepContext& ctx);

  int64_t rows(int micro_batch) const override;
  int64_t width() const override { return model_.config().hidden_size; }
  int layer(int piece) const override { return layout_.pieces[piece].begin; }
  Tensor begin(int chunk, int micro_batch) override;
  Tensor forward(int chunk, int micro_batch) override;
  void backward(ActionKind kind, int chunk, int micro_batch, const Tensor& d) override;
  void backward_weight(int chunk, int micro_batch) override;

 private:
  /// A micro-batch in one chunk.
  struct Passage {
    std::optional<Frame> frame;              // from begin() to backward()
    std::optional<WeightProducts> products;  // from backward_input to backward_weight
  };
  Passage& at(int chunk, int micro_batch);

  Model& model_;
  Layout layout_;
  std::vector<TokenShard> shards_;
  StageSlots& frames_;
  StageSlots& products_;
  Staging& staging_;
  StepContext& ctx_;
  std::vector<Passage> passages_;  // [chunk, micro-batch]
};

}  // namespace weft
