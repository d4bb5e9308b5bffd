// What the tests of config files share: a valid file, calls that return the error's line, folders
// that go, and random edits.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "launch/config.hpp"
#include "src/core/check.hpp"

namespace weft {

inline const std::string kValid =
    "# a comment\n"
    "model:\n"
    "  vocab_size: 256\n"
    "  hidden_size: 64\n"
    "  num_hidden_layers: 4\n"
    "  num_attention_heads: 4\n"
    "  num_key_value_heads: 2\n"
    "  head_dim: 16\n"
    "  intermediate_size: 176\n"
    "  rope_theta: 10000.0\n"
    "  tie_word_embeddings: false\n"
    "  causal: true\n"
    "  layer_pattern: \"*\"\n"
    "mesh: {data: auto, sequence: 4, order: [data, pipeline, sequence, tensor]}\n"
    "sequence: {attention: ring}\n"
    "data: {path: synthetic, seq_length: 2048}\n"
    "train:\n"
    "  steps: 200\n"
    "  precision: f64\n"
    "  recompute: layer\n"
    "optimizer: {lr: 3.0e-3, min_lr: 3.0e-4, warmup_steps: 20, betas: [0.9, 0.95], eps: 1.0e-8}\n"
    "log: {every: 1}\n";

/// What train.steps says of a value that is none.
inline const std::string kSteps = "expected an integer from 1 to 1000000000, got ";

/// What the call's Error says; fails where there is none, or its code is not `code`.
inline std::string message_of(const std::function<void()>& call, ExitCode code = ExitCode::config) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    EXPECT_EQ(e.where(), "");
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

inline std::string message_of(const std::string& text, const std::vector<std::string>& sets = {}) {
  return message_of([&] { parse_config(text, "run.yaml", sets); });
}

inline Config parse(const std::string& text, const std::vector<std::string>& sets = {}) {
  return parse_config(text, "run.yaml", sets).config;
}

/// A folder that goes when the test ends.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "weft-config-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string path() const { return path_.string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

/// Every member, so that one that the table forgets shows.
inline auto members(const Config& c) {
  const ModelConfig& m = c.model;
  const Llama3Scaling s = m.rope.llama3.value_or(Llama3Scaling{.factor = 0});
  return std::tuple_cat(
      std::tuple(m.vocab_size, m.hidden_size, m.num_hidden_layers, m.num_attention_heads,
                 m.num_key_value_heads, m.head_dim, m.intermediate_size, m.rms_norm_eps),
      std::tuple(m.rope.theta, s.factor, s.low_freq_factor, s.high_freq_factor,
                 s.original_max_position_embeddings, m.tie_word_embeddings, m.causal,
                 m.layer_pattern, m.window, m.projected_keys, m.embedding_std, c.from_hf),
      std::tuple(m.linear, m.delta, c.sequence.state, c.sequence.zeco_blocks, c.sequence.group),
      std::tuple(c.mesh.size, c.mesh.order, c.sequence.attention, c.data.path, c.data.seq_length,
                 c.data.documents, c.data.objective, c.data.mask_fraction, c.data.mask_token),
      std::tuple(c.train.steps, c.train.global_batch_size, c.train.micro_batch_size,
                 c.train.precision, c.train.seed, c.train.device, c.train.comm,
                 c.train.deterministic, c.train.loss_slice, c.train.strict),
      std::tuple(c.optimizer.lr, c.optimizer.min_lr, c.optimizer.warmup_steps, c.optimizer.schedule,
                 c.optimizer.decay_fraction, c.optimizer.betas, c.optimizer.eps,
                 c.optimizer.weight_decay, c.optimizer.grad_clip, c.optimizer.zero, c.log.every));
}

/// A few edits of `text`: bytes changed, removed, inserted, and pieces copied over others.
inline std::string mutate(const std::string& text, std::mt19937& random) {
  const std::string marks(
      "[]{}:,#&*!|>'\"%@`-?\n\t\0 \xe2\x80\xff"
      "0<=_~",
      32);
  std::string out = text;
  const int most = 1 + static_cast<int>(random() % 4);
  for (int edits = random() % 2 == 0 ? 1 : most; edits > 0 && !out.empty(); --edits) {
    const size_t at = random() % out.size();
    switch (random() % 5) {
      case 0:
        out[at] = static_cast<char>(random() % 256);
        break;
      case 1:
        out.erase(at, 1 + random() % 8);
        break;
      case 2:
        out.insert(at, 1 + random() % 3, marks[random() % marks.size()]);
        break;
      case 3:
        out.insert(at, out.substr(random() % out.size(), 1 + random() % 40));
        break;
      default:
        out[at] = marks[random() % marks.size()];
        break;
    }
  }
  return out;
}

}  // namespace weft
