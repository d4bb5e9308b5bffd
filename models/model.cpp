#include "models/model.hpp"

#include <algorithm>

#include "models/state_family.hpp"
#include "parallel/tensor/token_rows.hpp"

namespace weft {
namespace {

/// Where the keys that a query sees begin in each window of the model, [windows, B, T]. They end as
/// "key end" says.
constexpr const char* kWindow = "window begin";
/// What all tokens of the sequences see.
constexpr const char* kAllKeys[] = {"all key begin", "all key end"};

/// Positions of the shard's tokens, from the documents of the whole sequences.
void fill_positions(std::span<const SegmentMap> segments, const Frame& frame,
                    const Tensor& positions) {
  int64_t* position = positions.as<int64_t>();
  for (const SegmentMap& map : segments) {
    for (int64_t i = 0; i < frame.tokens(); ++i)
      *position++ = map.position(frame.first_token() + i);
  }
}

/// The keys that a query sees; [B, T] of the shard's tokens, [B, N] of all.
struct KeyRange {
  Tensor begin, end;
};

/// Those of the shard's tokens.
void fill_keys(std::span<const SegmentMap> segments, bool causal, const Frame& frame,
               const KeyRange& keys) {
  int64_t* key_begin = keys.begin.as<int64_t>();
  int64_t* key_end = keys.end.as<int64_t>();
  for (const SegmentMap& map : segments) {
    for (int64_t i = 0; i < frame.tokens(); ++i) {
      const int64_t t = frame.first_token() + i;
      *key_begin++ = map.document_begin(t);
      *key_end++ = causal ? t + 1 : map.document_end(t);
    }
  }
}

/// Those of all tokens, a document at a time.
void fill_all_keys(std::span<const SegmentMap> segments, bool causal, const KeyRange& keys) {
  int64_t* key_begin = keys.begin.as<int64_t>();
  int64_t* key_end = keys.end.as<int64_t>();
  for (const SegmentMap& map : segments) {
    for (int64_t begin = 0; begin < map.tokens();) {
      const int64_t end = map.document_end(begin);
      for (int64_t t = begin; t < end; ++t) {
        *key_begin++ = begin;
        *key_end++ = causal ? t + 1 : end;
      }
      begin = end;
    }
  }
}

void fill_windows(const std::vector<int64_t>& windows, const KeyRange& keys, const Tensor& begins) {
  const int64_t* key_begin = keys.begin.as<int64_t>();
  const int64_t* key_end = keys.end.as<int64_t>();
  int64_t* window_begin = begins.as<int64_t>();
  for (const int64_t window : windows) {
    for (int64_t i = 0; i < keys.begin.numel(); ++i) {
      *window_begin++ = std::max(key_begin[i], key_end[i] - window);
    }
  }
}

}  // namespace

Model::Model(const ModelConfig& config, const SequenceStrategies& strategies, int64_t loss_slice,
             const TensorPlace& place, const std::vector<ModelPiece>& pieces)
    : config_(config) {
  const std::vector<ModelPiece> whole = {{.end = static_cast<int>(config.num_hidden_layers)}};
  bool reads_keys = false, rotates_state = false, has_embedding = false, has_head = false;
  for (const ModelPiece& piece : pieces.empty() ? whole : pieces) {
    chunks_.push_back(make_chunk(piece, strategies, place));
    reads_keys |= chunks_.back().inputs.keys;
    rotates_state |= chunks_.back().inputs.state_rotary;
    has_embedding |= piece.embedding;
    has_head |= piece.head;
  }
  if (reads_keys) frequencies_ = rope_frequencies(config.rope, config.head_dim);
  if (rotates_state) {
    state_frequencies_ = rope_frequencies(config.rope, state_layout(config, 'L').key_dim);
  }
  const bool tied = config.tie_word_embeddings;
  if (has_embedding || (tied && has_head)) embedding_.emplace(config_, place);
  // A tied table is on the first and on the last stage, or on one that is both.
  if (tied && has_embedding != has_head) embedding_->table.holders.both_ends = true;
  if (has_head) {
    head_ =
        std::make_unique<LossHead>(config_, loss_slice, tied ? &embedding_->table : nullptr, place);
  }
}

Model::Chunk Model::make_chunk(const ModelPiece& piece, const SequenceStrategies& strategies,
                               const TensorPlace& place) const {
  // A list has one entry for all layers of its letters, or one for each.
  const auto pick = [&](const auto& list, std::string_view letters, int64_t layer) {
    const int64_t all = config_.mixers(letters, config_.num_hidden_layers);
    WEFT_CHECK(list.size() == 1 || std::ssize(list) == all, list.size(), " strategies for ", all,
               " layers of ", letters);
    const bool has_own = list.size() > 1 && letters.find(config_.mixer_of(layer)) != letters.npos;
    return list[has_own ? config_.mixers(letters, layer) : 0];
  };
  Chunk chunk{
      .piece = piece, .inputs = {.tokens = piece.embedding, .labels = piece.head}, .layers = {}};
  Inputs& inputs = chunk.inputs;
  for (int layer = piece.begin; layer < piece.end; ++layer) {
    const LayerStrategy strategy{.attention = pick(strategies.attention, "*", layer),
                                 .scan = pick(strategies.scans, "LG", layer),
                                 .scan_options = strategies.scan_options,
                                 .place = place};
    const char mixer = config_.mixer_of(layer);
    inputs.keys |= mixer == '*' || mixer == 'W' || mixer == 'P';
    inputs.windows |= mixer == 'W';
    inputs.all_keys |= mixer == '*' && strategy.attention->reads_all_intervals;
    inputs.state_rotary |= mixer == 'L' && state_layout(config_, 'L').family->rotary;
    chunk.layers.push_back(std::make_unique<DecoderLayer>(layer, config_, strategy));
  }
  return chunk;
}

std::vector<Parameter*> Model::parameters() {
  std::vector<Parameter*> all;
  int unit = 0;
  const auto take = [&](Parameter& parameter) {
    parameter.unit = unit;
    all.push_back(&parameter);
  };
  if (embedding_) {
    const bool embeds = std::any_of(chunks_.begin(), chunks_.end(),
                                    [](const Chunk& chunk) { return chunk.piece.embedding; });
    if (!embeds) unit = norm_unit() + 1;  // the head's matrix alone
    if (embeds && head_ && config_.tie_word_embeddings) {
      embedding_->table.second_unit = norm_unit() + 1;
    }
    take(embedding_->table);
  }
  for (const Chunk& chunk : chunks_) {
    unit = chunk.piece.begin;
    for (const auto& layer : chunk.layers) {
      ++unit;
      layer->visit(take);
    }
  }
  if (head_) {
    // Its norm and its matrix are units of their own: one has its gradient of a micro-batch after
    // backward, the other after forward.
    head_->visit([&](Parameter& parameter) {
      unit = &parameter == &head_->norm_weight() ? norm_unit() : norm_unit() + 1;
      take(parameter);
    });
  }
  return all;
}

void Model::for_each_input(const Inputs& inputs, const Frame& frame, DType dtype,
                           const InputSlot& f) const {
  const DType wide = accumulator_of(dtype);
  const int64_t B = frame.batch(), T = frame.tokens();
  if (inputs.tokens) f("tokens", DType::i32, {B, T});
  if (inputs.labels) f("labels", DType::i32, {B, T});
  f("positions", DType::i64, {B, T});
  if (inputs.keys) {
    for (const char* slot : {"key begin", "key end"}) f(slot, DType::i64, {B, T});
    for (const char* slot : {"cos", "sin"}) f(slot, wide, {B, T, config_.head_dim / 2});
  }
  if (inputs.windows) {
    f(kWindow, DType::i64, {std::ssize(config_.distinct_windows()), B, T});
  }
  if (inputs.all_keys) {
    for (const char* slot : kAllKeys) f(slot, DType::i64, {B, frame.cuts().total()});
  }
  if (inputs.state_rotary) {
    for (const char* slot : {"state cos", "state sin"}) {
      f(slot, wide, {B, T, std::ssize(state_frequencies_)});
    }
  }
}

void Model::write_inputs(const Inputs& inputs, const TokenShard& shard, const Frame& frame,
                         Staging& staging, StepContext& ctx) const {
  const auto reserve = [&](bool wanted, const char* slot) {
    return wanted ? staging.reserve(frame.peek(slot)) : Tensor{};
  };
  const Tensor tokens = reserve(inputs.tokens, "tokens");
  const Tensor labels = reserve(inputs.labels, "labels");
  const Tensor positions = reserve(true, "positions");
  const KeyRange keys{reserve(inputs.keys, "key begin"), reserve(inputs.keys, "key end")};
  const Tensor windows = reserve(inputs.windows, kWindow);
  const KeyRange all{reserve(inputs.all_keys, kAllKeys[0]), reserve(inputs.all_keys, kAllKeys[1])};
  if (ctx.compute.device() == Device::meta) return;
  WEFT_CHECK(
      std::ssize(shard.segments) == frame.batch() && std::ssize(shard.tokens) == frame.rows() &&
          std::ssize(shard.labels) == frame.rows(),
      "a frame of ", frame.batch(), " x ", frame.tokens(), " tokens got ", shard.tokens.size());
  if (tokens) std::copy(shard.tokens.begin(), shard.tokens.end(), tokens.as<int32_t>());
  if (labels) std::copy(shard.labels.begin(), shard.labels.end(), labels.as<int32_t>());
  fill_positions(shard.segments, frame, positions);
  if (inputs.keys) fill_keys(shard.segments, config_.causal, frame, keys);
  if (inputs.windows) fill_windows(config_.distinct_windows(), keys, windows);
  if (inputs.all_keys) fill_all_keys(shard.segments, config_.causal, all);
  staging.send(ctx.compute);
  ctx.observe(frame, "positions", frame.peek("positions"));
}

Tensor Model::begin(int chunk, const TokenShard& shard, Frame& frame, Staging& staging,
                    StepContext& ctx) const {
  const auto& [piece, inputs, layers] = chunks_[chunk];
  for_each_input(inputs, frame, ctx.dtype,
                 [&](const char* slot, DType dtype, std::initializer_list<int64_t> shape) {
                   frame.push(slot, dtype, shape);
                 });
  write_inputs(inputs, shard, frame, staging, ctx);
  frame.set_one_document(
      std::all_of(shard.segments.begin(), shard.segments.end(),
                  [](const SegmentMap& documents) { return documents.starts().size() == 1; }));
  const auto fill_table = [&](const char* cos, const char* sin, const std::vector<double>& f) {
    rope_table({.cos = frame.peek(cos),
                .sin = frame.peek(sin),
                .positions = frame.peek("positions"),
                .frequencies = &f},
               ctx.compute);
  };
  if (inputs.keys) fill_table("cos", "sin", frequencies_);
  if (inputs.state_rotary) fill_table("state cos", "state sin", state_frequencies_);
  if (piece.embedding) return {};
  return frame.push("stream", ctx.dtype,
                    {TokenRows(frame, piece.begin, ctx).size(), config_.hidden_size});
}

Tensor Model::forward(int chunk, Frame& frame, StepContext& ctx) {
  const auto& [piece, inputs, layers] = chunks_[chunk];
  if (piece.embedding) ctx.begin_forward(0);
  Tensor x = piece.embedding ? embedding_->forward(frame, ctx) : frame.peek("stream");
  if (piece.embedding) ctx.end_forward(0);
  for (int unit = piece.begin; const auto& layer : layers) {
    ctx.begin_forward(++unit);
    x = layer->forward(x, frame, ctx);
    ctx.end_forward(unit);
  }
  if (!piece.head) return x;
  head_->forward(x, frame, ctx);
  return {};
}

void Model::backward(int chunk, const Tensor& d, Frame& frame, StepContext& ctx) {
  const auto& [piece, inputs, layers] = chunks_[chunk];
  if (piece.head) head_->backward(d, frame.peek("stream"), frame, ctx);
  int unit = piece.end;
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer, --unit) {
    ctx.begin_backward(unit);
    (*layer)->backward(d, frame, ctx);
    ctx.end_backward(unit, frame);
  }
  if (piece.embedding) {
    ctx.begin_gradients(0);
    embedding_->backward(d, frame, ctx);
    ctx.end_gradients(0, frame);
  } else {
    frame.pop("stream");
  }
  std::vector<const char*> pushed;
  for_each_input(
      inputs, frame, ctx.dtype,
      [&](const char* slot, DType, std::initializer_list<int64_t>) { pushed.push_back(slot); });
  for (auto slot = pushed.rbegin(); slot != pushed.rend(); ++slot) frame.pop(*slot);
  WEFT_CHECK(frame.empty(), "slots are left on the frame");
}

void Model::complete(int chunk, StepContext& ctx) const {
  const ModelPiece& piece = chunks_[chunk].piece;
  if (piece.head) ctx.complete(norm_unit());  // its matrix was, after the last forward
  for (int unit = piece.end; unit > piece.begin; --unit) ctx.complete(unit);
  if (piece.embedding) ctx.complete(0);
}

}  // namespace weft
