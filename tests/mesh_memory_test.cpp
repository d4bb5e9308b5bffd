// What meshes hold, by running the meta device: activations shrink with tensor x sequence; and
// against tensor parallelism that keeps what enters a block whole, as it was published, sequence
// parallelism holds less from exactly as many tokens on as the papers say.
#include <gtest/gtest.h>

#include "models/mlp.hpp"
#include "models/model.hpp"
#include "models/softmax_attention.hpp"
#include "parallel/comm/recording.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

// ---- Activations

int64_t frame_bytes(const Config& config, int sequence, int tensor) {
  Config here = config;
  here.mesh = {.size = {1, 1, sequence, tensor}};
  int64_t most = 0;
  for (int rank = 0; rank < here.mesh.ranks(); ++rank) {
    most = std::max(most, plan_step(here, rank).memory.frames());
  }
  return most;
}

/// Every rank keeps its rows of its tokens, and what its heads and columns make of them. Inputs are
/// of all rows of the shard: ids, positions, intervals of keys and rotary tables, less than 5 %.
TEST(MeshMemory, ActivationsShrinkWithTensorTimesSequence) {
  for (const char* recompute : {"none", "attention_output", "layer"}) {
    const Config config =
        load_config(WEFT_SOURCE_DIR "/configs/llama-1b.yaml",
                    {"data.seq_length=8192", "model.num_hidden_layers=4", "sequence.attention=ring",
                     concat("train.recompute=", recompute)})
            .config;
    const auto one = static_cast<double>(frame_bytes(config, 1, 1));
    for (const auto& [sequence, tensor] :
         {std::pair{2, 1}, {1, 2}, {2, 2}, {4, 1}, {1, 4}, {8, 1}, {1, 8}, {4, 2}, {2, 4}}) {
      const auto bytes = static_cast<double>(frame_bytes(config, sequence, tensor));
      EXPECT_NEAR(bytes * sequence * tensor / one, 1, 0.05)
          << recompute << ", sequence " << sequence << ", tensor " << tensor;
    }
  }
}

// ---- Against tensor parallelism with whole inputs (Li et al., arXiv 2105.13120, tables 1 and 2)

/// A block in f32 with gradients and AdamW's moments, and what it keeps of `rows` tokens for
/// backward, its input included: bytes of rank 0.
int64_t block_bytes(const ModelConfig& config, bool attention, const MeshShape& mesh, int64_t rows,
                    const TensorPlace& place) {
  const auto world = make_recording_world(0, mesh.ranks());
  ProcessMesh process_mesh(*world, mesh, {}, /*strict=*/false);
  const auto compute = make_meta_stream({});
  Arena state("state", Device::meta, 0), slab("frame", Device::meta, 0);
  Arena scratch("scratch", Device::meta, 0);
  std::unique_ptr<Layer> block;
  if (attention) {
    block = std::make_unique<SoftmaxAttention>("a.", 0, config, place, make_ring_attention());
  } else {
    block = std::make_unique<Mlp>("m.", config, place);
  }
  std::vector<Parameter*> parameters;
  block->visit([&](Parameter& parameter) { parameters.push_back(&parameter); });
  const ParameterStore store(parameters, DType::f32, state);
  StepContext ctx{.mesh = process_mesh,
                  .compute = *compute,
                  .scratch = scratch,
                  .parameters = store,
                  .dtype = DType::f32,
                  .loss_sum = {}};
  Frame frame(slab, 1, Cuts::even(rows * mesh.along(Axis::sequence), mesh.along(Axis::sequence)), 0,
              0);
  // Ids, intervals and rotary tables, which all blocks share and the papers do not count.
  for (const char* slot : {"key begin", "key end"}) frame.push(slot, DType::i64, {1, rows});
  for (const char* slot : {"cos", "sin"}) {
    frame.push(slot, DType::f32, {1, rows, config.head_dim / 2});
  }
  const int64_t before = slab.used();
  const Tensor x = frame.push("x", DType::f32, {rows, config.hidden_size});
  block->forward(scratch.allocate("y", DType::f32, {rows, config.hidden_size}), x, frame, ctx);
  int64_t kept = slab.used() - before;
  if (attention) kept -= frame.peek("lse").nbytes();  // nor that
  return kept + 2 * (store.values().nbytes() + store.gradients().nbytes());
}

/// Tensor less sequence parallelism over n ranks, of a micro-batch of `rows` tokens.
int64_t difference(const ModelConfig& config, bool attention, int n, int64_t rows) {
  return block_bytes(config, attention, mesh_along(Axis::tensor, n), rows, {0, n}) -
         block_bytes(config, attention, mesh_along(Axis::sequence, n), rows / n, {});
}

void expect_crossover(const ModelConfig& config, bool attention, int64_t rows) {
  std::printf("%s, C %lld: tensor less sequence, bytes of a rank\n",
              attention ? "attention" : "MLP", static_cast<long long>(config.hidden_size));
  for (const int n : {2, 4, 8}) {
    EXPECT_LT(difference(config, attention, n, rows / 2), 0) << n;
    EXPECT_EQ(difference(config, attention, n, rows), 0) << n;
    EXPECT_GT(difference(config, attention, n, 2 * rows), 0) << n;
    for (const int64_t tokens : {rows / 2, rows, 2 * rows}) {
      std::printf("  %d ranks, B N %6lld: %lld\n", n, static_cast<long long>(tokens),
                  static_cast<long long>(difference(config, attention, n, tokens)));
    }
  }
}

/// MLP: 32 C^2 of parameters, gradients and moments are cut by one, B N C of inputs by the other.
TEST(PublishedMemory, OfAnMlpSequenceWinsFrom32TimesTheWidthOn) {
  ModelConfig config;
  config.hidden_size = 96;
  config.intermediate_size = 256;  // 8 C / 3: three matrices of it are 8 C^2, as two of 4 C are
  expect_crossover(config, /*attention=*/false, 32 * config.hidden_size);
}

/// Attention: 16 C H D, and B N C.
TEST(PublishedMemory, OfAttentionSequenceWinsFrom16TimesTheHeadsOn) {
  ModelConfig config;
  config.hidden_size = 96;
  config.num_attention_heads = config.num_key_value_heads = 8;
  config.head_dim = 16;
  expect_crossover(config, /*attention=*/true, 16 * config.num_attention_heads * config.head_dim);
}

}  // namespace
}  // namespace weft
