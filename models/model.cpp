#include "models/model.hpp"

#include <algorithm>

namespace weft {
namespace {

/// The slots that begin() pushes, in order; backward pops them in reverse.
constexpr const char* kInputs[] = {"tokens",  "labels", "positions", "key begin",
                                   "key end", "cos",    "sin"};
/// And after them, where the pattern has a W: [windows, B, T], for each window of the model where
/// the keys that a query sees begin. They end as "key end" says.
constexpr const char* kWindow = "window begin";
/// And where a strategy needs them, of all tokens of the sequences.
constexpr const char* kAllKeys[] = {"all key begin", "all key end"};

/// Positions and visible keys of the shard's tokens, from the documents of the whole sequences.
void fill_positions(std::span<const SegmentMap> segments, bool causal, const Frame& frame) {
  int64_t* position = frame.peek("positions").as<int64_t>();
  int64_t* key_begin = frame.peek("key begin").as<int64_t>();
  int64_t* key_end = frame.peek("key end").as<int64_t>();
  for (const SegmentMap& map : segments) {
    for (int64_t i = 0; i < frame.tokens(); ++i) {
      const int64_t t = frame.first_token() + i;
      *position++ = map.position(t);
      *key_begin++ = map.document_begin(t);
      *key_end++ = causal ? t + 1 : map.document_end(t);
    }
  }
}

/// What the queries of all tokens see, [B, N], a document at a time.
void fill_all_keys(std::span<const SegmentMap> segments, bool causal, const Frame& frame) {
  int64_t* key_begin = frame.peek(kAllKeys[0]).as<int64_t>();
  int64_t* key_end = frame.peek(kAllKeys[1]).as<int64_t>();
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

void fill_windows(const std::vector<int64_t>& windows, const Frame& frame) {
  const int64_t* key_begin = frame.peek("key begin").as<int64_t>();
  const int64_t* key_end = frame.peek("key end").as<int64_t>();
  int64_t* window_begin = frame.peek(kWindow).as<int64_t>();
  for (const int64_t window : windows) {
    for (int64_t i = 0; i < frame.rows(); ++i) {
      *window_begin++ = std::max(key_begin[i], key_end[i] - window);
    }
  }
}

}  // namespace

Model::Model(const ModelConfig& config, const std::vector<const AttentionStrategy*>& attention,
             int64_t loss_slice)
    : config_(config),
      frequencies_(rope_frequencies(config.rope, config.head_dim)),
      embedding_(config) {
  WEFT_CHECK(!attention.empty());
  size_t softmax_layers = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    // Layers of other letters do not look at what they are given.
    const size_t which = std::min(softmax_layers, attention.size() - 1);
    layers_.push_back(std::make_unique<DecoderLayer>(layer, config_, *attention.at(which)));
    if (config_.mixer_of(layer) != '*') continue;
    all_intervals_ |= attention.at(which)->reads_all_intervals;
    ++softmax_layers;
  }
  WEFT_CHECK(attention.size() == 1 || attention.size() == softmax_layers, attention.size(),
             " strategies for ", softmax_layers, " softmax layers");
  head_ = std::make_unique<LossHead>(config_, loss_slice,
                                     config_.tie_word_embeddings ? &embedding_.table : nullptr);
}

void Model::visit(const std::function<void(Parameter&)>& f) {
  f(embedding_.table);
  for (const auto& layer : layers_) layer->visit(f);
  head_->visit(f);
}

std::vector<Parameter*> Model::parameters() {
  std::vector<Parameter*> all;
  visit([&](Parameter& parameter) { all.push_back(&parameter); });
  return all;
}

void Model::begin(const TokenShard& shard, Frame& frame, StepContext& ctx) const {
  const int64_t B = frame.batch(), T = frame.tokens(), half = config_.head_dim / 2;
  const Tensor tokens = frame.push(kInputs[0], DType::i32, {B, T});
  const Tensor labels = frame.push(kInputs[1], DType::i32, {B, T});
  for (const int i : {2, 3, 4}) frame.push(kInputs[i], DType::i64, {B, T});
  const Tensor cos = frame.push(kInputs[5], ctx.dtype, {B, T, half});
  const Tensor sin = frame.push(kInputs[6], ctx.dtype, {B, T, half});
  const std::vector<int64_t> windows = config_.distinct_windows();
  if (!windows.empty()) frame.push(kWindow, DType::i64, {std::ssize(windows), B, T});
  if (all_intervals_) {
    for (const char* slot : kAllKeys) frame.push(slot, DType::i64, {B, frame.cuts().total()});
  }
  if (ctx.compute.device() != Device::meta) {
    WEFT_CHECK(std::ssize(shard.segments) == B && std::ssize(shard.tokens) == B * T &&
                   std::ssize(shard.labels) == B * T,
               "a frame of ", B, " x ", T, " tokens got ", shard.tokens.size());
    std::copy(shard.tokens.begin(), shard.tokens.end(), tokens.as<int32_t>());
    std::copy(shard.labels.begin(), shard.labels.end(), labels.as<int32_t>());
    fill_positions(shard.segments, config_.causal, frame);
    if (!windows.empty()) fill_windows(windows, frame);
    if (all_intervals_) fill_all_keys(shard.segments, config_.causal, frame);
    ctx.observe("positions", frame.peek("positions"));
  }
  rope_table(
      {.cos = cos, .sin = sin, .positions = frame.peek("positions"), .frequencies = &frequencies_},
      ctx.compute);
}

void Model::forward(Frame& frame, StepContext& ctx) {
  Tensor x = embedding_.forward(frame, ctx);
  for (const auto& layer : layers_) x = layer->forward(x, frame, ctx);
  head_->forward(x, frame, ctx);
}

void Model::backward(Frame& frame, StepContext& ctx) {
  const Scope scope(ctx.scratch);
  const Tensor d = ctx.scratch.allocate("dstream", ctx.dtype, {frame.rows(), config_.hidden_size});
  head_->backward(d, frame.peek("stream"), frame, ctx);
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    (*layer)->backward(d, frame, ctx);
  }
  embedding_.backward(d, frame, ctx);
  if (all_intervals_) {
    for (auto slot = std::rbegin(kAllKeys); slot != std::rend(kAllKeys); ++slot) frame.pop(*slot);
  }
  if (!config_.window.empty()) frame.pop(kWindow);
  for (auto slot = std::rbegin(kInputs); slot != std::rend(kInputs); ++slot) frame.pop(*slot);
  WEFT_CHECK(frame.empty(), "slots are left on the frame");
}

}  // namespace weft
