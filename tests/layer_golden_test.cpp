// Whole layers of linear attention against cases made by another program: every layer-*.safetensors
// below WEFT_GOLDEN_DIR (default: tests/golden), torch modules in f64 that go from token to token.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <set>

#include "launch/safetensors.hpp"
#include "models/mixers.hpp"
#include "models/model.hpp"
#include "models/state_family.hpp"
#include "tests/golden_cases.hpp"
#include "tests/parity_testing.hpp"
#include "tests/sequence_testing.hpp"

namespace weft {
namespace {

/// A layer, its parameters, what enters it and what another program got.
class LayerCase {
 public:
  explicit LayerCase(const std::string& name) : file(golden_folder() + "/" + name) {
    std::vector<std::string> sets;
    for (const auto& [key, value] : file.metadata()) {
      if (key.starts_with("model.")) sets.push_back(concat(key, "=", value));
    }
    model = parity_config(sets).model;
    layer = std::stoi(file.metadata().at("layer"));
    batch = file.entry("x").shape[0];
    tokens = file.entry("x").shape[1];
    std::vector<std::vector<int64_t>> starts(batch);
    std::vector<int64_t> pairs(2 * file.entry("doc_starts").shape[0]);
    file.read<int64_t>("doc_starts", pairs);
    for (size_t i = 0; i < pairs.size(); i += 2) starts.at(pairs[i]).push_back(pairs[i + 1]);
    for (const std::vector<int64_t>& s : starts) segments.emplace_back(tokens, s, true);
  }

  char letter() const { return model.mixer_of(layer); }
  int64_t hidden() const { return model.hidden_size; }

  std::vector<double> read(const std::string& tensor) const {
    int64_t numel = 1;
    for (const int64_t d : file.entry(tensor).shape) numel *= d;
    std::vector<double> out(numel);
    file.read<double>(tensor, out);
    return out;
  }

  /// Names of the parameters, without the layer's prefix.
  std::set<std::string> parameters() const {
    const std::string prefix = "param.";
    std::set<std::string> names;
    for (const std::string& name : file.names()) {
      if (name.starts_with(prefix)) names.insert(name.substr(prefix.size()));
    }
    return names;
  }

  SafetensorsFile file;
  ModelConfig model;
  int layer;
  int64_t batch, tokens;
  std::vector<SegmentMap> segments;  // of each sequence
};

struct LayerRun {
  std::vector<double> y, dx;
  std::map<std::string, std::vector<double>> gradients;  // summed over the ranks
};

/// Forward and backward of one layer, a thread a rank.
class LayerOnRanks {
 public:
  LayerOnRanks(const LayerCase& c, DType dtype, const Cuts& cuts, const StateScanKind& scan)
      : case_(c), dtype_(dtype), cuts_(cuts), scan_(scan) {}

  LayerRun run() {
    run_.y.resize(case_.batch * case_.tokens * case_.hidden());
    run_.dx.resize(run_.y.size());
    run_ranks(cuts_.pieces(), [&](World& world) { run_rank(world); });
    return std::move(run_);
  }

 private:
  std::string prefix() const { return layer_prefix(case_.layer) + "linear_attn."; }

  void run_rank(World& world) {
    TestRank rank(world, sequence_mesh(cuts_.pieces()), 1 << 20);
    const auto layer = mixer_kind(case_.letter())
                           .make(case_.layer, case_.model,
                                 {.attention = nullptr, .scan = &scan_, .scan_options = {}});
    std::vector<Parameter*> parameters;
    layer->visit([&](Parameter& parameter) { parameters.push_back(&parameter); });
    Arena state("state", Device::cpu, 1 << 20), slab("frame", Device::cpu, 1 << 20);
    const ParameterStore store(parameters, dtype_, state);
    fill(store);
    StepContext context{.mesh = rank.context.mesh,
                        .compute = rank.context.compute,
                        .scratch = rank.context.scratch,
                        .parameters = store,
                        .dtype = dtype_,
                        .loss_sum = {}};
    Frame frame(slab, case_.batch, cuts_, world.rank(), 0);
    const std::vector<int32_t> ids(frame.rows());
    const Model model(case_.model, {}, /*loss_slice=*/1);
    Staging staging(Device::cpu, 0);
    model.begin(0, {.segments = case_.segments, .tokens = ids, .labels = ids}, frame, staging,
                context);

    const Owned x = shard_of("x", frame), dy = shard_of("dy", frame);
    const Owned y(dtype_, {frame.rows(), case_.hidden()});
    const Owned dx(dtype_, {frame.rows(), case_.hidden()});
    layer->forward(y, x, frame, context);
    layer->backward(dx, dy, {x}, frame, context);
    collect(y, dx, store, frame);
  }

  void fill(const ParameterStore& store) const {
    std::set<std::string> names;
    for (const Parameter* parameter : store.parameters()) {
      const std::string name = parameter->name.substr(prefix().size());
      ASSERT_EQ(parameter->name, prefix() + name);
      ASSERT_EQ(parameter->shape, case_.file.entry("param." + name).shape) << name;
      assign(store.value(*parameter), case_.read("param." + name));
      names.insert(name);
    }
    ASSERT_EQ(names, case_.parameters());
  }

  /// The rows [B T, C] of the frame's tokens.
  Owned shard_of(const std::string& tensor, const Frame& frame) const {
    const Owned whole =
        from_values(dtype_, {case_.batch, case_.tokens, case_.hidden()}, case_.read(tensor));
    const int64_t begin = frame.first_token();
    const Tensor own = whole.view().slice(1, begin, begin + frame.tokens());
    return from_values(dtype_, {frame.rows(), case_.hidden()}, values(own));
  }

  void collect(const Tensor& y, const Tensor& dx, const ParameterStore& store, const Frame& frame) {
    const std::lock_guard lock(mutex_);
    const auto put = [&](std::vector<double>& whole, const Tensor& rows) {
      place(whole, rows.reshape({frame.batch(), frame.tokens(), case_.hidden(), 1}), case_.tokens,
            frame.first_token(), /*rows=*/false);
    };
    put(run_.y, y);
    put(run_.dx, dx);
    for (const Parameter* parameter : store.parameters()) {
      const std::vector<double> mine = values(store.gradient(*parameter));
      std::vector<double>& sum = run_.gradients[parameter->name.substr(prefix().size())];
      sum.resize(mine.size());
      for (size_t i = 0; i < mine.size(); ++i) sum[i] += mine[i];
    }
  }

  const LayerCase& case_;
  DType dtype_;
  const Cuts cuts_;
  const StateScanKind& scan_;
  std::mutex mutex_;
  LayerRun run_;
};

/// Whether a parameter makes log alpha or beta. Its gradient is a sum of both signs.
bool is_of_gates(const std::string& parameter) {
  return parameter.starts_with("gk_proj") || parameter.starts_with("a_proj") ||
         parameter.starts_with("b_proj") || parameter == "A_log" || parameter == "dt_bias";
}

void expect_agreement(const LayerCase& c, const LayerRun& run, DType dtype,
                      const std::string& where) {
  const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
  EXPECT_LE(relative_rms(run.y, c.read("y")), tolerance) << where << ": y";
  EXPECT_LE(relative_rms(run.dx, c.read("dx")), tolerance) << where << ": dx";
  EXPECT_EQ(run.gradients.size(), c.parameters().size()) << where;
  for (const auto& [parameter, gradient] : run.gradients) {
    const double room = is_of_gates(parameter) ? 10 : 1;
    EXPECT_LE(relative_rms(gradient, c.read("grad." + parameter)), room * tolerance)
        << where << ": " << parameter;
  }
}

/// On one to four ranks: cuts at a document's start and around it, shards of fewer tokens than a
/// short convolution reaches back, and shards of none.
std::vector<std::vector<int64_t>> shards_of(const LayerCase& c) {
  const int64_t a = c.segments.back().starts().back(), b = c.tokens - a;
  return {{a + b},
          {a, b},
          {a - 1, b + 1},
          {0, a + b},
          {a + b, 0},
          {a, 1, b - 1},
          {a - 2, 3, b - 1},
          {0, a + b, 0},
          {a / 2, 0, a - a / 2 + b},
          {a + 2, 1, 2, b - 5},
          {0, a, 0, b},
          {a / 2, 0, 0, a - a / 2 + b}};
}

std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += concat(text.empty() ? "" : " + ", size);
  return text + " tokens, ";
}

class LayerGolden : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override { set_poison(false); }
};

TEST_P(LayerGolden, AgreesInOutputsAndEveryGradient) {
  const auto& [name, dtype] = GetParam();
  const LayerCase c(name);
  for (const std::vector<int64_t>& sizes : shards_of(c)) {
    for (const StateScanKind& scan : state_scans()) {
      const LayerRun run = LayerOnRanks(c, dtype, Cuts::of_sizes(sizes), scan).run();
      expect_agreement(c, run, dtype, text_of(sizes) + scan.name);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, LayerGolden,
                         testing::Combine(testing::ValuesIn(golden_cases("layer-",
                                                                         /*folders=*/false)),
                                          testing::Values(DType::f64, DType::f32)),
                         [](const auto& test) {
                           std::string label =
                               std::filesystem::path(std::get<0>(test.param)).stem();
                           std::replace(label.begin(), label.end(), '-', '_');
                           return concat(label, "_", name(std::get<1>(test.param)));
                         });

TEST(LayerGoldenFiles, AreThereForEveryFamily) {
  std::set<std::string> found;
  for (const std::string& name : golden_cases("layer-", /*folders=*/false)) {
    const LayerCase c(name);
    found.insert(state_layout(c.model, c.letter()).family->name);
  }
  EXPECT_TRUE(found.contains(kGatedDeltaFamily.name));
  for (const StateFamily* family : linear_families()) {
    EXPECT_TRUE(found.contains(family->name)) << family->name;
  }
}

}  // namespace
}  // namespace weft
