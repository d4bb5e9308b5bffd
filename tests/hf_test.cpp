// Hugging Face's config.json, in both spellings, and what is refused.
#include "launch/hf.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <tuple>

#include "tests/config_testing.hpp"

namespace weft {
namespace {

const std::string kGolden = WEFT_SOURCE_DIR "/tests/golden/llama-gqa";

const std::string kHf = R"({"model_type": "llama", "vocab_size": 128, "hidden_size": 32,
  "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96)";

/// read_hf_config of a file that has kHf and `more`.
ModelConfig read_hf(const std::string& more) {
  const Folder folder;
  folder.write("config.json", kHf + more + "}");
  return read_hf_config(folder.path());
}

std::string hf_message(const std::string& more) {
  const std::string message = message_of([&] { read_hf(more); });
  const size_t at = message.find("/config.json: ");
  return at == std::string::npos ? message : message.substr(at + 1);
}

TEST(HfTest, ReadsTheGoldenModel) {
  const ModelConfig m = read_hf_config(kGolden);
  EXPECT_EQ(std::tuple(m.vocab_size, m.hidden_size, m.num_hidden_layers, m.num_attention_heads,
                       m.num_key_value_heads, m.head_dim, m.intermediate_size),
            std::tuple(256, 64, 4, 4, 2, 16, 176));
  EXPECT_EQ(m.rms_norm_eps, 1e-5);
  EXPECT_EQ(m.rope.theta, 10000);
  EXPECT_FALSE(m.rope.llama3);
  EXPECT_FALSE(m.tie_word_embeddings);
}

TEST(HfTest, Defaults) {
  const ModelConfig m = read_hf(R"(, "head_dim": null, "rope_scaling": null)");
  EXPECT_EQ(m.num_key_value_heads, 4);
  EXPECT_EQ(m.head_dim, 8);
  EXPECT_EQ(m.rope.theta, 10000);
  EXPECT_EQ(m.rms_norm_eps, 1e-6);
}

TEST(HfTest, BothSpellingsOfRope) {
  const std::string scaling = R"("factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192)";
  const ModelConfig old =
      read_hf(R"(, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", )" + scaling + "}");
  const ModelConfig older =
      read_hf(R"(, "rope_theta": 500000, "rope_scaling": {"type": "llama3", )" + scaling + "}");
  const ModelConfig now = read_hf(
      R"(, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", )" + scaling + "}");
  for (const ModelConfig& m : {old, older, now}) {
    EXPECT_EQ(m.rope.theta, 5e5);
    ASSERT_TRUE(m.rope.llama3);
    EXPECT_EQ(m.rope.llama3->factor, 32);
    EXPECT_EQ(m.rope.llama3->original_max_position_embeddings, 8192);
  }
}

TEST(HfTest, RefusesWhatIsComputedDifferently) {
  const auto expect = [](const std::string& more, const std::string& message) {
    EXPECT_EQ(hf_message(more), "config.json: " + message);
  };
  expect(R"(, "model_type": "qwen3")", "model_type: expected llama, got 'qwen3'");
  expect(R"(, "hidden_act": "gelu")", "hidden_act: expected silu, got 'gelu'");
  expect(R"(, "attention_bias": true)", "attention_bias: expected false, got true");
  expect(R"(, "mlp_bias": true)", "mlp_bias: expected false, got true");
  expect(R"(, "attention_dropout": 0.1)", "attention_dropout: expected 0, got 0.1");
  expect(R"(, "sliding_window": 512)", "sliding_window: expected no such key, got 512");
  expect(R"(, "quantization_config": {})",
         "quantization_config: expected no such key, got an object");
  expect(R"(, "partial_rotary_factor": 0.5)", "partial_rotary_factor: expected 1, got 0.5");
  expect(R"(, "rope_scaling": {"type": "yarn"})",
         "rope_scaling: type: expected default or llama3, got 'yarn'");
  expect(R"(, "rope_parameters": {"rope_type": "linear"})",
         "rope_parameters: rope_type: expected default or llama3, got 'linear'");
  expect(R"(, "rope_scaling": {"rope_type": "llama3"})",
         "rope_scaling: factor: expected a number > 0, got nothing");
  expect(R"(, "rope_scaling": 3)", "rope_scaling: expected an object, got 3");
}

TEST(HfTest, RefusesBadValues) {
  const auto expect = [](const std::string& more, const std::string& message) {
    EXPECT_EQ(hf_message(more), "config.json: " + message);
  };
  expect(R"(, "vocab_size": -1)", "vocab_size: expected an integer from 1 to 1000000000, got -1");
  expect(R"(, "vocab_size": 1.5)", "vocab_size: expected an integer from 1 to 1000000000, got 1.5");
  expect(R"(, "vocab_size": null)",
         "vocab_size: expected an integer from 1 to 1000000000, got nothing");
  expect(R"(, "head_dim": 7)", "model.head_dim: expected an even number, got 7");
  expect(R"(, "num_key_value_heads": 3)",
         "model.num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3");
  expect(R"(, "tie_word_embeddings": 1)", "tie_word_embeddings: expected true or false, got 1");
  expect(R"(, "rms_norm_eps": 1e999)", "expected JSON, got a number out of range");
  expect(",,", "byte 139: expected JSON, got other text");
  const Folder folder;
  const std::string path = folder.write("config.json", "[]");
  EXPECT_EQ(message_of([&] { read_hf_config(folder.path()); }),
            path + ": expected an object, got a list");
}

TEST(HfTest, FromHfGivesTheArchitecture) {
  const Config c = parse(
      "data: {path: x}\nmodel: {causal: false, layer_pattern: \"**\", from_hf: " + kGolden + "}");
  EXPECT_EQ(c.from_hf, kGolden);
  EXPECT_EQ(c.model.hidden_size, 64);
  EXPECT_FALSE(c.model.causal);
  EXPECT_EQ(members(parse(to_yaml(c))), members(c));
  EXPECT_NE(to_yaml(c).find("  # hidden_size: 64\n"), std::string::npos);
  const Config windows =
      parse("data: {path: x}\nmodel: {layer_pattern: \"*W\", window: 5, from_hf: " + kGolden + "}");
  EXPECT_EQ(windows.model.window, std::vector<int64_t>{5});
  EXPECT_EQ(members(parse(to_yaml(windows))), members(windows));
  EXPECT_EQ(message_of("model:\n  hidden_size: 64\n  from_hf: " + kGolden + "\n"),
            "run.yaml:2: model.hidden_size: expected no such key next to model.from_hf, got '64'");
}

TEST(HfTest, RandomEditsLoadOrAreRefusedInOneLine) {
  std::mt19937 random(2);
  const Folder folder;
  std::ifstream in(kGolden + "/config.json");
  std::stringstream text;
  text << in.rdbuf();
  ASSERT_FALSE(text.str().empty());
  for (int i = 0; i < 2000; ++i) {
    folder.write("config.json", mutate(text.str(), random));
    try {
      read_hf_config(folder.path());
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ExitCode::config) << e.what();
      ASSERT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace weft
