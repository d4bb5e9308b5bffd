// The config of a run: one struct a section, in the names of the file.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "src/tensor/dtype.hpp"

namespace weft {

struct SequenceConfig {
  /// A strategy's name, or auto: one for all softmax layers, or one a softmax layer.
  std::vector<std::string> attention{"ring"};
  /// A scan's name, or auto: one for all layers with a state, or one a layer.
  std::vector<std::string> state{"zeco"};
  int64_t zeco_blocks = 0;  // 0: auto
  int64_t group = 0;        // ranks of a group of two_level; 0: auto
};

struct PipelineConfig {
  std::string schedule = "1f1b";
  int64_t chunks = 0;  // pieces of the model a stage; 0: auto
  bool operator==(const PipelineConfig&) const = default;
};

/// What a token's label is: the token after it, or the token that a mask hides.
enum class Objective { next_token, masked };

struct DataConfig {
  std::string path;           // a token file, or "synthetic"
  int64_t seq_length = 2048;  // tokens of a sample, N
  bool documents = true;      // packed documents do not see each other
  Objective objective = Objective::next_token;
  double mask_fraction = 0.15;  // masked: how likely a token is selected
  int64_t mask_token = -1;      // masked: what hides a token; -1 is the model's last token
};

enum class DeviceChoice { automatic, cpu, cuda };
enum class CommChoice { automatic, mpi, threads, nccl };

struct TrainConfig {
  int64_t steps = 200;
  int64_t global_batch_size = 1;  // samples a step, over the whole mesh
  int64_t micro_batch_size = 1;   // samples that a rank computes at a time
  DType precision = DType::f32;   // f32, f64 or bf16
  Recompute recompute = Recompute::none;
  uint64_t seed = 1;
  DeviceChoice device = DeviceChoice::automatic;
  CommChoice comm = CommChoice::automatic;
  bool deterministic = false;  // two runs on one mesh and kind of device give the same bits
  int64_t loss_slice = 1024;   // tokens whose logits exist at a time
  bool strict = false;         // a prediction that does not hold ends the run
};

enum class OptimizerName { adamw, muon };
enum class Schedule { cosine, wsd, constant };

struct OptimizerConfig {
  OptimizerName name = OptimizerName::adamw;
  double lr = 3e-4;
  double min_lr = 0;  // where cosine and wsd end
  int64_t warmup_steps = 0;
  Schedule schedule = Schedule::cosine;
  double decay_fraction = 0.2;  // wsd: the last share of the steps
  std::array<double, 2> betas{0.9, 0.95};
  double eps = 1e-8;
  double muon_momentum = 0.95;
  double weight_decay = 0.1;
  double grad_clip = 1.0;  // largest global gradient norm; 0 never clips
  int64_t zero = 1;        // ZeRO stage
};

struct LogConfig {
  int64_t every = 1;  // steps
};

struct Config {
  ModelConfig model;
  std::string from_hf;  // model.from_hf: a folder with config.json and weights; empty for none
  MeshShape mesh;       // data may be kAutoSize until resolve_mesh
  PipelineConfig pipeline;
  SequenceConfig sequence;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  LogConfig log;

  /// The token that data.mask_token means.
  int64_t mask_token() const {
    return data.mask_token < 0 ? model.vocab_size - 1 : data.mask_token;
  }
};

/// The size of an axis that takes the ranks the others leave ("auto" in the file).
inline constexpr int kAutoSize = 0;

struct LoadedConfig {
  Config config;
  /// Lines for the user: "context_parallel_size -> mesh.sequence" for every name that was taken
  /// from another program.
  std::vector<std::string> notes;
};

/// Reads the file at `path`; `sets` are "a.b=c", the last of equal keys wins. Throws Error(config)
/// with one line "file:line: key: expected ..., got ..." ("--set" in place of file and line).
LoadedConfig load_config(const std::string& path, const std::vector<std::string>& sets);

/// The same from text that was read elsewhere; `file_name` is for messages.
LoadedConfig parse_config(std::string_view text, std::string_view file_name,
                          const std::vector<std::string>& sets);

/// The config with every key written out; parses to an equal Config. With from_hf, what config.json
/// says is repeated in comments.
std::string to_yaml(const Config& config);

/// A markdown table of all keys with type, default and meaning.
std::string reference_table();

}  // namespace weft
