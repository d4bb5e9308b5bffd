// Meshes with a tensor axis equal one rank, whatever the layers, the cuts of heads and rows, and
// the other axes; what crosses the axis is known to the byte; mistakes are found.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "launch/byte_check.hpp"
#include "models/state_family.hpp"
#include "models/tensor_axis.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/flawed_worlds.hpp"
#include "tests/leak_testing.hpp"
#include "tests/recompute_testing.hpp"

namespace weft {
namespace {

struct Mesh {
  int data, sequence, tensor, pipeline = 1;
};

Config on(Config config, const Mesh& mesh) {
  config = on_mesh(std::move(config), mesh.data, mesh.sequence);
  config.mesh.along(Axis::tensor) = mesh.tensor;
  config.mesh.along(Axis::pipeline) = mesh.pipeline;
  return config;
}

void expect_parity_on(const Sets& sets, const std::vector<Mesh>& meshes) {
  std::vector<MeshShape> shapes;
  for (const Mesh& mesh : meshes) shapes.push_back(on({}, mesh).mesh);
  expect_mesh_parity(sets, shapes);
}

// ---- Parity

/// Two key/value heads of eight query heads: cut, and with more ranks each held by several.
TEST(TensorParity, InF64) {
  expect_parity_on({},
                   {{1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {2, 1, 2}, {1, 3, 2}, {1, 2, 4}, {2, 2, 2}});
}

TEST(TensorParity, InF32) {
  expect_parity_on({"train.precision=f32", "data.seq_length=193"},
                   {{1, 1, 2}, {1, 2, 4}, {3, 1, 2}, {1, 1, 8}});
}

TEST(TensorParity, OfHeadsColumnsAndTokensThatNoNumberDivides) {
  const Sets odd = {"model.num_attention_heads=14", "model.num_key_value_heads=7",
                    "model.intermediate_size=47",   "model.vocab_size=61",
                    "model.num_hidden_layers=3",    "data.seq_length=53"};
  expect_parity_on(odd, {{1, 1, 2}, {1, 1, 3}, {1, 1, 5}, {1, 1, 7}, {1, 2, 3}, {2, 1, 4}});
}

/// Three query heads of a key/value head on two ranks, and on three.
TEST(TensorParity, OfKeyValueHeadsHeldByRanksWithUnevenQueryHeads) {
  const Sets sets = {"model.num_attention_heads=6", "model.num_key_value_heads=2",
                     "model.num_hidden_layers=3"};
  expect_parity_on(sets, {{1, 1, 4}, {1, 1, 6}, {1, 2, 4}});
  expect_parity_on(joined(sets, {"model.num_key_value_heads=1"}),
                   {{1, 1, 2}, {1, 1, 5}, {2, 1, 3}});
}

TEST(TensorParity, TiedHeadBothWaysAndMaskedTokens) {
  expect_parity_on({"model.tie_word_embeddings=true"}, {{1, 1, 2}, {1, 2, 4}, {2, 1, 2}});
  expect_parity_on({"model.causal=false"}, {{1, 2, 2}});
  expect_parity_on({"model.causal=false", "data.objective=masked", "data.mask_fraction=0.01",
                    "data.documents=false"},
                   {{1, 1, 4}, {1, 2, 2}});
}

TEST(TensorParity, WithMoreRanksThanRows) {
  expect_parity_on({"data.seq_length=5", "data.documents=false", "train.micro_batch_size=1"},
                   {{1, 1, 8}, {1, 2, 4}, {1, 4, 2}, {5, 1, 2}});
}

TEST(TensorParity, WithEveryStrategy) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    const std::string attention = concat("sequence.attention=", strategy.name);
    expect_parity_on({attention, "model.num_hidden_layers=3"}, {{1, 3, 2}, {1, 2, 4}});
    expect_parity_on({attention, "model.num_hidden_layers=3", "model.num_key_value_heads=8"},
                     {{1, 2, 3}});
  }
}

TEST(TensorParity, OfWindowsAndProjectedKeys) {
  expect_parity_on({"model.layer_pattern=W*", "model.window=7", "model.num_hidden_layers=4"},
                   {{1, 1, 2}, {1, 3, 2}, {1, 2, 4}});
  const Sets projected = {"model.layer_pattern=P*", "model.projected_keys=12",
                          "model.causal=false",     "data.documents=false",
                          "data.objective=masked",  "model.num_hidden_layers=4"};
  expect_parity_on(projected, {{1, 1, 2}, {1, 1, 8}, {1, 3, 2}, {2, 1, 4}});
}

TEST(TensorParity, InAnyOrderOfAxes) {
  expect_parity_on({"mesh.order=[tensor, sequence, data, pipeline]", "model.num_hidden_layers=3"},
                   {{2, 2, 2}, {1, 2, 4}});
}

/// Own rows cross the stages; a tied table is on both ends, in as many parts.
TEST(TensorParity, OfPipelines) {
  const Sets small = {"model.num_hidden_layers=4", "data.seq_length=53"};
  expect_parity_on(joined(small, {"model.tie_word_embeddings=true"}), {{1, 1, 2, 2}, {1, 2, 2, 2}});
  for (const char* schedule : {"interleaved", "zb_h1", "zb_v"}) {
    expect_parity_on(joined(small, {concat("pipeline.schedule=", schedule)}),
                     {{1, 1, 4, 2}, {2, 1, 2, 2}});
  }
  expect_parity_on(joined(small, {"model.layer_pattern=LG", "model.linear.family=lightning",
                                  "pipeline.schedule=zb_h1", "train.recompute=layer"}),
                   {{1, 1, 2, 4}, {1, 2, 2, 2}});
}

/// Gradients, and values too, kept in pieces over holders that reach along the tensor axis or not.
TEST(TensorParity, WithParametersInPieces) {
  for (const int zero : {2, 3}) {
    const Sets small = {"model.num_hidden_layers=4", "data.seq_length=53", "model.layer_pattern=*L",
                        "model.linear.family=gla", concat("optimizer.zero=", zero)};
    expect_parity_on(joined(small, {"model.tie_word_embeddings=true"}),
                     {{2, 1, 2}, {1, 2, 4}, {1, 1, 2, 2}});
    expect_parity_on(small, {{2, 1, 4}, {2, 2, 2}});
  }
}

/// The inputs of a branch, which arrive beside its backward, are awaited.
TEST(TensorParity, OfTransfersThatArriveLate) {
  set_late_delivery(true);
  const Sets small = {"model.num_hidden_layers=4", "data.seq_length=53"};
  expect_parity_on(joined(small, {"model.layer_pattern=LG*W", "model.window=7",
                                  "model.linear.family=lightning"}),
                   {{1, 1, 4}, {1, 2, 2}});
  expect_parity_on(
      joined(small, {"model.layer_pattern=P", "model.projected_keys=12", "model.causal=false",
                     "data.documents=false", "data.objective=masked"}),
      {{1, 2, 2}});
  expect_parity_on(joined(small, {"model.layer_pattern=L", "model.linear.family=basic",
                                  "pipeline.schedule=zb_h1"}),
                   {{1, 1, 2, 2}});
  set_late_delivery(false);
}

TEST(TensorParity, Recomputing) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect_parity_on({"model.layer_pattern=W*", "model.window=7", "model.num_hidden_layers=4",
                      concat("train.recompute=", policy)},
                     {{1, 1, 4}, {1, 2, 2}});
  }
}

/// Four layers of two sorts: the keys of a small hybrid of each family, and of the delta rule.
std::vector<std::pair<std::string, Sets>> hybrids() {
  std::vector<std::pair<std::string, Sets>> all;
  for (const StateFamily* family : linear_families()) {
    all.push_back({family->name,
                   {"model.num_hidden_layers=4", "model.layer_pattern=L*L",
                    concat("model.linear.family=", family->name)}});
  }
  all.push_back({"gated_delta", {"model.num_hidden_layers=4", "model.layer_pattern=G*G"}});
  return all;
}

class TensorStateParity : public testing::TestWithParam<std::pair<std::string, Sets>> {};
INSTANTIATE_TEST_SUITE_P(Of, TensorStateParity, testing::ValuesIn(hybrids()),
                         [](const auto& test) { return test.param.first; });

TEST_P(TensorStateParity, OfAnyCut) {
  const Sets& sets = GetParam().second;
  expect_parity_on(sets, {{1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {1, 3, 2}, {2, 1, 4}});
  // One step: docs/numerics.md says what f32 makes of norms of outputs that nearly cancel.
  expect_parity_on(joined(sets, {"train.precision=f32", "train.steps=1"}), {{1, 2, 2}});
  // Heads that the ranks do not divide, under a few tokens and empty shards.
  expect_parity_on(joined(sets, {"model.num_key_value_heads=8", "data.seq_length=7"}),
                   {{1, 1, 3}, {1, 2, 5}});
}

TEST_P(TensorStateParity, Recomputing) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect_parity_on(joined(GetParam().second, {concat("train.recompute=", policy)}),
                     {{1, 1, 4}, {1, 2, 2}});
  }
}

TEST(TensorStateKeys, OfKeysThatAreNotTheFamilys) {
  const Sets small = {"model.num_hidden_layers=3", "model.layer_pattern=L"};
  expect_parity_on(joined(small, {"model.linear.family=gla", "model.linear.short_conv=3",
                                  "model.linear.feature_map=elu", "model.linear.num_heads=2",
                                  "model.linear.expand_k=1", "model.linear.expand_v=2",
                                  "model.linear.gate_rank=5", "model.linear.output_gate=false"}),
                   {{1, 1, 2}, {1, 3, 2}});
  expect_parity_on(joined(small, {"model.linear.family=lightning", "model.linear.short_conv=16",
                                  "model.linear.output_gate=false"}),
                   {{1, 1, 3}, {1, 3, 2}});
  expect_parity_on(
      {"model.num_hidden_layers=3", "model.layer_pattern=G", "model.delta.num_heads=3",
       "model.delta.head_dim=6", "model.delta.expand_v=0.5", "model.delta.short_conv=0",
       "model.delta.output_gate=false", "model.delta.negative_eigenvalues=true"},
      {{1, 1, 2}, {1, 1, 3}, {1, 2, 3}});
}

// ---- Bits

/// A document's rows meet no other's on any rank.
TEST(TensorLeak, APerturbedDocumentLeavesTheOthersBitIdentical) {
  for (const Sets& sets : {Sets{"mesh.tensor=2"}, Sets{"mesh.tensor=4"},
                           Sets{"mesh.tensor=2", "model.num_hidden_layers=2",
                                "model.layer_pattern=LG", "model.linear.family=lightning"}}) {
    for (const int sequence : {1, 2}) expect_no_leak(sets, 1, sequence);
  }
}

TEST(TensorRecompute, GivesTheBitsOfWhatWasDropped) {
  const bool before = poison();
  set_poison(true);
  for (const Sets& sets : {Sets{"model.layer_pattern=W*", "model.window=7"},
                           Sets{"model.layer_pattern=LG", "model.linear.family=lightning"}}) {
    const Config config =
        on(parity_config(joined(sets, {"train.steps=1", "model.num_hidden_layers=2"})), {1, 2, 4});
    expect_same_bits(config, config.model.layer_pattern);
  }
  set_poison(before);
}

// ---- Bytes

/// Bytes that cross the tensor axis for rows of tokens in a step, by rank and pass; what the meta
/// device predicts, the communicators book and the transport counts agrees key by key.
std::vector<std::map<Tag::Pass, int64_t>> activation_bytes(const Config& config) {
  std::vector<std::map<Tag::Pass, int64_t>> sent(config.mesh.ranks());
  const auto source = open_samples(config);
  run_ranks(config.mesh.ranks(), [&](World& world) {
    const StepPlan plan = plan_step(config, world.rank());
    Trainer trainer(config, world, plan.memory);
    BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    const std::vector<Batch> batches = loader.load(0);
    trainer.step(0, batches, loader.global_labels(0));
    check_sent_bytes(0, plan.bytes, trainer.predicted().entries(), trainer.counted().entries());
    plan.memory.check(0, trainer.peaks());
    for (const auto& [key, bytes] : trainer.counted().entries()) {
      if (key.tag.purpose == Tag::Purpose::activation && key.tag.layer >= 0) {
        sent[world.rank()][key.tag.pass] += bytes;
      }
    }
  });
  return sent;
}

/// In units of the rows that a gather and a sum over the ranks send from a rank of `ranks`: its own
/// r rows to all others, and all others' rows.
TEST(TensorBytes, AreTwoGathersAndSumsForwardFourAndTwoBackward) {
  struct Counts {
    Recompute policy;
    int64_t forward_gathers, forward_sums, backward_gathers, backward_sums;
  };
  for (const auto& [policy, gathers, sums, gathers_back, sums_back] :
       {Counts{Recompute::none, 2, 2, 4, 2},
        {Recompute::layer, 4, 3, 3, 2},
        {Recompute::attention_output, 4, 3, 3, 2}}) {
    for (const Mesh& mesh : {Mesh{1, 1, 2}, {1, 2, 4}, {2, 1, 4}}) {
      Config config = on(parity_config({"data.seq_length=53", "model.num_hidden_layers=3"}), mesh);
      config.train.recompute = policy;
      const auto sent = activation_bytes(config);
      const int64_t layers = config.model.num_hidden_layers, C = config.model.hidden_size;
      for (int rank = 0; rank < config.mesh.ranks(); ++rank) {
        const Coordinate at = coordinate_of(config.mesh, rank);
        int64_t forward = 0, backward = 0;
        for (const Batch& batch : batch_shapes(config, at)) {
          const int64_t rows = std::ssize(batch.segments) * (batch.end - batch.begin);
          const int64_t own =
              Cuts::even(rows, mesh.tensor).size(at[static_cast<int>(Axis::tensor)]);
          const int64_t gather = own * (mesh.tensor - 1), sum = rows - own;
          forward += layers * C * 8 * (gathers * gather + sums * sum);
          backward += layers * C * 8 * (gathers_back * gather + sums_back * sum);
        }
        EXPECT_EQ(sent[rank].at(Tag::Pass::forward), forward) << config.mesh.text();
        EXPECT_EQ(sent[rank].at(Tag::Pass::backward), backward) << config.mesh.text();
      }
    }
  }
}

/// A norm over whole tokens adds one number a row each way; recomputation asks for none again.
TEST(TensorBytes, OfANormOverTheHeadsOfSeveralRanks) {
  const auto all = [](const Sets& family) {
    const Config config = on(
        parity_config(joined(
            family, {"data.seq_length=53", "model.num_hidden_layers=1", "model.layer_pattern=L"})),
        {1, 1, 2});
    std::map<Tag::Pass, int64_t> sum;
    for (const auto& of_rank : activation_bytes(config)) {
      for (const auto& [pass, bytes] : of_rank) sum[pass] += bytes;
    }
    return sum;
  };
  const Sets by_token = {"model.linear.family=lightning"}, by_head = {"model.linear.family=basic"};
  // All-reduce over two ranks: either sends what amounts to the whole, of 4 x 53 rows.
  const int64_t numbers = 2 * 4 * 53 * 8;
  for (const Tag::Pass pass : {Tag::Pass::forward, Tag::Pass::backward}) {
    EXPECT_EQ(all(by_token)[pass], all(by_head)[pass] + numbers);
  }
  const std::string again = "train.recompute=layer";
  EXPECT_EQ(all(joined(by_token, {again}))[Tag::Pass::forward],
            all(joined(by_head, {again}))[Tag::Pass::forward] + numbers);
}

/// What a layer keeps is of own rows or of own heads and columns.
TEST(TensorMemory, ShrinksWithTheAxis) {
  const auto frames = [](int tensor, int layers) {
    const Config config = on(
        parity_config({"data.seq_length=256", "train.global_batch_size=1",
                       "model.num_key_value_heads=8", concat("model.num_hidden_layers=", layers)}),
        {1, 1, tensor});
    return plan_step(config, 0).memory.frames();
  };
  const int64_t one = frames(1, 2) - frames(1, 1);
  for (const int tensor : {2, 4, 8}) {
    const int64_t layer = frames(tensor, 2) - frames(tensor, 1);
    EXPECT_EQ(layer, one / tensor) << tensor;
  }
}

// ---- Mutants

/// A world whose ranks all leave out one sum or one gather along the tensor axis.
class ForgetsACollective final : public FlawedWorld {
 public:
  /// `sums`, `gathers`: how many of each go well before the one that does not take place; negative:
  /// all do.
  ForgetsACollective(World& sound, int sums, int gathers)
      : FlawedWorld(sound), sums_(sums), gathers_(gathers) {}

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    std::unique_ptr<Backend> group = sound_.group(members, label);
    if (label != "tensor forward") return group;
    return std::make_unique<Forgetful>(std::move(group), sums_, gathers_);
  }

 private:
  class Forgetful final : public Backend {
   public:
    Forgetful(std::unique_ptr<Backend> sound, int sums, int gathers)
        : Backend(sound->rank(), sound->size()),
          sound_(std::move(sound)),
          sums_(sums),
          gathers_(gathers) {}

    void exchange(std::span<const Message> messages) override { sound_->exchange(messages); }
    void verify(const Fingerprint& mine) override { sound_->verify(mine); }
    void all_gather(const Tensor& buffer, const Cuts& cuts) override {
      if (gathers_-- != 0) sound_->all_gather(buffer, cuts);
    }
    void reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch) override {
      if (sums_-- != 0) sound_->reduce_scatter(buffer, cuts, scratch);
    }

   private:
    std::unique_ptr<Backend> sound_;
    int sums_, gathers_;
  };

  int sums_, gathers_;
};

ParityReport report_without(int sums, int gathers) {
  const Config config = on(parity_config({"train.steps=1"}), {1, 1, 2});
  const StartMesh start = [&](const std::function<void(World&)>& body) {
    run_ranks(2, [&](World& world) {
      ForgetsACollective flawed(world, sums, gathers);
      body(flawed);
    });
  };
  return compare_runs(config, *open_samples(config), record(on_one_rank(config)),
                      record_on(start, config));
}

TEST(TensorMutant, ASumThatIsForgottenIsFound) {
  EXPECT_TRUE(report_without(-1, -1).ok);
  // Behind that of the embedding and two of each of three layers: layer 3's mixer.
  const ParityReport report = report_without(1 + 2 * 3, -1);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.3");
  EXPECT_EQ(report.first_tensor, "layers.3.mixer");
  EXPECT_LE(report.oracle, 1e-11);
}

TEST(TensorMutant, AGatherThatIsForgottenIsFound) {
  const bool before = poison();
  set_poison(true);
  const ParityReport mlp = report_without(-1, 2 * 5 + 1);
  EXPECT_FALSE(mlp.ok);
  EXPECT_EQ(mlp.first_tensor, "layers.5.mlp");
  // Behind those of eight layers and that of the head's inputs: what the ranks know of the rows.
  const ParityReport loss = report_without(-1, 2 * 8 + 1);
  EXPECT_FALSE(loss.ok);
  EXPECT_EQ(loss.first_tensor, "loss of step 0");
  set_poison(before);
}

TEST(TensorMutant, AGradientThatOneRankKeepsToItselfIsFound) {
  RecordingHooks hooks;
  hooks.probe = [](Trainer& trainer, const Observation& seen) {
    // Layer 5 is done: its norm gets nothing from rank 1's rows of the first micro-batch. (After
    // the last its gradient is already being summed.)
    if (trainer.mesh().rank() != 1 || seen.name != "layers.4.dmlp" || seen.micro_batch != 0) return;
    for (const Parameter* p : trainer.parameters().parameters()) {
      if (p->name != "model.layers.5.input_layernorm.weight") continue;
      cpu::fill({.y = trainer.parameters().gradient(*p), .value = 0});
    }
  };
  const Config config = parity_config({"train.steps=1"});
  const ParityReport report = parity(on(config, {1, 1, 2}), record(on_one_rank(config)), hooks);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.5");
  EXPECT_EQ(report.first_tensor, "model.layers.5.input_layernorm.weight");
  EXPECT_LE(report.loss, 1e-11);
}

}  // namespace
}  // namespace weft
