// Config files that load: values, overrides, other programs' names, and the resolved text.
#include "launch/config.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "launch/mesh_option.hpp"
#include "launch/mesh_rules.hpp"
#include "launch/pipeline_stages.hpp"
#include "tests/config_testing.hpp"

namespace weft {
namespace {

Config parse_set(const std::string& set) {
  return parse("data: {path: synthetic}\n", {set});
}

// ---- Files

TEST(ConfigTest, FilesThatCannotBeRead) {
  const Folder folder;
  const std::string missing = folder.path() + "/missing.yaml";
  EXPECT_EQ(message_of([&] { load_config(missing, {}); }), missing + ": cannot be opened");
  EXPECT_EQ(message_of([&] { load_config(folder.path(), {}); }),
            folder.path() + ": expected a file, got a folder");
  const std::string large = folder.write("large.yaml", std::string(1'000'001, '#'));
  EXPECT_EQ(message_of([&] { load_config(large, {}); }),
            large + ": expected at most 1000000 bytes, got more");
}

TEST(ConfigTest, LoadsAFile) {
  const Folder folder;
  const LoadedConfig loaded = load_config(folder.write("run.yaml", kValid), {});
  const Config& c = loaded.config;
  EXPECT_TRUE(loaded.notes.empty());
  EXPECT_EQ(c.model.hidden_size, 64);
  EXPECT_EQ(c.model.num_key_value_heads, 2);
  EXPECT_EQ(c.model.layer_pattern, "*");
  EXPECT_EQ(c.mesh.along(Axis::data), kAutoSize);
  EXPECT_EQ(c.mesh.along(Axis::sequence), 4);
  EXPECT_EQ(c.data.path, "synthetic");
  EXPECT_EQ(c.train.precision, DType::f64);
  EXPECT_EQ(c.train.recompute, Recompute::layer);
  EXPECT_EQ(c.optimizer.lr, 3e-3);
  EXPECT_EQ(c.optimizer.betas[1], 0.95);
  EXPECT_EQ(c.train.loss_slice, TrainConfig{}.loss_slice);
  EXPECT_FALSE(c.train.deterministic);
  EXPECT_EQ(c.model.seq_length, 2048);
}

TEST(ConfigTest, ByteOrderMarkLineEndsAndEmptySections) {
  const Config c =
      parse("\xef\xbb\xbf# x\r\ntrain:\r\nlog: {}\r\ndata:\r\n  path: 'a b'\r\n...\r\n");
  EXPECT_EQ(c.data.path, "a b");
}

// ---- Overrides

TEST(ConfigTest, SetOverridesTheFileAndTheLastWins) {
  const Config c = parse(kValid, {"train.steps=7", "optimizer.betas=[0.8, 0.99]", "train.steps=30",
                                  "data.path=\"x y\"", "model.layer_pattern=*"});
  EXPECT_EQ(c.train.steps, 30);
  EXPECT_EQ(c.optimizer.betas, (std::array<double, 2>{0.8, 0.99}));
  EXPECT_EQ(c.data.path, "x y");
  EXPECT_EQ(c.model.layer_pattern, "*");
}

TEST(ConfigTest, SetTakesAScalarAsItStands) {
  EXPECT_EQ(parse_set("data.path=a: b #c = d").data.path, "a: b #c = d");
  EXPECT_EQ(parse_set("optimizer.lr=1e-3").optimizer.lr, 1e-3);
}

TEST(ConfigTest, SetErrors) {
  const std::string base = "data: {path: x}\n";
  EXPECT_EQ(message_of(base, {"train.steps"}), "--set: expected key=value, got 'train.steps'");
  EXPECT_EQ(message_of(base, {"=3"}), "--set: expected key=value, got '=3'");
  EXPECT_EQ(message_of(base, {"train.steps=many"}), "--set: train.steps: " + kSteps + "'many'");
  EXPECT_EQ(message_of(base, {"train.steps="}), "--set: train.steps: " + kSteps + "nothing");
  EXPECT_EQ(message_of(base, {"train.step=3"}),
            "--set: train.step: expected a key of this version, got 'train.step' (did you mean "
            "'train.steps'?)");
  EXPECT_EQ(message_of(base, {"mesh={data: 2}"}),
            "--set: mesh: expected a section of keys, got '{data: 2}'");
  EXPECT_EQ(message_of(base, {"optimizer.betas=[0.9, [1]]"}),
            "--set: 'optimizer.betas': expected a scalar or a list [a, b], got '[0.9, [1]]'");
  EXPECT_EQ(message_of(base, {"data.path=\"x\"\nlog: {every: 2}"}),
            "--set: 'data.path': expected a scalar or a list [a, b], got '\"x\"\\x0alog: {every: "
            "2}'");
  EXPECT_EQ(message_of(base, {"data.path=\xff"}),
            "--set: 'data.path': expected UTF-8 text, got other bytes");
  EXPECT_EQ(message_of(base, {"checkpoint.every=100"}).substr(0, 60),
            "--set: 'checkpoint.every' is not available in this version (");
  EXPECT_EQ(message_of(base, {"optimizer.min_lr=1"}),
            "--set: optimizer.min_lr: expected at most optimizer.lr = 0.0003, got 1");
}

// ---- Names of other programs

TEST(ConfigTest, NamesOfOtherProgramsAreTranslatedAndNoted) {
  const LoadedConfig loaded = parse_config(
      "context_parallel_size: 4\n"                                // Megatron-LM
      "model_parallel: {pipeline_model_parallel_size: 1}\n"       //
      "training: {seq_len: 64, local_batch_size: 2, steps: 9}\n"  // torchtitan
      "parallelism: {dp: 2, tp: 1}\n"                             // nanotron
      "train: {global-batch-size: 8}\n"
      "data: {path: x}\n",
      "run.yaml", {"clip_grad=0.5", "optimizer.zero_stage=2"});
  const Config& c = loaded.config;
  EXPECT_EQ(c.mesh.text(), "data=2,pipeline=1,sequence=4,tensor=1");
  EXPECT_EQ(c.data.seq_length, 64);
  EXPECT_EQ(c.train.micro_batch_size, 2);
  EXPECT_EQ(c.train.global_batch_size, 8);
  EXPECT_EQ(c.train.steps, 9);
  EXPECT_EQ(c.optimizer.grad_clip, 0.5);
  EXPECT_EQ(c.optimizer.zero, 2);
  const std::vector<std::string> notes{
      "context_parallel_size -> mesh.sequence",
      "model_parallel.pipeline_model_parallel_size -> mesh.pipeline",
      "training.seq_len -> data.seq_length",
      "training.local_batch_size -> train.micro_batch_size",
      "training.steps -> train.steps",
      "parallelism.dp -> mesh.data",
      "parallelism.tp -> mesh.tensor",
      "train.global-batch-size -> train.global_batch_size",
      "clip_grad -> optimizer.grad_clip",
      "optimizer.zero_stage -> optimizer.zero"};
  EXPECT_EQ(loaded.notes, notes);
}

// ---- The pipeline

TEST(ConfigTest, PipelinesHaveTheChunksOfTheirSchedule) {
  const auto chunks = [](const std::string& schedule) {
    return chunks_of(parse_set("pipeline.schedule=" + schedule).pipeline);
  };
  for (const char* schedule : {"gpipe", "1f1b", "zb_h1"}) EXPECT_EQ(chunks(schedule), 1);
  for (const char* schedule : {"interleaved", "zb_v"}) EXPECT_EQ(chunks(schedule), 2);
  const std::string base = "data: {path: x}\n";
  EXPECT_EQ(message_of(base, {"pipeline.chunks=2"}),
            "--set: pipeline.chunks: expected 1 for pipeline.schedule = 1f1b, got 2");
  EXPECT_EQ(message_of(base, {"pipeline.schedule=zb_v", "pipeline.chunks=3"}),
            "--set: pipeline.chunks: expected 2 for pipeline.schedule = zb_v, got 3");
  EXPECT_EQ(message_of(base, {"pipeline.schedule=zb_h2"}),
            "--set: pipeline.schedule: expected gpipe, 1f1b, interleaved, zb_h1 or zb_v, got "
            "'zb_h2' (did you mean 'zb_h1'?)");
  EXPECT_EQ(parse(base, {"pipeline_parallel_schedule=ZBVZeroBubble"}).pipeline.schedule, "zb_v");
}

TEST(ConfigTest, StagesHaveALayerEach) {
  const std::string base = "data: {path: x}\nmodel: {num_hidden_layers: 4}\n";
  EXPECT_NO_THROW(parse(base, {"pp=4"}));
  EXPECT_EQ(message_of(base, {"mesh.pipeline=5"}),
            "--set: mesh.pipeline: expected no more stages x chunks than model.num_hidden_layers "
            "= 4, got 5 x 1; nearest: mesh.pipeline: 4");
  EXPECT_EQ(message_of(base, {"mesh.pipeline=3", "pipeline.schedule=interleaved",
                              "num_virtual_stages_per_pipeline_rank=2"}),
            "--set: pipeline.chunks: expected no more stages x chunks than "
            "model.num_hidden_layers = 4, got 3 x 2; nearest: mesh.pipeline: 2");
  Config c = parse(base, {"pipeline.schedule=zb_v"});
  set_mesh(c, "pipeline=4");
  EXPECT_EQ(message_of([&] { resolve_mesh(c, 4); }),
            "pipeline.chunks: expected no more stages x chunks than model.num_hidden_layers = 4, "
            "got 4 x 2; nearest: mesh.pipeline: 2");
}

// ---- The tensor axis

TEST(ConfigTest, HeadsAreCutOverTheTensorAxis) {
  const std::string base =
      "data: {path: x}\nmodel: {num_attention_heads: 8, num_key_value_heads: 2}\n";
  EXPECT_NO_THROW(parse(base, {"tp=8"}));
  const std::string expected =
      "mesh.tensor: expected at most, or a multiple of, the 2 key/value heads "
      "(model.num_key_value_heads), got 3; nearest: 2 and 4";
  EXPECT_EQ(message_of(base, {"tensor_parallel_degree=3"}), "--set: " + expected);
  Config c = parse(base, {});
  set_mesh(c, "tensor=3");
  EXPECT_EQ(message_of([&] { resolve_mesh(c, 3); }), expected);
}

// ---- The mesh

TEST(ConfigTest, MeshTakesTheRestOrMatches) {
  Config c = parse("data: {path: x}\nmesh: {data: auto, sequence: 4}\n");
  resolve_mesh(c, 12);
  EXPECT_EQ(c.mesh.along(Axis::data), 3);
  resolve_mesh(c, 12);
  EXPECT_EQ(message_of([&] { resolve_mesh(c, 8); }),
            "mesh: expected axes whose product is 8 ranks, got 12 "
            "(data=3,pipeline=1,sequence=4,tensor=1); nearest: mesh.data: 2, or mpirun -n 12");
  c.mesh.along(Axis::data) = kAutoSize;
  EXPECT_EQ(message_of([&] { resolve_mesh(c, 6); }),
            "mesh: expected axes whose product divides 6 ranks, got 4 (data=auto, pipeline=1, "
            "sequence=4, tensor=1); nearest: mpirun -n 4 or 8");
  c.mesh.size = {65535, 65535, 65535, 65535};
  EXPECT_NE(message_of([&] { resolve_mesh(c, 6); }).find("got 18445618199572250625"),
            std::string::npos);
}

// ---- Resolved text

/// A config in which everything that may differ from its default does.
Config everything_set() {
  Config c;
  c.model = {.vocab_size = 1000,
             .hidden_size = 48,
             .num_hidden_layers = 2,
             .num_attention_heads = 6,
             .num_key_value_heads = 3,
             .head_dim = 10,
             .intermediate_size = 99,
             .rms_norm_eps = 1.0 / 3,
             .rope = {.theta = 5e5,
                      .llama3 = Llama3Scaling{.factor = 32,
                                              .low_freq_factor = 1.5,
                                              .high_freq_factor = 4.5,
                                              .original_max_position_embeddings = 100}},
             .tie_word_embeddings = true,
             .causal = false,
             .layer_pattern = "**",
             .window = {},
             .linear = {},
             .delta = {},
             .embedding_std = 0.02};
  c.mesh.size = {kAutoSize, 1, 3, 1};
  c.mesh.order = {Axis::tensor, Axis::sequence, Axis::pipeline, Axis::data};
  c.sequence = {.attention = {"auto", "ring"}, .state = {"lasp2"}, .zeco_blocks = 7, .group = 3};
  c.data = {.path = "a \"b\" \\ # \xc3\xa9: c",
            .seq_length = 77,
            .documents = false,
            .objective = Objective::masked,
            .mask_fraction = 0.2,
            .mask_token = 0};
  c.train = {.steps = 30,
             .global_batch_size = 7,
             .micro_batch_size = 3,
             .precision = DType::f64,
             .seed = INT64_MAX,
             .device = DeviceChoice::cpu,
             .comm = CommChoice::threads,
             .deterministic = true,
             .loss_slice = 5,
             .strict = true};
  c.optimizer = {.lr = 0.1 + 0.2,
                 .min_lr = 1e-300,
                 .warmup_steps = 4,
                 .schedule = Schedule::wsd,
                 .decay_fraction = 1,
                 .betas = {0, 0.999},
                 .eps = 1e-3,
                 .weight_decay = 0,
                 .grad_clip = 0,
                 .zero = 1};
  c.log.every = 10;
  return c;
}

TEST(ConfigTest, ResolvedTextRoundTrips) {
  const Config all = everything_set();
  EXPECT_EQ(members(parse(to_yaml(all))), members(all)) << to_yaml(all);
  for (const char* path : {"null", "true", "-", "~", "12", "[a]", "a/b.c-d", " x "}) {
    Config c;
    c.data.path = path;
    EXPECT_EQ(members(parse(to_yaml(c))), members(c)) << to_yaml(c);
  }
  const Config valid = parse(kValid);
  EXPECT_EQ(members(parse(to_yaml(valid))), members(valid));
  Config windows = valid;  // what a config without causality cannot have
  windows.model.layer_pattern = "*W";
  windows.model.window = {512};
  EXPECT_EQ(members(parse(to_yaml(windows))), members(windows)) << to_yaml(windows);
  windows.model.num_hidden_layers = 4;
  windows.model.window = {512, 64};
  EXPECT_EQ(members(parse(to_yaml(windows))), members(windows)) << to_yaml(windows);
  Config projected = valid;
  projected.model.layer_pattern = "*P";
  projected.model.projected_keys = 64;
  projected.model.causal = projected.data.documents = false;
  EXPECT_EQ(members(parse(to_yaml(projected))), members(projected)) << to_yaml(projected);
}

TEST(ConfigTest, ResolvedTextOfStateLayersRoundTrips) {
  Config states = parse(kValid);
  states.model.layer_pattern = "LG";
  states.model.linear = {.family = "gla",
                         .num_heads = 2,
                         .expand_k = 0.25,
                         .expand_v = 1.5,
                         .feature_map = FeatureMap::relu,
                         .short_conv = 0,
                         .output_gate = false,
                         .gate_rank = 3,
                         .gate_normalizer = 8};
  states.model.delta = {.num_heads = 3,
                        .head_dim = 10,
                        .expand_v = 0.5,
                        .short_conv = 2,
                        .output_gate = false,
                        .negative_eigenvalues = true};
  states.sequence.state = {"auto", "two_level", "doubling", "zeco"};
  EXPECT_EQ(members(parse(to_yaml(states))), members(states)) << to_yaml(states);
}

TEST(ConfigTest, ReferenceListsEveryKey) {
  std::ifstream in(WEFT_SOURCE_DIR "/docs/reference.md");
  ASSERT_TRUE(in);
  std::stringstream text;
  text << in.rdbuf();
  const std::string page = text.str();
  const std::string begin = "<!-- keys -->\n";
  const size_t from = page.find(begin);
  const size_t to = page.find("<!-- /keys -->");
  ASSERT_TRUE(from != std::string::npos && to != std::string::npos);
  const std::string table = page.substr(from + begin.size(), to - from - begin.size());
  EXPECT_EQ(table, reference_table()) << "write this between the markers:\n" << reference_table();
}

TEST(ConfigTest, RandomEditsLoadOrAreRefusedInOneLine) {
  std::mt19937 random(1);
  int loaded = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string text = mutate(kValid, random);
    try {
      const Config c = parse(text);
      EXPECT_EQ(members(parse(to_yaml(c))), members(c)) << text;
      ++loaded;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ExitCode::config) << e.what() << "\n" << text;
      ASSERT_EQ(std::string(e.what()).find('\n'), std::string::npos) << text;
    }
  }
  EXPECT_GT(loaded, 50);
}

}  // namespace
}  // namespace weft
