// Parity as a library: any data x sequence mesh equals one rank; and mistakes of every kind that
// sequence parallelism invites are found and placed in the right layer.
#include <gtest/gtest.h>

#include "data/synthetic.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/leak_testing.hpp"

namespace weft {
namespace {

/// All data x sequence meshes of 2 to 8 ranks.
std::vector<std::pair<int, int>> all_meshes() {
  std::vector<std::pair<int, int>> meshes;
  for (int data = 1; data <= 8; ++data) {
    for (int sequence = 1; data * sequence <= 8; ++sequence) {
      if (data * sequence > 1) meshes.push_back({data, sequence});
    }
  }
  return meshes;
}

// ---- A spread in seconds; the whole grid has the label "full"

TEST(Parity, AllowsTwiceWhatRoundingMakesOfTheReference) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    EXPECT_EQ(parity_tolerance(dtype, 0), parity_tolerance(dtype));
  }
  EXPECT_EQ(parity_tolerance(DType::bf16, 0x1p-10), 0x1p-8);
  EXPECT_EQ(parity_tolerance(DType::bf16, 0x1p-6), 0x1p-5);
}

TEST(Parity, InF64) {
  expect_parity({}, {{1, 2}, {1, 3}, {2, 2}, {3, 1}, {1, 5}, {2, 4}, {1, 8}});
}

TEST(Parity, InF32) {
  expect_parity({"train.precision=f32", "data.seq_length=193"}, {{1, 3}, {2, 2}, {5, 1}, {1, 8}});
}

TEST(Parity, WithoutDocuments) {
  expect_parity({"data.documents=false", "data.seq_length=64"}, {{1, 4}, {3, 2}});
}

TEST(Parity, WithMoreRanksThanSamplesOrTokens) {
  expect_parity({"data.seq_length=5", "data.documents=false", "train.global_batch_size=2"},
                {{5, 1}, {1, 8}, {4, 2}});
}

TEST(Parity, TiedHeadAndBothWays) {
  expect_parity({"model.tie_word_embeddings=true"}, {{2, 3}});
  expect_parity({"model.causal=false"}, {{2, 3}});
}

TEST(Parity, MaskedTokens) {
  const std::vector<std::string> masked = {"model.causal=false", "data.objective=masked"};
  expect_parity(masked, {{2, 3}, {1, 8}});
  // So few that most shards have no label at all.
  expect_parity({masked[0], masked[1], "data.mask_fraction=0.01", "data.documents=false"},
                {{2, 3}, {4, 1}});
}

TEST(Parity, SlidingWindows) {
  expect_parity({"model.layer_pattern=W*", "model.window=7"}, {{1, 3}, {2, 2}, {1, 8}});
  // Longer than any shard: halos from many ranks.
  expect_parity({"model.layer_pattern=*WW", "model.window=50"}, {{1, 5}, {3, 2}});
  // A window a layer, from the token before to more than there is. (Alone with its own key a query
  // has no gradient, only the rounding of one.)
  expect_parity({"model.layer_pattern=W*", "model.window=[2, 40, 7, 200]"}, {{1, 3}, {2, 4}});
}

TEST(Parity, ProjectedKeys) {
  const std::vector<std::string> projected = {"model.layer_pattern=P*", "model.projected_keys=12",
                                              "model.causal=false", "data.documents=false",
                                              "data.objective=masked"};
  expect_parity(projected, {{1, 3}, {2, 2}, {1, 8}});
  std::vector<std::string> short_samples = projected;  // as many rows as tokens, and empty shards
  short_samples.insert(short_samples.end(), {"data.seq_length=5", "model.projected_keys=5"});
  expect_parity(short_samples, {{1, 8}, {5, 1}});
  std::vector<std::string> single = projected;
  single.push_back("train.precision=f32");
  expect_parity(single, {{1, 3}});
  std::vector<std::string> again = projected;
  again.push_back("train.recompute=attention_output");
  expect_parity(again, {{1, 3}});
}

TEST(Parity, WithEveryStrategy) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    const std::string attention = concat("sequence.attention=", strategy.name);
    expect_parity({attention}, {{1, 3}, {2, 2}, {1, 8}});
    expect_parity({attention, "train.precision=f32"}, {{1, 5}});
    expect_parity({attention, "model.causal=false"}, {{1, 4}});
    // Without grouped queries LightSeq's early ranks help.
    expect_parity({attention, "model.num_key_value_heads=8"}, {{1, 3}, {1, 5}});
  }
}

TEST(Parity, WithAStrategyALayer) {
  expect_parity({"sequence.attention=[ring, lightseq, allgather, ulysses, rsa, auto, ring, rsa]",
                 "model.num_key_value_heads=4"},
                {{1, 3}, {2, 4}});
}

TEST(Parity, Recomputing) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect_parity({"model.layer_pattern=W*", "model.window=7", concat("train.recompute=", policy)},
                  {{1, 3}, {2, 2}});
  }
}

class FullParity : public testing::TestWithParam<std::tuple<int, bool, const char*>> {};

TEST_P(FullParity, EveryMesh) {
  const auto& [length, documents, precision] = GetParam();
  expect_parity(
      {concat("data.seq_length=", length), concat("data.documents=", documents ? "true" : "false"),
       concat("train.precision=", precision)},
      all_meshes());
}

INSTANTIATE_TEST_SUITE_P(Lengths, FullParity,
                         testing::Combine(testing::Values(101, 193, 257, 256), testing::Bool(),
                                          testing::Values("f64", "f32")));

// ---- Mutants: what parity must find, and where

/// What a mutant of a three-rank run is found as.
ParityReport report_of(const RecordingHooks& hooks, int data = 1, int sequence = 3) {
  const Config config = parity_config({"train.steps=1"});
  const Recording reference = record(on_one_rank(config));
  return parity(on_mesh(config, data, sequence), reference, hooks);
}

/// The same of a flawed strategy.
template <class Strategy>
ParityReport report_of_flawed() {
  const AttentionStrategy strategy{"flawed", "",
                                   [] { return std::unique_ptr<AttentionParallel>(new Strategy); }};
  RecordingHooks hooks;
  hooks.stand_ins.attention = &strategy;
  return report_of(hooks);
}

/// Ring attention with a flaw in one layer.
class FlawedRing : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    ring_->forward(shard.layer == kLayer ? flawed(shard, ctx) : shard, out, lse, ctx);
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    ring_->backward(shard, out, lse, dout, gradients, ctx);
  }

  static constexpr int kLayer = 3;

 protected:
  virtual AttentionShard flawed(const AttentionShard& shard, StepContext& ctx) = 0;

  std::unique_ptr<AttentionParallel> ring_ = make_ring_attention();
};

/// Does not look at the block of the previous rank.
class SkipsABlock final : public FlawedRing {
  AttentionShard flawed(const AttentionShard& shard, StepContext& ctx) override {
    AttentionShard narrowed = shard;
    begin_ = copy_of(shard.key_begin);
    narrowed.key_begin = begin_;
    const int64_t first_own = shard.cuts.begin(ctx.mesh.at(Axis::sequence));
    for (int64_t i = 0; i < begin_.view().numel(); ++i) {
      int64_t& begin = begin_.view().as<int64_t>()[i];
      begin = std::max(begin, first_own);
    }
    return narrowed;
  }

  Owned begin_;
};

TEST(Mutant, ASkippedBlockIsFound) {
  const ParityReport report = report_of_flawed<SkipsABlock>();
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.3");
  EXPECT_EQ(report.first_tensor, "layers.3.out");
  EXPECT_GT(report.oracle, 1e-3);
}

/// Takes ranks 1 and 2 for one another: the ring's blocks arrive under the wrong owner's name.
class SwapsRanks final : public FlawedRing {
  AttentionShard flawed(const AttentionShard& shard, StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence);
    const int partner = ring.rank() == 0 ? 0 : 3 - ring.rank();
    AttentionShard swapped = shard;
    k_ = copy_of(shard.k);
    swapped.k = k_;
    if (partner != ring.rank()) {
      // Of shards that differ by a token the shorter length travels.
      const int64_t tokens = std::min(shard.cuts.size(ring.rank()), shard.cuts.size(partner));
      const Owned mine = copy_of(shard.k.slice(1, 0, tokens));
      const Owned theirs = copy_of(shard.k.slice(1, 0, tokens));
      ring.exchange({send_to(partner, mine), receive_from(partner, theirs)}, {}, ctx.compute)
          .wait();
      cpu::copy({.y = k_.view().slice(1, 0, tokens), .x = theirs});
    } else {
      ring.exchange({}, {}, ctx.compute).wait();
    }
    return swapped;
  }

  Owned k_;
};

TEST(Mutant, ASwappedPairOfRanksIsFound) {
  const ParityReport report = report_of_flawed<SwapsRanks>();
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.3");
  EXPECT_EQ(report.first_tensor, "layers.3.out");
}

TEST(Mutant, ADoubleCountedGradientIsFound) {
  RecordingHooks hooks;
  // Rank 1 adds its part of one tensor twice.
  hooks.probe = [](Trainer& trainer, const Observation& seen) {
    if (trainer.mesh().rank() != 1 || seen.name != "layers.5.dmixer") return;
    for (const Parameter* p : trainer.parameters().parameters()) {
      if (p->name != "model.layers.5.mlp.up_proj.weight") continue;
      const Tensor gradient = trainer.parameters().gradient(*p);
      add({.y = gradient, .a = gradient, .b = gradient}, trainer.compute());
    }
  };
  for (const auto& [data, sequence] : {std::pair{1, 3}, {3, 1}}) {
    const ParityReport report = report_of(hooks, data, sequence);
    EXPECT_FALSE(report.ok);
    EXPECT_EQ(report.first, "layers.5");
    EXPECT_EQ(report.first_tensor, "model.layers.5.mlp.up_proj.weight");
    EXPECT_LE(report.loss, 1e-11);
  }
}

TEST(Mutant, ALabelShiftedPerShardIsFound) {
  RecordingHooks hooks;
  hooks.batches = [](std::vector<Batch>& batches) {  // the last token of a shard loses its label
    for (Batch& batch : batches) {
      const int64_t T = batch.end - batch.begin;
      for (size_t b = 0; b < batch.segments.size(); ++b) batch.labels[b * T + T - 1] = -1;
    }
  };
  const ParityReport report = report_of(hooks);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "head");
  EXPECT_EQ(report.first_tensor, "loss of step 0");
}

TEST(Mutant, APositionOffsetIsFound) {
  RecordingHooks hooks;
  hooks.probe = [](Trainer&, const Observation& seen) {
    const Tensor& value = seen.value;
    if (seen.name != "positions" || value.numel() == 0) return;
    // Every shard counts from its own start.
    const int64_t first = value.as<int64_t>()[0];
    for (int64_t i = 0; i < value.numel(); ++i) value.as<int64_t>()[i] -= first;
  };
  const ParityReport report = report_of(hooks);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.0");
  EXPECT_EQ(report.first_tensor, "layers.0.q");
}

/// Posts an exchange of its keys in layer 3 and goes on without waiting for what arrives.
class ForgetsToWait final : public FlawedRing {
  AttentionShard flawed(const AttentionShard& shard, StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence);
    AttentionShard fetched = shard;
    const int64_t tokens = shard.cuts.size(ring.rank());
    k_ = Owned(shard.k.dtype, {shard.k.dim(0), tokens, shard.k.dim(2), shard.k.dim(3)});
    fetched.k = k_;
    // Round the ring and back: what arrives is what was sent, for whoever waits.
    const Tensor own = shard.k;
    forth_ = Owned(own.dtype, {own.dim(0), shard.cuts.size(ring.prev()), own.dim(2), own.dim(3)});
    ring.exchange({send_to(ring.next(), own), receive_from(ring.prev(), forth_)}, {}, ctx.compute)
        .wait();
    const Event arrived = ring.exchange(
        {send_to(ring.prev(), forth_), receive_from(ring.next(), k_)}, {}, ctx.compute);
    if (waits) arrived.wait();
    return fetched;
  }

 public:
  static bool waits;

 private:
  Owned k_, forth_;
};

bool ForgetsToWait::waits = false;

TEST(Mutant, AMissingWaitIsFound) {
  set_late_delivery(true);
  ForgetsToWait::waits = true;
  EXPECT_TRUE(report_of_flawed<ForgetsToWait>().ok);
  ForgetsToWait::waits = false;
  const ParityReport report = report_of_flawed<ForgetsToWait>();
  set_late_delivery(false);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.3");
  EXPECT_EQ(report.first_tensor, "layers.3.out");
}

// ---- Leaks

TEST(Leak, APerturbedDocumentLeavesTheOthersBitIdentical) {
  for (const auto& [data, sequence] :
       {std::pair{1, 1}, {1, 2}, {1, 3}, {2, 2}, {1, 5}, {4, 2}, {1, 8}}) {
    expect_no_leak({"sequence.attention=ring"}, data, sequence);
  }
  for (const AttentionStrategy& strategy : attention_strategies()) {
    for (const int sequence : {1, 3, 4}) {
      expect_no_leak({concat("sequence.attention=", strategy.name)}, 1, sequence);
    }
  }
}

}  // namespace
}  // namespace weft
