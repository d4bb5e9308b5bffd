// Recomputation: what train.recompute drops comes back bit for bit, what it keeps is neither
// computed nor communicated again, and both the work and the memory are known to the last call and
// byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "parallel/comm/recording.hpp"
#include "tests/parity_testing.hpp"
#include "tests/recompute_testing.hpp"

namespace weft {
namespace {

constexpr Recompute kPolicies[] = {Recompute::none, Recompute::attention_output, Recompute::layer};

/// One step of a small model, whose shards are uneven on 3 and 4 ranks.
Config small_config(const std::string& pattern, int ranks,
                    const std::vector<std::string>& sets = {}) {
  std::vector<std::string> all = {"train.steps=1", "data.seq_length=41",
                                  "model.num_hidden_layers=3", "model.layer_pattern=" + pattern};
  if (pattern.find('W') != std::string::npos) all.push_back("model.window=7");
  if (pattern.find('P') != std::string::npos) {
    all.insert(all.end(), {"model.projected_keys=6", "model.causal=false", "data.documents=false"});
  }
  all.insert(all.end(), sets.begin(), sets.end());
  return on_mesh(parity_config(all), 1, ranks);
}

// ---- Values

class RecomputeBits : public testing::TestWithParam<std::tuple<const char*, int, const char*>> {};

TEST_P(RecomputeBits, AreThoseOfWhatWasDropped) {
  const auto& [pattern, ranks, precision] = GetParam();
  const bool before = poison();
  set_poison(true);  // a slot that is read and was not computed again is NaN
  for (const AttentionStrategy& strategy : attention_strategies()) {
    expect_same_bits(
        small_config(
            pattern, ranks,
            {concat("sequence.attention=", strategy.name), concat("train.precision=", precision)}),
        concat(strategy.name, ", pattern ", pattern, ", ", ranks, " ranks, ", precision));
  }
  set_poison(before);
}

INSTANTIATE_TEST_SUITE_P(PatternsRanksAndTypes, RecomputeBits,
                         testing::Combine(testing::Values("*", "W*"), testing::Values(1, 3, 4),
                                          testing::Values("f32", "f64")));

TEST(RecomputeMeshes, GiveTheBitsOfWhatWasDropped) {
  expect_same_bits(on_mesh(small_config("W*", 1), 3, 2), "data 3, sequence 2");
  // More ranks than tokens: empty shards.
  expect_same_bits(small_config("W*", 8, {"data.seq_length=5"}), "5 tokens on 8 ranks");
  expect_same_bits(
      small_config("*", 5, {"sequence.attention=lightseq", "model.num_key_value_heads=8"}),
      "LightSeq with helpers");
}

TEST(RecomputeProjected, GivesTheBitsOfWhatWasDropped) {
  const bool before = poison();
  set_poison(true);
  for (const int ranks : {1, 3, 4}) {
    expect_same_bits(small_config("P*", ranks), concat("projected keys, ", ranks, " ranks"));
  }
  set_poison(before);
}

// ---- Work

using Calls = std::map<std::string, int64_t>;  // by kernel

/// Kernel calls of one rank's step.
struct StepCalls {
  Calls mixer_forward, mixer_backward;  // inside the attention strategies
  Calls rest;
};

/// A strategy whose forward and backward say that they run.
class Announced final : public AttentionParallel {
 public:
  static inline const AttentionStrategy* strategy = nullptr;
  static inline Calls StepCalls::*running = &StepCalls::rest;

  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    running = &StepCalls::mixer_forward;
    inner_->forward(shard, out, lse, ctx);
    running = &StepCalls::rest;
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    running = &StepCalls::mixer_backward;
    inner_->backward(shard, out, lse, dout, gradients, ctx);
    running = &StepCalls::rest;
  }

 private:
  std::unique_ptr<AttentionParallel> inner_ = strategy->make();
};

/// Counted on the meta device. What layers of windows call is among `rest`.
StepCalls calls_of(const Config& config, int rank, const AttentionStrategy& strategy) {
  Announced::strategy = &strategy;
  AttentionStrategy announced = strategy;
  announced.make = [] { return std::unique_ptr<AttentionParallel>(new Announced); };
  const auto world = make_recording_world(rank, config.mesh.ranks());
  Trainer trainer(config, *world, {}, {.attention = &announced});
  StepCalls calls;
  trainer.set_compute(
      make_meta_stream([&](const KernelCall& call) { ++(calls.*Announced::running)[call.name]; }));
  trainer.step(0, batch_shapes(config, coordinate_of(config.mesh, rank)), 1);
  return calls;
}

Calls times(Calls calls, int64_t factor) {
  for (auto& [name, count] : calls) count *= factor;
  return calls;
}

/// What `more` has beyond `less`, kernels without a difference left out.
Calls beyond(Calls more, const Calls& less) {
  for (const auto& [name, count] : less) more[name] -= count;
  std::erase_if(more, [](const auto& entry) { return entry.second == 0; });
  return more;
}

/// What a layer runs again besides its attention: both norms, the projections q, k, v and o, gate
/// and up, the rotation of q and k, and the sum behind the mixer. Not the MLP's way down, whose
/// result nobody reads.
Calls again_per_layer(int64_t layers) {
  return times({{"rmsnorm_forward", 2}, {"matmul", 6}, {"rope", 2}, {"add", 1}}, layers);
}

constexpr int64_t kMicroBatches = 2;  // of configs/parity.yaml on a data axis of one rank

TEST(RecomputeWork, AttentionRunsAgainUnderLayerAlone) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    for (const int ranks : {1, 3, 4}) {
      const Config config = small_config("*", ranks);
      const Calls again = again_per_layer(config.model.num_hidden_layers * kMicroBatches);
      for (int rank = 0; rank < ranks; ++rank) {
        const auto calls = [&](Recompute policy) {
          return calls_of(with(config, policy), rank, strategy);
        };
        const StepCalls none = calls(Recompute::none), layer = calls(Recompute::layer),
                        output = calls(Recompute::attention_output);
        EXPECT_FALSE(none.mixer_forward.empty());
        EXPECT_EQ(layer.mixer_forward, times(none.mixer_forward, 2)) << strategy.name;
        EXPECT_EQ(output.mixer_forward, none.mixer_forward) << strategy.name;
        for (const StepCalls& some : {layer, output}) {
          EXPECT_EQ(some.mixer_backward, none.mixer_backward) << strategy.name;
          EXPECT_EQ(beyond(some.rest, none.rest), again) << strategy.name;
        }
      }
    }
  }
}

TEST(RecomputeWork, TheSameOfWindows) {
  const AttentionStrategy& unused = attention_strategies()[0];
  const Config config = small_config("W", 3);
  const auto calls = [&](Recompute policy) {
    return calls_of(with(config, policy), 1, unused).rest;
  };
  const Calls none = calls(Recompute::none), layer = calls(Recompute::layer),
              output = calls(Recompute::attention_output);
  const int64_t layers = config.model.num_hidden_layers * kMicroBatches;
  EXPECT_EQ(beyond(output, none), again_per_layer(layers));
  const Calls attention = beyond(layer, output);
  EXPECT_EQ(attention.at("attention_forward"), none.at("attention_forward"));
  EXPECT_FALSE(attention.contains("attention_backward"));
}

/// Bytes that all ranks together send along the sequence axis in a step, by pass, as the transport
/// counts them.
std::map<Tag::Pass, int64_t> sequence_bytes(const Config& config) {
  std::map<Tag::Pass, int64_t> sent;
  std::mutex mutex;
  RecordingHooks hooks;
  hooks.gradients = [&](Trainer& trainer) {
    const std::lock_guard lock(mutex);
    for (const auto& [key, bytes] : trainer.counted().entries()) {
      if (key.tag.purpose == Tag::Purpose::attention) sent[key.tag.pass] += bytes;
    }
  };
  record(config, hooks);
  return sent;
}

TEST(RecomputeWork, AttentionIsSentAgainUnderLayerAlone) {
  for (const char* pattern : {"*", "W", "P"}) {
    for (const AttentionStrategy& strategy : attention_strategies()) {
      for (const int ranks : {3, 4}) {
        const Config config =
            small_config(pattern, ranks, {concat("sequence.attention=", strategy.name)});
        auto none = sequence_bytes(with(config, Recompute::none));
        auto layer = sequence_bytes(with(config, Recompute::layer));
        EXPECT_GT(none[Tag::Pass::forward], 0);
        EXPECT_EQ(layer[Tag::Pass::forward], 2 * none[Tag::Pass::forward]) << strategy.name;
        EXPECT_EQ(layer[Tag::Pass::backward], none[Tag::Pass::backward]) << strategy.name;
        EXPECT_EQ(sequence_bytes(with(config, Recompute::attention_output)), none) << strategy.name;
      }
    }
  }
}

// ---- Memory

/// What a layer leaves in the frame, and all that it pushes.
struct LayerBytes {
  int64_t kept, pushed;
  int64_t mlp;  // of what is pushed and not kept, the MLP's
};

LayerBytes layer_bytes(const Config& config, int64_t tokens) {
  const ModelConfig& m = config.model;
  const int64_t C = m.hidden_size, F = m.intermediate_size, H = m.num_attention_heads;
  const int64_t HD = H * m.head_dim, GD = m.num_key_value_heads * m.head_dim;
  const DType dtype = config.train.precision, wide = accumulator_of(dtype);
  // Slots of so many elements a row, each rounded up to an arena's alignment.
  const auto slots = [&](DType type, std::initializer_list<int64_t> widths) {
    int64_t bytes = 0;
    for (const int64_t width : widths) {
      bytes += (config.train.micro_batch_size * tokens * width * size_of(type) + 63) / 64 * 64;
    }
    return bytes;
  };
  const int64_t stream = slots(dtype, {C});
  const int64_t result = slots(wide, {HD, H});                      // out, lse
  const int64_t rest = slots(dtype, {C, C, C, HD, GD, GD, F, F}) +  // mid, normed twice, q, k, v,
                       slots(wide, {1, 1});                         // gate, up; rstd twice
  const int64_t all = stream + result + rest;
  const int64_t mlp = slots(dtype, {C, F, F}) + slots(wide, {1});
  switch (config.train.recompute) {
    case Recompute::none:
      return {all, all, 0};
    case Recompute::attention_output:
      return {stream + result, all, mlp};
    case Recompute::layer:
      return {stream, all, mlp};
  }
  return {};
}

/// Of every layer what is dropped leaves the frames, and one layer's worth of it lies in the
/// scratch below what backward has there anyway, the MLP's slots until the MLP is done.
void expect_planned_memory(const Config& config, int rank) {
  const int64_t tokens = Cuts::even(config.data.seq_length, config.mesh.ranks()).size(rank);
  const MemoryPlan none = plan_step(with(config, Recompute::none), rank).memory;
  int64_t previous = none.frames() + 1;
  for (const Recompute policy : kPolicies) {
    const Config recomputing = with(config, policy);
    const MemoryPlan plan = plan_step(recomputing, rank).memory;
    const auto [kept, pushed, mlp] = layer_bytes(recomputing, tokens);
    EXPECT_EQ(plan.frames(), none.frames() - config.model.num_hidden_layers * (pushed - kept));
    // Here the mixer's backward takes more scratch than the MLP's, by more than the MLP's slots.
    EXPECT_EQ(plan.scratch, none.scratch + (pushed - kept) - mlp);
    EXPECT_EQ(plan.state, none.state);
    EXPECT_LT(plan.frames(), previous);
    previous = plan.frames();

    Config shallower = recomputing;
    --shallower.model.num_hidden_layers;
    EXPECT_EQ(plan.frames() - plan_step(shallower, rank).memory.frames(), kept);
  }
}

TEST(RecomputeMemory, IsTheKeptSlotsOfAllLayersAndTheOthersOfOne) {
  for (const char* precision : {"f32", "f64"}) {
    for (const char* pattern : {"*", "W*"}) {
      for (const int ranks : {1, 3}) {
        const Config config = small_config(pattern, ranks,
                                           {"model.num_hidden_layers=8", "train.loss_slice=4",
                                            concat("train.precision=", precision)});
        for (int rank = 0; rank < ranks; ++rank) expect_planned_memory(config, rank);
      }
    }
  }
}

// ---- Mistakes

/// Ring attention that, in one layer, takes for kept what was dropped: the second forward of a
/// micro-batch leaves its result as it lies in memory.
class TakesTheDroppedForKept final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const bool again = shard.layer == kLayer && calls_++ % 2 == 1;
    if (!again) ring_->forward(shard, out, lse, ctx);
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    ring_->backward(shard, out, lse, dout, gradients, ctx);
  }

 private:
  static constexpr int kLayer = 1;

  std::unique_ptr<AttentionParallel> ring_ = make_ring_attention();
  int calls_ = 0;
};

TEST(RecomputeMutant, AStaleResultIsFound) {
  const AttentionStrategy stale{
      "stale", "", [] { return std::unique_ptr<AttentionParallel>(new TakesTheDroppedForKept); }};
  RecordingHooks hooks;
  hooks.stand_ins.attention = &stale;
  const Config config = with(small_config("*", 3), Recompute::layer);
  const Recording reference = record(on_one_rank(config));
  const ParityReport report = parity(config, reference, hooks);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.1");
  EXPECT_EQ(report.first_tensor, "layers.1.dmixer");  // the MLP's backward read mid
  EXPECT_LE(report.loss, 1e-11);
}

/// A frame of four rows with one kept and one dropped slot a layer.
class TwoSlots {
 public:
  void forward() {
    frame.open_layer(scratch);
    push();
    frame.close_layer();
  }
  void push() {
    frame.push("kept", DType::f64, {4}, Recompute::layer);
    frame.push("dropped", DType::f64, {4}, Recompute::attention_output);
  }

  Arena slab{"frames", Device::cpu, 4096};
  Arena scratch{"scratch", Device::cpu, 4096};
  Frame frame{slab, 1, Cuts::even(4, 1), 0, 0, Recompute::layer};
};

TEST(RecomputeFrame, KeepsWhatThePolicyKeeps) {
  TwoSlots slots;
  slots.forward();
  slots.frame.peek("kept").as<double>()[0] = 7;
  EXPECT_FALSE(slots.frame.present("kept"));
  EXPECT_THROW(slots.frame.peek("dropped"), Error);
  EXPECT_EQ(slots.scratch.used(), 0);
  ASSERT_TRUE(slots.frame.reopen_layer(slots.scratch));
  slots.push();
  EXPECT_TRUE(slots.frame.present("kept"));
  EXPECT_FALSE(slots.frame.present("dropped"));
  EXPECT_EQ(slots.frame.peek("kept").as<double>()[0], 7);
  slots.frame.pop("dropped");
  slots.frame.pop("kept");
  slots.frame.close_layer();
  EXPECT_TRUE(slots.frame.empty());
  EXPECT_EQ(slots.slab.used(), 0);
  EXPECT_EQ(slots.scratch.used(), 0);
}

TEST(RecomputeFrame, RefusesAnotherForwardThanTheFirst) {
  TwoSlots slots;
  slots.forward();
  slots.frame.reopen_layer(slots.scratch);
  EXPECT_THROW(slots.frame.close_layer(), Error);  // "kept" was not pushed
  EXPECT_THROW(slots.frame.push("other", DType::f64, {4}, Recompute::layer), Error);
}

TEST(RecomputeFrame, RefusesASlotInsideAScopeOfTheScratch) {
  TwoSlots slots;
  slots.frame.open_layer(slots.scratch);
  {
    const Scope scope(slots.scratch);
    slots.push();
  }
  EXPECT_THROW(slots.frame.close_layer(), Error);
}

}  // namespace
}  // namespace weft
