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
