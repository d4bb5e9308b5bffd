// The whole model against finite differences: hand-written gradients, checked as one.
#include <gtest/gtest.h>

#include "data/synthetic.hpp"
#include "launch/trainer.hpp"
#include "parallel/comm/threads.hpp"
#include "tests/sequence_testing.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

Config tiny_config(bool tied, bool causal) {
  Config config;
  config.model.vocab_size = 17;
  config.model.hidden_size = 12;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  config.model.head_dim = 4;
  config.model.intermediate_size = 10;
  config.model.tie_word_embeddings = tied;
  config.model.causal = causal;
  config.data = {.path = "synthetic", .seq_length = 13, .documents = true};
  config.train.global_batch_size = 3;
  config.train.micro_batch_size = 2;
  config.train.precision = DType::f64;
  config.train.loss_slice = 5;
  config.optimizer.lr = 0;  // steps leave the parameters alone
  config.optimizer.weight_decay = 0;
  return config;
}

/// One rank that can be asked for loss and gradients again and again.
class Asked {
 public:
  Asked(const Config& config, World& world)
      : trainer_(config, world, plan_step(config, 0).memory),
        source_(config.model.vocab_size, config.data.seq_length, 5, config.data.documents),
        loader_(source_, 1, 3, Cuts::even(config.data.seq_length, 1), 0, Cuts::even(3, 1), 0, 2) {}

  double loss() { return trainer_.step(0, loader_.load(0), loader_.global_labels(0)).loss; }

  std::vector<std::vector<double>> gradients() {
    std::vector<std::vector<double>> found;
    trainer_.set_before_update([&] {
      for (const Parameter* p : store().parameters()) {
        found.push_back(values(store().gradient(*p)));
      }
    });
    loss();
    trainer_.set_before_update({});
    return found;
  }

  const ParameterStore& store() const { return trainer_.parameters(); }

 private:
  Trainer trainer_;
  SyntheticSource source_;
  BatchLoader loader_;
};

void expect_finite_differences(const Config& config, size_t parameter_count) {
  run_ranks(1, [&](World& world) {
    Asked model(config, world);
    const auto gradients = model.gradients();
    const auto& parameters = model.store().parameters();
    ASSERT_EQ(parameters.size(), parameter_count);
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_LE(finite_difference([&] { return model.loss(); }, model.store().value(*parameters[i]),
                                  gradients[i], 25),
                1e-6)
          << parameters[i]->name;
    }
  });
}

class ModelGradients : public testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(ModelGradients, EqualFiniteDifferences) {
  const auto [tied, causal] = GetParam();
  expect_finite_differences(tiny_config(tied, causal), tied ? 20 : 21);
}

INSTANTIATE_TEST_SUITE_P(TiedAndCausal, ModelGradients,
                         testing::Combine(testing::Bool(), testing::Bool()));

TEST(WindowGradients, EqualFiniteDifferences) {
  Config config = tiny_config(false, true);
  config.model.layer_pattern = "W*";
  config.model.window = {3};
  expect_finite_differences(config, 21);
}

TEST(ProjectionGradients, EqualFiniteDifferences) {
  Config config = tiny_config(false, false);
  config.model.layer_pattern = "P*";
  config.model.projected_keys = 5;
  config.model.seq_length = config.data.seq_length;
  config.data.documents = false;
  expect_finite_differences(config, 23);
}

/// Both layers are of one family.
struct StateLayers {
  const char* name;
  char letter;
  void (*set)(ModelConfig& model);
  size_t parameters;  // of one layer
};
void PrintTo(const StateLayers& layers, std::ostream* out) {
  *out << layers.name;
}

const StateLayers kStateLayers[] = {
    {"basic", 'L', [](ModelConfig& model) { model.linear.family = "basic"; }, 5},
    {"lightning", 'L', [](ModelConfig& model) { model.linear.family = "lightning"; }, 6},
    {"retention", 'L',
     [](ModelConfig& model) {
       model.linear.family = "retention";
       model.linear.num_heads = 2;
     },
     6},
    {"simple_gla", 'L', [](ModelConfig& model) { model.linear.family = "simple_gla"; }, 11},
    {"gla", 'L',
     [](ModelConfig& model) {
       model.linear.family = "gla";
       model.linear.gate_rank = 3;
       model.linear.num_heads = 2;
     },
     9},
    {"gla_behind_convolutions", 'L',
     [](ModelConfig& model) {
       model.linear.family = "gla";
       model.linear.feature_map = FeatureMap::elu;
       model.linear.num_heads = 2;
       model.linear.output_gate = false;
       model.linear.short_conv = 3;
     },
     11},
    {"gated_delta", 'G', [](ModelConfig& model) { model.delta.num_heads = 2; }, 13},
    {"gated_delta_without_convolutions", 'G',
     [](ModelConfig& model) {
       model.delta.negative_eigenvalues = true;
       model.delta.num_heads = 3;
       model.delta.output_gate = false;
       model.delta.short_conv = 0;
     },
     9},
};

class StateGradients : public testing::TestWithParam<StateLayers> {};

TEST_P(StateGradients, EqualFiniteDifferences) {
  const StateLayers& layers = GetParam();
  Config config = tiny_config(false, true);
  config.model.layer_pattern = layers.letter;
  layers.set(config.model);
  expect_finite_differences(config, 13 + 2 * layers.parameters);
}

INSTANTIATE_TEST_SUITE_P(Of, StateGradients, testing::ValuesIn(kStateLayers),
                         [](const auto& test) { return std::string(test.param.name); });

/// The loss of one step, whose layers are those of `pattern`.
double loss_of(const std::string& pattern, int64_t window) {
  double loss = 0;
  run_ranks(1, [&](World& world) {
    Config config = tiny_config(false, true);
    config.model.layer_pattern = pattern;
    config.model.window = {window};
    Asked model(config, world);
    loss = model.loss();
  });
  return loss;
}

TEST(Windows, AsWideAsTheSequenceAreNone) {
  const double full = loss_of("*", 0);
  EXPECT_EQ(loss_of("W", 13), full);
  EXPECT_EQ(loss_of("W*", 100), full);
  EXPECT_NE(loss_of("W", 3), full);
  EXPECT_NE(loss_of("W", 3), loss_of("W*", 3));
  EXPECT_NE(loss_of("W", 3), loss_of("W", 4));
}

TEST(Windows, BeginInsideTheDocumentAndTheWindow) {
  run_ranks(1, [](World& world) {
    ModelConfig config = tiny_config(false, true).model;
    config.layer_pattern = "W";
    config.num_hidden_layers = 3;
    config.window = {3, 6, 3};
    const Model model(config, {}, 5);
    TestRank rank(world, {});
    Arena slab("frame", Device::cpu, 1 << 16);
    const Cuts cuts = Cuts::of_sizes({5, 8});
    Frame frame(slab, 2, cuts, 1, 0);
    const std::vector<SegmentMap> segments = {SegmentMap(13, {}, true),
                                              SegmentMap(13, {4, 9}, true)};
    const std::vector<int32_t> tokens(16);
    Staging staging(Device::cpu, 0);
    model.begin(0, {.segments = segments, .tokens = tokens, .labels = tokens}, frame, staging,
                rank.context);
    const Tensor begins = frame.peek("window begin");  // of the windows 3 and 6
    ASSERT_TRUE(begins.has_shape({2, 2, 8}));
    for (const int64_t which : {0, 1}) {
      const KeyIntervals expected = key_intervals(segments, 5, 13, {.window = 3 + 3 * which});
      EXPECT_EQ(values(begins.slice(0, which, which + 1)), values(expected.begin));
      EXPECT_EQ(values(frame.peek("key end")), values(expected.end));
    }
  });
}

TEST(InitialValues, DependOnSeedNameAndIndexAlone) {
  const auto initial = [](int ranks, uint64_t seed) {
    std::vector<double> found;
    run_ranks(ranks, [&](World& world) {
      Config config = tiny_config(false, true);
      config.mesh.along(Axis::sequence) = ranks;
      config.train.seed = seed;
      Trainer trainer(config, world, plan_step(config, world.rank()).memory);
      if (world.rank() == ranks - 1) found = values(trainer.parameters().values());
    });
    return found;
  };
  EXPECT_TRUE(same_bits(initial(1, 1), initial(3, 1)));
  EXPECT_FALSE(same_bits(initial(1, 1), initial(1, 2)));
}

TEST(InitialValues, KeepTheirScales) {
  run_ranks(1, [](World& world) {
    Config config = tiny_config(false, true);
    config.model.hidden_size = 400;
    config.model.intermediate_size = 100;
    Trainer trainer(config, world, plan_step(config, 0).memory);
    for (const Parameter* p : trainer.parameters().parameters()) {
      const double scale = rms(values(trainer.parameters().value(*p)));
      const double expected = p->init == Parameter::Init::ones ? 1.0 : p->init_std;
      EXPECT_NEAR(scale / expected, 1, 0.05) << p->name;
    }
  });
}

TEST(Plan, IsTheMemoryOfTheRealStep) {
  for (const int ranks : {1, 3}) {
    run_ranks(ranks, [&](World& world) {
      Config config = tiny_config(false, true);
      config.mesh.along(Axis::sequence) = ranks;
      const StepPlan plan = plan_step(config, world.rank());
      Trainer trainer(config, world, plan.memory);
      const SyntheticSource source(config.model.vocab_size, config.data.seq_length, 5, true);
      const BatchLoader loader(source, 1, 3, Cuts::even(config.data.seq_length, ranks),
                               world.rank(), Cuts::even(3, 1), 0, 2);
      trainer.step(0, loader.load(0), loader.global_labels(0));
      EXPECT_EQ(trainer.peaks().state, plan.memory.state);
      EXPECT_EQ(trainer.peaks().frame_slots, plan.memory.frame_slots);
      EXPECT_EQ(trainer.peaks().scratch, plan.memory.scratch);
    });
  }
}

/// Where it differs: kernels of a GPU have scratch of their own, and inputs are staged.
TEST(Plan, OfAGpuIsForItsKernels) {
  Config config = tiny_config(false, true);
  config.model.layer_pattern = "L";
  config.model.linear.family = "gla";
  config.train.precision = DType::f32;
  const MemoryPlan cpu = plan_step(config, 0).memory;
  config.train.device = DeviceChoice::cuda;
  const MemoryPlan gpu = plan_step(config, 0).memory;
  EXPECT_EQ(gpu.state, cpu.state);
  EXPECT_EQ(gpu.frame_slots, cpu.frame_slots);
  EXPECT_NE(gpu.scratch, cpu.scratch);
  EXPECT_EQ(cpu.staging, 0);
  // Tokens, labels and positions of 2 x 13 tokens and of 13, each of whole 64 bytes.
  EXPECT_EQ(gpu.staging, 2 * (128 + 128 + 256 + 64 + 64 + 128));  // of two steps
}

}  // namespace
}  // namespace weft
