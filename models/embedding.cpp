#include "models/embedding.hpp"

#include "models/linear.hpp"
#include "parallel/tensor/token_rows.hpp"
#include "src/core/cuda/range.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {

Embedding::Embedding(const ModelConfig& config, const TensorPlace& place)
    : table(cut({.name = "model.embed_tokens.weight",
                 .shape = {config.vocab_size, config.hidden_size},
                 // A tied table is also the head: there, unit rows would make logits of size
                 // sqrt(C).
                 .init_std = config.embedding_std *
                             (config.tie_word_embeddings ? fan_in_std(config.hidden_size) : 1.0),
                 .hidden = false,
                 .read_backward = false},
                0, place.piece(config.vocab_size))),
      tokens_(place.piece(config.vocab_size)) {}

Tensor Embedding::forward(Frame& frame, StepContext& ctx) const {
  const cuda::NamedRange range("embedding forward");
  const TokenRows rows(frame, /*layer=*/-1, ctx);
  const Tensor y = frame.push("stream", ctx.dtype, {rows.size(), table.shape[1]});
  const Scope scope(ctx.scratch);
  const Tensor room = rows.room("embedded rows", y.dtype, y.dim(1));
  const Tensor partial = room ? room : y;
  embedding_forward({.y = partial,
                     .table = ctx.weight(table),
                     .tokens = frame.peek("tokens").reshape({frame.rows()}),
                     .vocab_begin = tokens_.begin,
                     .vocab = tokens_.total},
                    ctx.compute);
  rows.sum_into(y, partial, Tag::Pass::forward);
  ctx.observe(frame, "embedding", y, {.row = rows.begin()});
  return y;
}

void Embedding::backward(const Tensor& d, Frame& frame, StepContext& ctx) const {
  const cuda::NamedRange range("embedding backward");
  const TokenRows rows(frame, /*layer=*/-1, ctx);
  ctx.observe(frame, "dembedding", d, {.row = rows.begin()});
  const Scope scope(ctx.scratch);
  const Tensor room = rows.room("embedding gradient", d.dtype, d.dim(1));
  embedding_backward({.dtable = ctx.gradient(table),
                      .dy = rows.gather(d, room, Tag::Pass::backward),
                      .tokens = frame.peek("tokens").reshape({frame.rows()}),
                      .vocab_begin = tokens_.begin},
                     ctx.compute);
  frame.pop("stream");
}

}  // namespace weft
