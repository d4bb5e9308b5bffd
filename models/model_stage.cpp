#include "models/model_stage.hpp"

#include <utility>

namespace weft {

ModelStage::ModelStage(Model& model, const Layout& layout, std::vector<TokenShard> shards,
                       StageSlots& frames, StageSlots& products, Staging& staging, StepContext& ctx)
    : model_(model),
      layout_(layout),
      shards_(std::move(shards)),
      frames_(frames),
      products_(products),
      staging_(staging),
      ctx_(ctx),
      passages_(layout.schedule.shape.chunks * shards_.size()) {
  WEFT_CHECK(std::ssize(shards_) == layout.schedule.shape.micro_batches, shards_.size(),
             " micro-batches in a schedule of ", layout.schedule.shape.micro_batches);
}

ModelStage::Passage& ModelStage::at(int chunk, int micro_batch) {
  return passages_[chunk * shards_.size() + micro_batch];
}

int64_t ModelStage::rows(int micro_batch) const {
  const int64_t rows =
      std::ssize(shards_[micro_batch].segments) * layout_.tokens.size(layout_.shard);
  return Cuts::even(rows, ctx_.mesh.size(Axis::tensor)).size(ctx_.mesh.at(Axis::tensor));
}

Tensor ModelStage::begin(int chunk, int micro_batch) {
  const TokenShard& shard = shards_[micro_batch];
  Frame& frame = at(chunk, micro_batch)
                     .frame.emplace(frames_.of(chunk, micro_batch), std::ssize(shard.segments),
                                    layout_.tokens, layout_.shard, micro_batch, layout_.recompute);
  return model_.begin(chunk, shard, frame, staging_, ctx_);
}

Tensor ModelStage::forward(int chunk, int micro_batch) {
  return model_.forward(chunk, *at(chunk, micro_batch).frame, ctx_);
}

void ModelStage::backward(ActionKind kind, int chunk, int micro_batch, const Tensor& d) {
  auto& [frame, products] = at(chunk, micro_batch);
  if (kind == ActionKind::backward_input) {
    ctx_.waiting = &products.emplace(products_.of(chunk, micro_batch));
  }
  model_.backward(chunk, d, *frame, ctx_);
  ctx_.waiting = nullptr;
  frame.reset();
}

void ModelStage::backward_weight(int chunk, int micro_batch) {
  auto& products = at(chunk, micro_batch).products;
  products->run(ctx_.compute);
  products.reset();
  if (micro_batch == ctx_.last_micro_batch) model_.complete(chunk, ctx_);
}

}  // namespace weft
