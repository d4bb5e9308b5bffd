// What no mesh can run is refused before anything is allocated, in one line that names the rule,
// the numbers and what would do.
#include "launch/mesh_rules.hpp"

#include <gtest/gtest.h>

#include "launch/mesh_option.hpp"
#include "tests/config_testing.hpp"

namespace weft {
namespace {

/// configs/parity.yaml (8 layers, 8 query and 2 key/value heads, 48 columns, 64 tokens), changed.
struct Refusal {
  const char* name;
  std::vector<std::string> sets;
  const char* mesh;  // as --mesh takes it
  int ranks;
  const char* line;
};
void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}

const Refusal kRefusals[] = {
    {"TensorBetweenKeyValueHeads",
     {},
     "tensor=3",
     3,
     "mesh.tensor: expected at most, or a multiple of, the 2 key/value heads "
     "(model.num_key_value_heads), got 3; nearest: 2 and 4"},
    {"TensorOfAWindow",
     {"model.layer_pattern=W", "model.window=7"},
     "tensor=5",
     5,
     "mesh.tensor: expected at most, or a multiple of, the 2 key/value heads "
     "(model.num_key_value_heads), got 5; nearest: 4 and 6"},
    {"TensorAboveQueryHeads",
     {},
     "tensor=16",
     16,
     "mesh.tensor: expected at most the 8 query heads (model.num_attention_heads), got 16; "
     "nearest: 8"},
    {"TensorAboveLinearHeads",
     {"model.layer_pattern=L", "model.linear.family=gla", "model.linear.num_heads=4"},
     "tensor=6",
     6,
     "mesh.tensor: expected at most the 4 heads of the L layers, got 6; nearest: 4"},
    {"TensorAboveDeltaHeads",
     {"model.layer_pattern=G*", "model.delta.num_heads=3"},
     "tensor=4",
     4,
     "mesh.tensor: expected at most the 3 heads of the G layers, got 4; nearest: 2"},
    {"TensorAboveColumns",
     {"model.intermediate_size=5", "model.num_key_value_heads=8"},
     "tensor=8",
     8,
     "mesh.tensor: expected at most the 5 columns of the MLP (model.intermediate_size), got 8; "
     "nearest: 5"},
    {"TensorAboveVocabulary",
     {"model.vocab_size=3", "model.num_key_value_heads=8"},
     "tensor=4",
     4,
     "mesh.tensor: expected at most the 3 tokens of the vocabulary (model.vocab_size), got 4; "
     "nearest: 3"},
    {"StagesWithoutALayer",
     {},
     "pipeline=9",
     9,
     "mesh.pipeline: expected no more stages x chunks than model.num_hidden_layers = 8, got 9 x 1; "
     "nearest: mesh.pipeline: 8"},
    {"ChunksWithoutALayer",
     {"pipeline.schedule=interleaved", "pipeline.chunks=3"},
     "pipeline=4",
     4,
     "pipeline.chunks: expected no more stages x chunks than model.num_hidden_layers = 8, got 4 x "
     "3; nearest: mesh.pipeline: 2"},
    {"VOfTooFewLayers",
     {"pipeline.schedule=zb_v"},
     "pipeline=5",
     5,
     "pipeline.chunks: expected no more stages x chunks than model.num_hidden_layers = 8, got 5 x "
     "2; nearest: mesh.pipeline: 4"},
    {"TooFewRanks",
     {},
     "data=2,sequence=4",
     4,
     "mesh: expected axes whose product is 4 ranks, got 8 "
     "(data=2,pipeline=1,sequence=4,tensor=1); nearest: mesh.data: 1, or mpirun -n 8"},
    {"RanksThatNoDataAxisFits",
     {},
     "sequence=3,tensor=2",
     8,
     "mesh: expected axes whose product is 8 ranks, got 6 "
     "(data=1,pipeline=1,sequence=3,tensor=2); nearest: mpirun -n 6"},
};

class MeshRules : public testing::TestWithParam<Refusal> {};

TEST_P(MeshRules, RefuseInOneLine) {
  const Refusal& refusal = GetParam();
  Config config = load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", refusal.sets).config;
  set_mesh(config, refusal.mesh);
  EXPECT_EQ(message_of([&] { resolve_mesh(config, refusal.ranks); }), refusal.line);
}

INSTANTIATE_TEST_SUITE_P(All, MeshRules, testing::ValuesIn(kRefusals),
                         [](const auto& test) { return std::string(test.param.name); });

/// What a config says against itself, whatever the job's ranks.
struct Contradiction {
  const char* name;
  std::vector<std::string> sets;
  const char* line;
};
void PrintTo(const Contradiction& contradiction, std::ostream* out) {
  *out << contradiction.name;
}

const Contradiction kContradictions[] = {
    {"OneChunkOfAV",
     {"pipeline.schedule=zb_v", "pipeline.chunks=1"},
     "pipeline.chunks: expected 2 for pipeline.schedule = zb_v, got 1"},
    {"ChunksOfGpipe",
     {"pipeline.schedule=gpipe", "pipeline.chunks=2"},
     "pipeline.chunks: expected 1 for pipeline.schedule = gpipe, got 2"},
    {"ChunksOfZeroBubbles",
     {"pipeline.schedule=zb_h1", "pipeline.chunks=4"},
     "pipeline.chunks: expected 1 for pipeline.schedule = zb_h1, got 4"},
    {"GradientsInPiecesOfZeroBubbles",
     {"pipeline.schedule=zb_h1", "optimizer.zero=2"},
     "optimizer.zero: expected 1 with pipeline.schedule = zb_h1, whose gradients of weights come "
     "after a unit's turn, got 2"},
    {"ValuesInPiecesOfZeroBubbles",
     {"pipeline.schedule=zb_v", "optimizer.zero=3"},
     "optimizer.zero: expected 1 with pipeline.schedule = zb_v, whose gradients of weights come "
     "after a unit's turn, got 3"},
    {"TensorInTheFile",
     {"mesh.tensor=3"},
     "mesh.tensor: expected at most, or a multiple of, the 2 key/value heads "
     "(model.num_key_value_heads), got 3; nearest: 2 and 4"},
    {"StagesInTheFile",
     {"mesh.pipeline=16"},
     "mesh.pipeline: expected no more stages x chunks than model.num_hidden_layers = 8, got 16 x "
     "1; "
     "nearest: mesh.pipeline: 8"},
    {"StrategiesForOtherLayers",
     {"sequence.attention=[ring, lightseq]"},
     "sequence.attention: expected one name, or 8: one a softmax layer, got 2"},
};

class Contradictions : public testing::TestWithParam<Contradiction> {};

TEST_P(Contradictions, AreRefusedInOneLine) {
  const std::string message =
      message_of([&] { load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", GetParam().sets); });
  EXPECT_EQ(message, concat("--set: ", GetParam().line));
}

INSTANTIATE_TEST_SUITE_P(All, Contradictions, testing::ValuesIn(kContradictions),
                         [](const auto& test) { return std::string(test.param.name); });

/// Any product of numbers that fit runs: none of these is refused.
TEST(MeshRulesTest, LetTheOthersThrough) {
  for (const char* mesh :
       {"data=2,pipeline=2,sequence=2,tensor=2", "pipeline=8,tensor=8", "data=3,tensor=6",
        "pipeline=3,sequence=5,tensor=4", "data=auto", "sequence=7,tensor=2"}) {
    Config config = load_config(WEFT_SOURCE_DIR "/configs/parity.yaml", {}).config;
    if (std::string_view(mesh) == "data=auto") {
      config.mesh.along(Axis::data) = kAutoSize;
      EXPECT_NO_THROW(resolve_mesh(config, 5)) << mesh;
      continue;
    }
    set_mesh(config, mesh);
    EXPECT_NO_THROW(resolve_mesh(config, config.mesh.ranks())) << mesh;
  }
}

}  // namespace
}  // namespace weft
