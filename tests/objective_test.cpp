// Objectives as a model learns them: text whose masked tokens the others tell.
#include <gtest/gtest.h>

#include <cmath>

#include "launch/samples.hpp"
#include "launch/trainer.hpp"
#include "parallel/comm/threads.hpp"

namespace weft {
namespace {

constexpr int64_t kVocab = 16;

/// Samples of a random word of `period` tokens, repeated: a token is known by those that far away.
class RepeatedWords final : public SampleSource {
 public:
  RepeatedWords(int64_t seq_length, int64_t period) : seq_length_(seq_length), period_(period) {}

  int64_t vocab_size() const override { return kVocab; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t samples() const override { return int64_t{1} << 40; }
  SegmentMap segments(int64_t sample) const override { return SegmentMap::single(seq_length_); }
  void tokens(int64_t sample, int64_t begin, int64_t end, std::span<int32_t> out) const override {
    const RandomStream random(1, concat("word ", sample));
    for (int64_t t = begin; t < end; ++t) {
      out[t - begin] = static_cast<int32_t>(random.below(t % period_, kVocab));
    }
  }

 private:
  int64_t seq_length_;
  int64_t period_;
};

Config masked_config() {
  Config config;
  config.model.vocab_size = kVocab + 1;
  config.model.hidden_size = 32;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 4;
  config.model.head_dim = 16;
  config.model.intermediate_size = 64;
  config.model.causal = false;
  config.data = {.path = "synthetic", .seq_length = 30, .objective = Objective::masked};
  config.train.steps = 600;
  config.train.global_batch_size = 16;
  config.train.micro_batch_size = 16;
  config.optimizer.lr = 1e-2;
  config.optimizer.warmup_steps = 20;
  return config;
}

/// The mean loss of the last steps on words of that length.
double final_loss(const Config& config, int64_t period) {
  constexpr int64_t kLast = 20;
  double sum = 0;
  run_ranks(1, [&](World& world) {
    const RepeatedWords source(config.data.seq_length, period);
    const BatchLoader loader = make_batch_loader(config, source, Coordinate{});
    Trainer trainer(config, world, plan_step(config, 0).memory);
    for (int64_t step = 0; step < config.train.steps; ++step) {
      const double loss = trainer.step(step, loader.load(step), loader.global_labels(step)).loss;
      if (step >= config.train.steps - kLast) sum += loss;
    }
  });
  return sum / kLast;
}

TEST(MaskedObjective, IsLearntFromTheOtherTokens) {
  const Config config = masked_config();
  // A guess costs log 16 = 2.77 nats. Every letter of a word of five is there six times.
  EXPECT_LT(final_loss(config, 5), 0.2);
  // Of a word as long as the sample a mask leaves nothing to tell its token by.
  EXPECT_GT(final_loss(config, config.data.seq_length), 0.8 * std::log(16.0));
}

}  // namespace
}  // namespace weft
