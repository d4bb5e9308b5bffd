#include "models/embedding.hpp"

#include "models/linear.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

Embedding::Embedding(const ModelConfig& config)
    : table{.name = "model.embed_tokens.weight",
            .shape = {config.vocab_size, config.hidden_size},
            // A tied table is also the head: there, unit rows would make logits of size sqrt(C).
            .init_std = config.embedding_std *
                        (config.tie_word_embeddings ? fan_in_std(config.hidden_size) : 1.0)} {}

Tensor Embedding::forward(Frame& frame, StepContext& ctx) const {
  const Tensor y = frame.push("stream", ctx.dtype, {frame.rows(), table.shape[1]});
  embedding_forward({.y = y,
                     .table = ctx.weight(table),
                     .tokens = frame.peek("tokens").reshape({frame.rows()}),
                     .vocab = table.shape[0]},
                    ctx.compute);
  ctx.observe(frame, "embedding", y);
  return y;
}

void Embedding::backward(const Tensor& d, Frame& frame, StepContext& ctx) const {
  ctx.observe(frame, "dembedding", d);
  embedding_backward({.dtable = ctx.gradient(table),
                      .dy = d,
                      .tokens = frame.peek("tokens").reshape({frame.rows()})},
                     ctx.compute);
  frame.pop("stream");
}

}  // namespace weft
