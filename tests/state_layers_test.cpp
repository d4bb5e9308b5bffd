// Models with layers of linear attention: any mesh and any scan equals one rank and the naive
// recurrence; recomputation gives the same bits and sends nothing; mistakes are found in their
// layer.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "models/state_family.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/leak_testing.hpp"
#include "tests/recompute_testing.hpp"

namespace weft {
namespace {

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

std::string state(const StateScanKind& scan) {
  return concat("sequence.state=", scan.name);
}

class StateParity : public testing::TestWithParam<std::pair<std::string, Sets>> {};
INSTANTIATE_TEST_SUITE_P(Of, StateParity, testing::ValuesIn(hybrids()),
                         [](const auto& test) { return test.param.first; });

TEST_P(StateParity, WithEveryScan) {
  const Sets& sets = GetParam().second;
  for (const StateScanKind& scan : state_scans()) {
    expect_parity(joined(sets, {state(scan)}), {{1, 3}, {1, 8}});
    expect_parity(joined(sets, {state(scan), "train.precision=f32"}), {{1, 5}});
  }
}

/// Chunks of 64 tokens that are whole, cut and of documents; shards of a few tokens and of none.
TEST_P(StateParity, OfLongAndShortShards) {
  const Sets& sets = GetParam().second;
  expect_parity(joined(sets, {"data.seq_length=389", "train.global_batch_size=2"}),
                {{1, 2}, {1, 3}});
  expect_parity(joined(sets, {"data.seq_length=256", "data.documents=false"}), {{1, 4}});
  expect_parity(joined(sets, {"data.seq_length=5"}), {{1, 8}, {5, 1}});
}

TEST_P(StateParity, Recomputing) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect_parity(joined(GetParam().second, {concat("train.recompute=", policy)}),
                  {{1, 3}, {2, 2}});
  }
}

TEST(StateKeys, OfKeysThatAreNotTheFamilys) {
  const Sets small = {"model.num_hidden_layers=3", "model.layer_pattern=L"};
  expect_parity(joined(small, {"model.linear.family=gla", "model.linear.short_conv=3",
                               "model.linear.feature_map=elu", "model.linear.num_heads=2",
                               "model.linear.expand_k=1", "model.linear.expand_v=2",
                               "model.linear.gate_rank=5", "model.linear.output_gate=false"}),
                {{1, 3}, {1, 8}});
  expect_parity(joined(small, {"model.linear.family=basic", "model.linear.feature_map=relu",
                               "model.linear.output_gate=true", "model.linear.short_conv=1"}),
                {{1, 3}});
  expect_parity(joined(small, {"model.linear.family=lightning", "model.linear.short_conv=16"}),
                {{1, 3}, {1, 8}});  // halos from many ranks
  expect_parity({"model.num_hidden_layers=3", "model.layer_pattern=G", "model.delta.num_heads=3",
                 "model.delta.head_dim=6", "model.delta.expand_v=0.5", "model.delta.short_conv=0",
                 "model.delta.output_gate=false", "model.delta.negative_eigenvalues=true"},
                {{1, 3}, {1, 8}});
}

TEST(StateKeys, WithAScanALayer) {
  const Sets sets = {"model.layer_pattern=LG*W", "model.window=9", "model.linear.family=gla"};
  expect_parity(joined(sets, {"sequence.state=[lasp, auto, doubling, two_level]",
                              "sequence.attention=[lightseq, ulysses]"}),
                {{1, 3}, {2, 4}});
  expect_parity(joined(sets, {"sequence.zeco_blocks=3"}), {{1, 5}});
  expect_parity(joined(sets, {"sequence.state=two_level", "sequence.group=3"}), {{1, 8}});
}

// ---- Recomputation

TEST_P(StateParity, RecomputedBitsAreThoseOfWhatWasDropped) {
  const bool before = poison();
  set_poison(true);  // a slot that is read and was not computed again is NaN
  for (const char* precision : {"f32", "f64"}) {
    for (const int ranks : {1, 3, 4}) {
      const Config config =
          on_mesh(parity_config(joined(GetParam().second, {"train.steps=1", "data.seq_length=141",
                                                           concat("train.precision=", precision)})),
                  1, ranks);
      expect_same_bits(config, concat(precision, ", ", ranks, " ranks"));
    }
  }
  set_poison(before);
}

/// Bytes that all ranks together send in a step, by purpose and pass, as the transport counts them.
std::map<std::pair<Tag::Purpose, Tag::Pass>, int64_t> bytes_sent(const Config& config) {
  std::map<std::pair<Tag::Purpose, Tag::Pass>, int64_t> sent;
  std::mutex mutex;
  RecordingHooks hooks;
  hooks.gradients = [&](Trainer& trainer) {
    const std::lock_guard lock(mutex);
    for (const auto& [key, bytes] : trainer.counted().entries()) {
      sent[{key.tag.purpose, key.tag.pass}] += bytes;
    }
  };
  record(config, hooks);
  return sent;
}

TEST_P(StateParity, RecomputationSendsNothing) {
  for (const StateScanKind& scan : state_scans()) {
    const Sets sets =
        joined(GetParam().second,
               {"train.steps=1", "sequence.attention=ring",
                "model.layer_pattern=" + std::string(GetParam().first == "gated_delta" ? "G" : "L"),
                state(scan)});
    Config config = on_mesh(parity_config(sets), 1, 4);
    const auto none = bytes_sent(config);
    EXPECT_GT(none.at({Tag::Purpose::state, Tag::Pass::forward}), 0);
    EXPECT_GT(none.at({Tag::Purpose::state, Tag::Pass::backward}), 0);
    for (const Recompute policy : {Recompute::attention_output, Recompute::layer}) {
      config.train.recompute = policy;
      EXPECT_EQ(bytes_sent(config), none) << scan.name;
    }
  }
}

// ---- Leaks

/// Through no state and no convolution, by no scan.
TEST_P(StateParity, APerturbedDocumentLeavesTheOthersBitIdentical) {
  for (const StateScanKind& scan : state_scans()) {
    for (const int sequence : {1, 3, 8}) {
      expect_no_leak(joined(GetParam().second, {state(scan)}), 1, sequence);
    }
  }
}

// ---- Mutants: what parity must find, and where

/// The scan that a flawed one spoils in one layer.
constexpr int kLayer = 2;

/// zeco, with a flaw in layer 2.
class FlawedScan : public StateScan {
 public:
  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    if (tag.layer != kLayer) return sound_->begin(element, entering, direction, tag, ctx);
    return begin_flawed(element, entering, direction, tag, ctx);
  }

 protected:
  virtual PendingScan begin_flawed(const ScanElement& element, const Tensor& entering,
                                   ScanDirection direction, const Tag& tag, StepContext& ctx) = 0;
  std::unique_ptr<StateScan> sound_ = make_zeco_scan({});
};

template <class Scan>
ParityReport report_of_flawed(const Sets& sets) {
  const Config config = parity_config(joined(sets, {"train.steps=1"}));
  const Recording reference = record(on_one_rank(config));
  static const StateScanKind flawed{
      "flawed", "", [](const StateScanOptions&) { return std::unique_ptr<StateScan>(new Scan); }};
  RecordingHooks hooks;
  hooks.stand_ins.scan = &flawed;
  return parity(on_mesh(config, 1, 3), reference, hooks);
}

/// Whatever the shard does to the state, it lets it pass whole.
class DropsTheTransition final : public FlawedScan {
  PendingScan begin_flawed(const ScanElement& element, const Tensor& entering,
                           ScanDirection direction, const Tag& tag, StepContext& ctx) override {
    return sound_->begin({.transition = {}, .state = element.state}, entering, direction, tag, ctx);
  }
};

/// Nothing comes back from the ranks behind.
class NeverComesBack final : public FlawedScan {
  PendingScan begin_flawed(const ScanElement& element, const Tensor& entering,
                           ScanDirection direction, const Tag& tag, StepContext& ctx) override {
    if (direction == ScanDirection::prefix) {
      return sound_->begin(element, entering, direction, tag, ctx);
    }
    fill({.y = entering, .value = 0}, ctx.compute);
    return PendingScan(entering, {}, ctx.compute);
  }
};

TEST_P(StateParity, ADroppedTransitionIsFound) {
  // Documents put a 0 into every transition, also of a family without decay.
  const ParityReport report = report_of_flawed<DropsTheTransition>(GetParam().second);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "layers.2");
  EXPECT_EQ(report.first_tensor, "layers.2.out");
  EXPECT_GT(report.oracle, 1e-6);
}

TEST_P(StateParity, AMissingReverseScanIsFound) {
  const ParityReport report = report_of_flawed<NeverComesBack>(GetParam().second);
  EXPECT_FALSE(report.ok);
  EXPECT_LE(report.loss, 1e-11);
  EXPECT_EQ(report.first, "layers.2");
  EXPECT_GT(report.oracle, 1e-6);
}

}  // namespace
}  // namespace weft
