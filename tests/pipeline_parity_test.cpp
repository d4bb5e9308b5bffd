// A model in pipeline stages equals the model on one rank: every schedule, together with the other
// axes, for layers of all sorts; and what it sends and holds is what was
// planned.
#include <gtest/gtest.h>

#include <mutex>

#include "launch/pipeline_stages.hpp"
#include "parallel/pipeline/schedules.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

/// Four micro-batches of one sample on a data axis of one rank.
const Sets kFour = {"train.global_batch_size=4", "train.micro_batch_size=1", "train.steps=2",
                    "data.seq_length=41"};

struct Mesh {
  int data, pipeline, sequence, tensor = 1;
};

Config on(Config config, const Mesh& mesh) {
  config.mesh.along(Axis::data) = mesh.data;
  config.mesh.along(Axis::pipeline) = mesh.pipeline;
  config.mesh.along(Axis::sequence) = mesh.sequence;
  config.mesh.along(Axis::tensor) = mesh.tensor;
  return config;
}

/// Bytes that a rank's transport has counted in the first step, by what the ledger calls them.
using Bytes = std::map<Ledger::Key, int64_t>;

/// The config on these meshes, under these schedules, equals one rank; every rank sends what its
/// plan says.
void expect_pipelines(const Sets& sets, const std::vector<std::string>& schedules,
                      const std::vector<Mesh>& meshes) {
  const Config base = parity_config(sets);
  const Recording reference = record(on_one_rank(base));
  int64_t cells = 0;
  for (const std::string& schedule : schedules) {
    for (const Mesh& mesh : meshes) {
      Config config = on(base, mesh);
      config.pipeline.schedule = schedule;
      std::map<int, Bytes> sent;
      std::mutex mutex;
      RecordingHooks hooks;
      hooks.gradients = [&](Trainer& trainer) {
        const std::lock_guard lock(mutex);
        if (!sent.contains(trainer.mesh().rank())) {
          sent[trainer.mesh().rank()] = trainer.counted().entries();
        }
      };
      expect_ok(parity(config, reference, hooks), config);
      for (int rank = 0; rank < config.mesh.ranks(); ++rank) {
        const Bytes planned = plan_step(config, rank).bytes;
        for (const auto& [key, bytes] : sent.at(rank)) {
          EXPECT_EQ(bytes, planned.at(key))
              << "rank " << rank << ", " << key.group << ", " << text(key.tag);
        }
      }
      if (testing::Test::HasFailure()) FAIL() << schedule << " on " << config.mesh.text();
      ++cells;
    }
  }
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

std::vector<std::string> all_schedules() {
  std::vector<std::string> names;
  for (const PipelineScheduleKind& kind : pipeline_schedules()) names.push_back(kind.name);
  return names;
}

TEST(PipelineParity, OfEverySchedule) {
  expect_pipelines(kFour, all_schedules(), {{1, 2, 1}, {1, 3, 1}, {1, 4, 1}});
}

TEST(PipelineParity, OfAStageALayer) {
  expect_pipelines(kFour, {"gpipe", "1f1b", "zb_h1"}, {{1, 8, 1}});
}

TEST(PipelineParity, WithTheSequenceAndTheDataAxis) {
  expect_pipelines(kFour, all_schedules(), {{1, 2, 2}, {2, 2, 2}});
  expect_pipelines(kFour, {"1f1b", "zb_v"}, {{1, 2, 4}, {1, 2, 3}, {1, 3, 2}, {4, 2, 1}});
}

TEST(PipelineParity, WithTheTensorAxis) {
  expect_pipelines(kFour, all_schedules(), {{1, 2, 1, 2}});
  expect_pipelines(joined(kFour, {"model.tie_word_embeddings=true"}), {"1f1b", "zb_v"},
                   {{1, 2, 1, 4}, {1, 2, 2, 2}});
}

TEST(PipelineParity, WithShardedGradientsAndParameters) {
  for (const char* zero : {"optimizer.zero=2", "optimizer.zero=3"}) {
    expect_pipelines(joined(kFour, {zero}), {"gpipe", "1f1b", "interleaved"},
                     {{2, 2, 1}, {1, 2, 2}, {2, 2, 2}});
    expect_pipelines(joined(kFour, {zero, "model.tie_word_embeddings=true"}), {"1f1b"},
                     {{2, 3, 1}});
    // Micro-batches without samples, and three that are in flight.
    expect_pipelines(joined(kFour, {zero, "train.global_batch_size=5"}), {"1f1b"}, {{2, 3, 1}});
  }
}

TEST(PipelineParity, WithEveryAttentionStrategy) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    expect_pipelines(joined(kFour, {concat("sequence.attention=", strategy.name)}),
                     {"1f1b", "zb_v"}, {{1, 2, 3}});
  }
}

/// The keys that layers of a pattern ask for.
Sets pattern_of(const std::string& pattern) {
  Sets sets = {"model.layer_pattern=" + pattern};
  if (pattern.find('L') != pattern.npos) sets.push_back("model.linear.family=gla");
  if (pattern.find('W') != pattern.npos) sets.push_back("model.window=7");
  return sets;
}

TEST(PipelineParity, OfLinearAndHybridPatterns) {
  for (const char* pattern : {"L", "G", "LG*W"}) {
    for (const char* scan : {"zeco", "lasp2"}) {
      expect_pipelines(
          joined(joined(kFour, pattern_of(pattern)), {concat("sequence.state=", scan)}),
          {"1f1b", "zb_v"}, {{1, 2, 3}});
    }
  }
  expect_pipelines(
      joined(kFour, {"model.layer_pattern=P*", "model.projected_keys=12", "model.causal=false",
                     "data.documents=false", "data.objective=masked"}),
      {"1f1b", "zb_h1"}, {{1, 2, 2}});
}

TEST(PipelineParity, Recomputing) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect_pipelines(joined(joined(kFour, pattern_of("L*")),
                            {concat("train.recompute=", policy), "sequence.attention=lightseq"}),
                     {"1f1b", "zb_h1", "zb_v"}, {{1, 2, 3}});
  }
}

TEST(PipelineParity, WithATableThatIsAlsoTheHead) {
  expect_pipelines(joined(kFour, {"model.tie_word_embeddings=true"}), all_schedules(),
                   {{1, 2, 1}, {2, 2, 2}});
  expect_pipelines(joined(kFour, {"model.tie_word_embeddings=true"}), {"1f1b"}, {{1, 4, 1}});
}

TEST(PipelineParity, OfFewerAndOfMoreMicroBatchesThanStages) {
  for (const int samples : {1, 2, 7}) {
    expect_pipelines(joined(kFour, {concat("train.global_batch_size=", samples)}), all_schedules(),
                     {{1, 4, 1}});
  }
  // Two samples at a time, of five.
  expect_pipelines(joined(kFour, {"train.global_batch_size=5", "train.micro_batch_size=2"}),
                   all_schedules(), {{1, 3, 1}});
}

TEST(PipelineParity, OfDataRanksWithFewerSamplesOrNone) {
  expect_pipelines(joined(kFour, {"train.global_batch_size=5"}), {"1f1b", "zb_v"},
                   {{2, 2, 1}, {3, 2, 1}});
  expect_pipelines(joined(kFour, {"train.global_batch_size=2"}), {"1f1b", "zb_h1"}, {{3, 2, 1}});
}

TEST(PipelineParity, OfMoreRanksThanTokens) {
  expect_pipelines(joined(kFour, {"data.seq_length=3", "data.documents=false"}), {"1f1b"},
                   {{1, 2, 4}});
}

TEST(PipelineParity, WithLateDelivery) {
  set_late_delivery(true);
  expect_pipelines(kFour, all_schedules(), {{1, 3, 1}, {1, 2, 2}});
  set_late_delivery(false);
}

TEST(PipelineParity, InF32) {
  expect_pipelines(joined(kFour, {"train.precision=f32"}), all_schedules(), {{1, 4, 1}, {2, 2, 2}});
}

TEST(PipelineParity, OfThreeChunks) {
  expect_pipelines(joined(kFour, {"model.num_hidden_layers=10", "pipeline.schedule=interleaved",
                                  "pipeline.chunks=3"}),
                   {"interleaved"}, {{1, 3, 1}, {1, 2, 2}});
}

// ---- Memory and layers

/// Of equal micro-batches, the frames of a stage are as many as its schedule keeps, each as large
/// as one alone; and so are the products that wait.
TEST(PipelineMemory, IsAFrameForEveryMicroBatchInFlight) {
  constexpr int kStages = 4, kMicroBatches = 6;
  Config config =
      on(parity_config(joined(kFour, {concat("train.global_batch_size=", kMicroBatches)})),
         {1, kStages, 1});
  for (int rank = 0; rank < kStages; ++rank) {
    const auto plan_of = [&](const char* schedule, int64_t micro_batches) {
      config.pipeline.schedule = schedule;
      config.train.global_batch_size = micro_batches;
      return plan_step(config, rank).memory;
    };
    const MemoryPlan one = plan_of("zb_h1", 1);
    ASSERT_EQ(one.frame_slots.size(), 1U);
    ASSERT_EQ(one.product_slots.size(), 1U);
    const auto frames = [&](int count) { return std::vector(count, one.frame_slots[0]); };
    const auto products = [&](int count) { return std::vector(count, one.product_slots[0]); };
    EXPECT_GT(one.frames(), 0);
    EXPECT_GT(one.products(), 0);
    EXPECT_EQ(plan_of("gpipe", kMicroBatches).frame_slots, frames(kMicroBatches));
    EXPECT_EQ(plan_of("1f1b", kMicroBatches).frame_slots, frames(kStages - rank));
    EXPECT_EQ(plan_of("zb_h1", kMicroBatches).frame_slots, frames(kStages - rank));
    EXPECT_EQ(plan_of("zb_h1", kMicroBatches).product_slots, products(rank + 1));
    EXPECT_TRUE(plan_of("1f1b", kMicroBatches).product_slots.empty());
    EXPECT_EQ(plan_of("gpipe", kMicroBatches).scratch, plan_of("1f1b", kMicroBatches).scratch);
  }
}

TEST(PipelinePieces, LieWhereTheScheduleSays) {
  Config config = on(parity_config(kFour), {1, 2, 1});
  const auto layers_of = [&](int rank) {
    std::vector<std::pair<int, int>> layers;
    for (const ModelPiece& piece : plan_step(config, rank).pieces) {
      EXPECT_EQ(piece.embedding, piece.begin == 0);
      EXPECT_EQ(piece.head, piece.end == config.model.num_hidden_layers);
      layers.push_back({piece.begin, piece.end});
    }
    return layers;
  };
  using Layers = std::vector<std::pair<int, int>>;
  EXPECT_EQ(layers_of(0), (Layers{{0, 4}}));
  EXPECT_EQ(layers_of(1), (Layers{{4, 8}}));
  config.pipeline.schedule = "interleaved";
  EXPECT_EQ(layers_of(0), (Layers{{0, 2}, {4, 6}}));
  EXPECT_EQ(layers_of(1), (Layers{{2, 4}, {6, 8}}));
  config.pipeline.schedule = "zb_v";
  EXPECT_EQ(layers_of(0), (Layers{{0, 2}, {6, 8}}));
  EXPECT_EQ(layers_of(1), (Layers{{2, 4}, {4, 6}}));
}

/// The FLOPs by which the model is cut are those that a step of one rank takes.
TEST(PipelinePieces, AreCutByTheFlopsOfTheModel) {
  for (const char* pattern : {"*", "LG*W"}) {
    Config config = parity_config(
        joined(pattern_of(pattern), {"train.global_batch_size=1", "train.micro_batch_size=1"}));
    double layers = 0;
    for (const double flops : layer_flops(config)) layers += flops;
    const StepPlan plan = plan_step(config, 0);
    double expected = plan.flops();
    for (const char* kernel : {"adamw", "squared_sum"}) {  // no layer's
      expected -= plan.kernels.at(kernel).flops;
    }
    // The rotary table of a frame: here one for all layers, there each layer's own.
    const int64_t rotary = config.model.mixers("*W", config.model.num_hidden_layers);
    expected += static_cast<double>(rotary - 1) * plan.kernels.at("rope_table").flops;
    EXPECT_EQ(layers, expected) << pattern;
    config.model.vocab_size *= 100;  // the head is worth layers
    config.mesh.along(Axis::pipeline) = 2;
    EXPECT_GT(pieces_of(config)[0].end, 4);
  }
}

// ---- The same bits

/// With one rank a stage, gradients add up in the order of one rank: not only near, but equal.
TEST(PipelineBits, AreThoseOfOneRank) {
  const bool before = poison();
  set_poison(true);
  for (const char* pattern : {"*", "LG*W"}) {
    for (const char* precision : {"f64", "f32"}) {
      const Config base =
          parity_config(joined(joined(kFour, pattern_of(pattern)),
                               {"train.steps=1", concat("train.precision=", precision)}));
      const Recording one = record(on_one_rank(base));
      for (const std::string& schedule : all_schedules()) {
        Config config = on(base, {1, 3, 1});
        config.pipeline.schedule = schedule;
        const Recording run = record(config);
        EXPECT_EQ(run.losses, one.losses) << schedule;
        ASSERT_EQ(run.gradients[0].size(), one.gradients[0].size());
        for (size_t i = 0; i < one.gradients[0].size(); ++i) {
          const auto& [name, gradient] = one.gradients[0][i];
          EXPECT_TRUE(same_bits(run.gradients[0][i].values, gradient)) << schedule << ", " << name;
        }
      }
    }
  }
  set_poison(before);
}

}  // namespace
}  // namespace weft
