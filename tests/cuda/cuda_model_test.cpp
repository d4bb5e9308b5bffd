// Whole training steps on GPUs, in f32 and bf16: golden models, parity with one rank and with the
// naive oracle, the CPU's results, equal bits in two runs, what a step waits for.
#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <mutex>
#include <thread>

#include "launch/samples.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"
#include "src/tensor/arena.hpp"
#include "tests/cuda/rank_starts.hpp"
#include "tests/golden_run.hpp"
#include "tests/parity_testing.hpp"
#include "tests/start_values_testing.hpp"
#include "tests/steps_ahead_testing.hpp"

namespace weft {
namespace {

/// configs/parity.yaml in f32 on a GPU, with some keys set.
Config gpu_config(const Sets& sets = {}) {
  return parity_config(joined({"train.device=cuda", "train.precision=f32"}, sets));
}

/// Reads of memory that nobody wrote show.
class PoisonedTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
    set_poison(true);
  }
  void TearDown() override { set_poison(false); }
};

// ---- Every way to start ranks

class ModelsOnGpus : public OnGpus {
 protected:
  void SetUp() override {
    OnGpus::SetUp();
    set_poison(true);
  }
  void TearDown() override { set_poison(false); }

  int ranks() const { return GetParam().ranks; }

  /// The config over the sequence axis, and over both where the ranks allow it.
  std::vector<Config> meshes_of(const Config& config) const {
    std::vector<Config> meshes{on_mesh(config, 1, ranks())};
    if (ranks() % 2 == 0) meshes.push_back(on_mesh(config, 2, ranks() / 2));
    return meshes;
  }
};
INSTANTIATE_TEST_SUITE_P(Cuda, ModelsOnGpus, testing::ValuesIn(kRankStarts), start_name);

TEST_P(ModelsOnGpus, TrainGoldenModels) {
  for (const std::string& name : golden_cases("llama-", /*folders=*/true)) {
    const std::string folder = golden_folder() + "/" + name;
    const Expected expected(folder);
    for (const std::string& strategy : attention_strategy_names()) {
      SCOPED_TRACE(name + ", " + strategy);
      Config config =
          golden_config(folder, expected, DType::f32, mesh_along(Axis::sequence, ranks()));
      config.train.device = DeviceChoice::cuda;
      config.sequence.attention = {strategy};
      expect_golden(GoldenRun(folder, expected, config).run(GetParam()), expected);
    }
  }
}

TEST_P(ModelsOnGpus, EqualOneRank) {
  const Config config = gpu_config({"model.layer_pattern=*W", "model.window=7"});
  const Recording reference = record(on_one_rank(config));
  for (const Config& here : meshes_of(config)) {
    const Recording run = record_on(GetParam(), here);
    expect_ok(compare_runs(here, *open_samples(here), reference, run), here);
  }
}

/// Transfers through the host wait for a GPU; nothing else inside a step does.
TEST_P(ModelsOnGpus, WaitForNoGpuInsideAStep) {
  const Config config = on_mesh(gpu_config(), 1, ranks());
  const bool staged = GetParam().transport == RankStart::Transport::staged;
  const auto source = open_samples(config);
  GetParam()([&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    for (int64_t step = 0; step < 3; ++step) {
      const int64_t before = trainer.host_waits();
      trainer.enqueue(step, loader.load(step), loader.global_labels(step));
      const int64_t enqueued = trainer.host_waits();
      if (staged) {
        EXPECT_GT(enqueued, before);
      } else {
        EXPECT_EQ(enqueued, before);
      }
      trainer.report();
      EXPECT_LE(trainer.host_waits(), enqueued + 1);
    }
  });
}

// ---- Models and meshes, on threads that share a card

class ParityOnAGpu : public PoisonedTest {
 protected:
  static void expect(const Sets& sets, const std::vector<std::pair<int, int>>& meshes) {
    expect_parity(joined({"train.device=cuda", "train.precision=f32"}, sets), meshes);
  }
};

TEST_F(ParityOnAGpu, OfSoftmaxAttentionWithEveryStrategy) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    SCOPED_TRACE(strategy.name);
    const std::string attention = concat("sequence.attention=", strategy.name);
    expect({attention}, {{1, 3}, {2, 2}, {1, 8}});
    expect({attention, "model.causal=false"}, {{1, 4}});
    expect({attention, "model.num_key_value_heads=8"}, {{1, 5}});
  }
}

TEST_F(ParityOnAGpu, OfLengthsAndDocuments) {
  expect({"data.seq_length=193"}, {{1, 3}, {5, 1}});
  expect({"data.documents=false", "data.seq_length=256"}, {{1, 4}, {3, 2}});
  expect({"data.seq_length=5", "data.documents=false", "train.global_batch_size=2"},
         {{5, 1}, {1, 8}, {4, 2}});  // ranks without a sample or a token
}

TEST_F(ParityOnAGpu, OfTiedHeadsAndMaskedTokens) {
  expect({"model.tie_word_embeddings=true"}, {{2, 3}});
  expect({"model.causal=false", "data.objective=masked", "data.mask_fraction=0.01"}, {{2, 3}});
}

TEST_F(ParityOnAGpu, OfWindows) {
  expect({"model.layer_pattern=W*", "model.window=7"}, {{1, 3}, {2, 2}, {1, 8}});
  expect({"model.layer_pattern=*WW", "model.window=50"}, {{1, 5}});
  expect({"model.layer_pattern=W*", "model.window=[2, 40, 7, 200]"}, {{1, 3}});
}

TEST_F(ParityOnAGpu, OfProjectedKeys) {
  expect({"model.layer_pattern=P*", "model.projected_keys=12", "model.causal=false",
          "data.documents=false", "data.objective=masked"},
         {{1, 3}, {2, 2}, {1, 8}});
}

TEST_F(ParityOnAGpu, OverTheTensorAxis) {
  const auto over = [](const Sets& sets, const std::vector<std::array<int, 3>>& meshes) {
    std::vector<MeshShape> shapes;
    for (const auto& [data, sequence, tensor] : meshes) {
      shapes.push_back({.size = {data, 1, sequence, tensor}});
    }
    expect_mesh_parity(joined({"train.device=cuda", "train.precision=f32"}, sets), shapes);
  };
  over({}, {{1, 1, 2}, {1, 1, 8}, {1, 2, 4}, {2, 1, 2}});
  over({"model.num_attention_heads=14", "model.num_key_value_heads=7", "model.vocab_size=61",
        "model.intermediate_size=47", "model.num_hidden_layers=3", "data.seq_length=53"},
       {{1, 1, 3}, {1, 2, 5}});
  over({"model.tie_word_embeddings=true", "model.layer_pattern=W*", "model.window=7",
        "train.recompute=layer"},
       {{1, 3, 2}, {1, 1, 4}});
  over({"model.layer_pattern=P*", "model.projected_keys=12", "model.causal=false",
        "data.documents=false", "data.objective=masked"},
       {{1, 2, 4}});
  for (const char* family : {"basic", "lightning", "retention", "simple_gla", "gla"}) {
    SCOPED_TRACE(family);
    over({"model.num_hidden_layers=4", "model.layer_pattern=LG*L", "train.steps=1",
          concat("model.linear.family=", family)},
         {{1, 1, 4}, {1, 2, 2}});
  }
}

TEST_F(ParityOnAGpu, OfRecomputation) {
  for (const char* policy : {"layer", "attention_output"}) {
    expect({"model.layer_pattern=W*", "model.window=7", concat("train.recompute=", policy)},
           {{1, 3}, {2, 2}});
  }
}

TEST_F(ParityOnAGpu, OfLinearAttentionWithEveryScan) {
  for (const StateScanKind& scan : state_scans()) {
    SCOPED_TRACE(scan.name);
    const std::string state = concat("sequence.state=", scan.name);
    const Sets gla = {"model.num_hidden_layers=4", "model.layer_pattern=L*L",
                      "model.linear.family=gla", state};
    expect(gla, {{1, 3}});
    // One step: in f32 three of them end 1.2e-4 apart on one rank and on eight of the CPU too.
    expect(joined(gla, {"train.steps=1"}), {{1, 8}});
    expect({"model.num_hidden_layers=4", "model.layer_pattern=G*G", state}, {{1, 3}, {2, 2}});
  }
}

TEST_F(ParityOnAGpu, OfEveryLinearFamily) {
  for (const char* family : {"basic", "lightning", "retention", "simple_gla", "gla"}) {
    SCOPED_TRACE(family);
    expect({"model.num_hidden_layers=4", "model.layer_pattern=L*L",
            concat("model.linear.family=", family), "data.seq_length=389",
            "train.global_batch_size=2"},
           {{1, 2}, {1, 3}});
  }
}

/// The distance of all gradients of step 0 to those of another run, relative to these.
double gradient_distance(const Recording& run, const Recording& reference) {
  double off = 0, size = 0;
  for (size_t i = 0; i < reference.gradients[0].size(); ++i) {
    const std::vector<double>& wanted = reference.gradients[0][i].values;
    for (size_t j = 0; j < wanted.size(); ++j) {
      const double difference = run.gradients[0][i].values[j] - wanted[j];
      off += difference * difference;
      size += wanted[j] * wanted[j];
    }
  }
  return std::sqrt(off / size);
}

/// In bf16 a cut moves the places where numbers are rounded, and how far that carries depends on
/// the model alone. So several ranks must be as near to f32 as one rank is.
class Bf16OnAGpu : public PoisonedTest {
 protected:
  static void expect_as_near_as_one_rank(const std::string& what, const Sets& sets) {
    SCOPED_TRACE(what);
    const Sets small = joined({"model.num_hidden_layers=3", "model.hidden_size=64",
                               "data.seq_length=389", "train.global_batch_size=2", "train.steps=1"},
                              sets);
    const Recording exact = record(on_one_rank(gpu_config(small)));
    const Config config = gpu_config(joined(small, {"train.precision=bf16"}));
    const Recording alone = record(on_one_rank(config));
    const double bound = gradient_distance(alone, exact);
    EXPECT_GT(bound, 1e-3);
    EXPECT_LE(bound, 0.1);
    EXPECT_NEAR(alone.losses[0] / exact.losses[0], 1, 1e-3);
    for (const int ranks : {2, 4, 8}) {
      const Recording run = record(on_mesh(config, 1, ranks));
      const double distance = gradient_distance(run, exact);
      std::printf("%s, %d ranks: gradients %.2e from f32, one rank %.2e\n", what.c_str(), ranks,
                  distance, bound);
      EXPECT_LE(distance, 1.5 * bound) << ranks;
      EXPECT_NEAR(run.losses[0] / exact.losses[0], 1, 1e-3) << ranks;
    }
  }
};

TEST_F(Bf16OnAGpu, OfEveryStateMixer) {
  for (const char* family : {"basic", "lightning", "retention", "simple_gla", "gla"}) {
    expect_as_near_as_one_rank(family, {"model.layer_pattern=L", "model.linear.num_heads=2",
                                        concat("model.linear.family=", family)});
  }
  expect_as_near_as_one_rank(
      "G", {"model.layer_pattern=G", "model.delta.num_heads=2", "model.delta.head_dim=16"});
}

/// Four query heads share two kv heads of 16. Documents go to own kernels, one document to cuDNN.
class SoftmaxInBf16OnAGpu : public Bf16OnAGpu {
 protected:
  void SetUp() override {
    PoisonedTest::SetUp();
    if (!IsSkipped() && !cuda::has_cudnn()) GTEST_SKIP() << "no cuDNN in this build";
  }

  static void expect(const std::string& what, const Sets& sets) {
    const Sets heads = {"model.num_attention_heads=4", "model.num_key_value_heads=2",
                        "model.head_dim=16"};
    expect_as_near_as_one_rank(what, joined(heads, sets));
  }
};

TEST_F(SoftmaxInBf16OnAGpu, WithEveryStrategy) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    const std::string attention = concat("sequence.attention=", strategy.name);
    expect(concat(strategy.name, ", documents"), {attention});
    expect(concat(strategy.name, ", one document"), {attention, "data.documents=false"});
    expect(concat(strategy.name, ", both ways"),
           {attention, "data.documents=false", "model.causal=false"});
  }
}

TEST_F(SoftmaxInBf16OnAGpu, OfWindowsProjectedKeysAndHybrids) {
  expect("windows, documents", {"model.layer_pattern=W*", "model.window=40"});
  expect("windows", {"model.layer_pattern=W*", "model.window=40", "data.documents=false"});
  expect("projected keys", {"model.layer_pattern=P*", "model.projected_keys=12",
                            "model.causal=false", "data.documents=false", "data.objective=masked"});
  expect("hybrid",
         {"model.layer_pattern=L*G", "model.linear.num_heads=2", "model.linear.family=gla",
          "model.delta.num_heads=2", "model.delta.head_dim=16", "data.documents=false"});
}

/// Masters are the file's numbers, and at a learning rate of 0 a step leaves them so; the loss is
/// the golden run's but for the rounding of the weights and of what is computed.
TEST_F(SoftmaxInBf16OnAGpu, StartsFromAFileInItsOwnPrecision) {
  const std::string folder = golden_folder() + "/llama-gqa";
  const Expected expected(folder);
  const WholeValues wanted = values_of_file(folder);
  const double loss = expected.read("loss")[0];
  for (const int ranks : {1, 2}) {
    Config config = golden_config(folder, expected, DType::bf16, mesh_along(Axis::sequence, ranks));
    config.train.device = DeviceChoice::cuda;
    config.optimizer.lr = 0;
    const Cuts cuts = Cuts::even(expected.length, ranks);
    threads_of(config)([&](World& world) {
      Trainer trainer(config, world, plan_step(config, world.rank()).memory);
      load_hf_weights(folder, config.model, trainer.start_values(), trainer.compute());
      EXPECT_GT(expect_values(trainer.masters(), wanted, trainer.compute()), 0);
      const Batch batch = expected.batch(0, 0, expected.sequences, cuts.begin(world.rank()),
                                         cuts.end(world.rank()));
      const StepReport report = trainer.step(0, {&batch, 1}, expected.sequences * expected.length);
      std::printf("%d ranks: loss %.6f, golden %.6f\n", ranks, report.loss, loss);
      EXPECT_NEAR(report.loss / loss, 1, 1e-3);
      expect_values(trainer.start_values(), wanted, trainer.compute());
    });
  }
}

/// A mistake on a GPU is found where it is: reports are of what the GPU computed.
TEST_F(ParityOnAGpu, FindsAWrongToken) {
  const Config config = gpu_config({"train.steps=1"});
  const Recording reference = record(on_one_rank(config));
  RecordingHooks hooks;
  hooks.batches = [](std::vector<Batch>& batches) {
    for (Batch& batch : batches) {
      if (batch.begin > 0 && !batch.tokens.empty()) batch.tokens[0] = 63 - batch.tokens[0];
    }
  };
  const ParityReport report = parity(on_mesh(config, 1, 3), reference, hooks);
  EXPECT_FALSE(report.ok);
  EXPECT_EQ(report.first, "embedding");
}

// ---- The CPU, two runs, a step that must not be taken

class ModelOnAGpu : public PoisonedTest {};

TEST_F(ModelOnAGpu, ComputesWhatTheCpuDoes) {
  const Config config = gpu_config({"model.layer_pattern=*W", "model.window=7"});
  Config on_cpu = config;
  on_cpu.train.device = DeviceChoice::cpu;
  const Config here = on_mesh(config, 1, 2);
  expect_ok(parity(here, record(on_cpu)), here);
}

void expect_same_bits(const std::vector<Recording::Entry>& a,
                      const std::vector<Recording::Entry>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_TRUE(same_bits(a[i].values, b[i].values)) << a[i].name;
  }
}

/// Of losses, activations, gradients and parameters. Gives what one of them recorded.
Recording expect_same_bits_in_two_runs(const Config& config) {
  SCOPED_TRACE(concat(config.sequence.attention[0], ", ", config.mesh.text()));
  const Recording first = record(config), second = record(config);
  EXPECT_TRUE(same_bits(first.losses, second.losses));
  expect_same_bits(first.activations, second.activations);
  for (size_t step = 0; step < first.gradients.size(); ++step) {
    expect_same_bits(first.gradients[step], second.gradients[step]);
    expect_same_bits(first.parameters[step + 1], second.parameters[step + 1]);
  }
  return first;
}

TEST_F(ModelOnAGpu, HasEqualBitsInTwoRuns) {
  for (const auto& [data, sequence] : {std::pair{1, 1}, {1, 4}, {2, 2}}) {
    for (const AttentionStrategy& strategy : attention_strategies()) {
      expect_same_bits_in_two_runs(
          on_mesh(gpu_config({concat("sequence.attention=", strategy.name)}), data, sequence));
    }
  }
}

/// One document of several of cuDNN's tiles, which would add to dq atomically. Where it would, own
/// kernels round elsewhere: the bits also tell that they were asked.
TEST_F(SoftmaxInBf16OnAGpu, HasEqualBitsInTwoRunsWhereAskedTo) {
  const auto expect = [](const Sets& sets, int data, int sequence, bool by_cudnn = true) {
    const Sets small = {
        "train.precision=bf16",        "data.documents=false",        "data.seq_length=389",
        "model.hidden_size=64",        "model.num_hidden_layers=2",   "model.head_dim=16",
        "model.num_attention_heads=4", "model.num_key_value_heads=2", "train.micro_batch_size=1"};
    Config config = on_mesh(gpu_config(joined(small, sets)), data, sequence);
    const Recording unasked = record(config);
    config.train.deterministic = true;
    const Recording asked = expect_same_bits_in_two_runs(config);
    // Of the last layer, whose gradients come through no other attention.
    const auto gradient = [](const Recording& run) {
      return Recording::find(run.gradients[0], "model.layers.1.self_attn.q_proj.weight")->values;
    };
    EXPECT_NE(same_bits(gradient(asked), gradient(unasked)), by_cudnn)
        << sets[0] << ", " << config.mesh.text();
  };
  for (const auto& [data, sequence] : {std::pair{1, 1}, {1, 2}, {1, 4}, {2, 2}}) {
    for (const AttentionStrategy& strategy : attention_strategies()) {
      const bool rows = std::string_view(strategy.name) == "rsa";  // whole, of matrix products
      expect({concat("sequence.attention=", strategy.name)}, data, sequence, !rows);
    }
    expect({"model.layer_pattern=W", "model.window=140"}, data, sequence);
    expect({"model.layer_pattern=P", "model.projected_keys=150", "model.causal=false",
            "data.objective=masked"},
           data, sequence);
    expect({"train.recompute=layer", "optimizer.zero=3"}, data, sequence);
  }
}

/// Fewer kernels a step than a card queues.
Config small_gpu_config(const Sets& sets = {}) {
  return gpu_config(
      joined({"data.seq_length=64", "train.global_batch_size=2", "train.micro_batch_size=2",
              "model.num_hidden_layers=2", "train.steps=5"},
             sets));
}

TEST_F(ModelOnAGpu, EqualsAStepAheadAHostThatWaits) {
  expect_same_steps_ahead(on_one_rank(small_gpu_config()));
  expect_same_steps_ahead(on_mesh(small_gpu_config({"optimizer.zero=3"}), 2, 2));
  expect_same_steps_ahead(on_mesh(small_gpu_config({"train.micro_batch_size=1"}), 1, 2));
}

TEST_F(ModelOnAGpu, TakesNoStepFromABadOneOn) {
  for (const char* optimizer : {"adamw", "muon"}) {
    SCOPED_TRACE(optimizer);
    const Sets sets = {concat("optimizer.name=", optimizer)};
    expect_no_step_from_a_bad_one_on(on_one_rank(small_gpu_config(sets)));
    expect_no_step_from_a_bad_one_on(on_mesh(small_gpu_config(sets), 1, 2));
    const Sets bf16 = {"train.precision=bf16", "model.layer_pattern=L",
                       "model.linear.family=lightning"};
    expect_no_step_from_a_bad_one_on(on_mesh(small_gpu_config(joined(sets, bf16)), 2, 1));
  }
}

/// The host enqueues two steps, from batches that are gone then, while the GPU stands still.
TEST_F(ModelOnAGpu, HasTwoStepsInFlight) {
  const Config config = on_one_rank(small_gpu_config());
  const auto source = open_samples(config);
  threads_of(config)([&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    for (const int64_t step : {0, 1}) {  // which load what a kernel's first call loads
      trainer.step(step, loader.load(step), loader.global_labels(step));
    }
    std::promise<void> go;
    std::atomic<bool> waited_for = false;
    trainer.compute().enqueue([&waited_for, gone = go.get_future().share()] {
      waited_for = gone.wait_for(std::chrono::seconds(20)) != std::future_status::ready;
    });
    const int64_t before = trainer.host_waits();
    for (const int64_t step : {2, 3}) {
      trainer.enqueue(step, loader.load(step), loader.global_labels(step));
    }
    EXPECT_EQ(trainer.host_waits(), before);
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      go.set_value();
    });
    trainer.report();
    EXPECT_EQ(trainer.host_waits(), before + 1);
    trainer.report();
    later.join();
    EXPECT_FALSE(waited_for) << "the host waited for the GPU inside a step";
  });
}

}  // namespace
}  // namespace weft
