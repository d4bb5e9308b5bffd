// Names that are not fields: what is not built yet, and what other programs call our keys.
#include <algorithm>
#include <array>
#include <numeric>

#include "launch/config_schema.hpp"

namespace weft {
namespace {

// Building one of these deletes its row.
constexpr NotBuilt kNotBuilt[] = {
    {"checkpoint", "there are no checkpoints yet"},
};

struct Alias {
  std::string_view name;
  std::string_view key;
};

// Megatron-LM, torchtitan and nanotron. Names whose meaning differs from ours are left out.
constexpr Alias kAliases[] = {
    {"data_parallel_size", "mesh.data"},
    {"dp", "mesh.data"},
    {"pipeline_model_parallel_size", "mesh.pipeline"},
    {"pipeline_parallel_degree", "mesh.pipeline"},
    {"pp", "mesh.pipeline"},
    {"pipeline_parallel_schedule", "pipeline.schedule"},
    {"pp_engine", "pipeline.schedule"},
    {"num_virtual_stages_per_pipeline_rank", "pipeline.chunks"},
    {"virtual_pipeline_model_parallel_size", "pipeline.chunks"},
    {"context_parallel_size", "mesh.sequence"},
    {"context_parallel_degree", "mesh.sequence"},
    {"cp", "mesh.sequence"},
    {"tensor_model_parallel_size", "mesh.tensor"},
    {"tensor_parallel_degree", "mesh.tensor"},
    {"tp", "mesh.tensor"},
    {"num_layers", "model.num_hidden_layers"},
    {"num_query_groups", "model.num_key_value_heads"},
    {"kv_channels", "model.head_dim"},
    {"ffn_hidden_size", "model.intermediate_size"},
    {"rotary_base", "model.rope_theta"},
    {"seq_length", "data.seq_length"},
    {"seq_len", "data.seq_length"},
    {"sequence_length", "data.seq_length"},
    {"train_iters", "train.steps"},
    {"train_steps", "train.steps"},
    {"steps", "train.steps"},
    {"global_batch_size", "train.global_batch_size"},
    {"micro_batch_size", "train.micro_batch_size"},
    {"local_batch_size", "train.micro_batch_size"},
    {"seed", "train.seed"},
    {"lr", "optimizer.lr"},
    {"learning_rate", "optimizer.lr"},
    {"min_lr", "optimizer.min_lr"},
    {"min_decay_lr", "optimizer.min_lr"},
    {"warmup_steps", "optimizer.warmup_steps"},
    {"lr_warmup_iters", "optimizer.warmup_steps"},
    {"lr_warmup_steps", "optimizer.warmup_steps"},
    {"adam_eps", "optimizer.eps"},
    {"weight_decay", "optimizer.weight_decay"},
    {"clip_grad", "optimizer.grad_clip"},
    {"zero_stage", "optimizer.zero"},
    {"max_norm", "optimizer.grad_clip"},
    {"log_interval", "log.every"},
};

// Their sections; a name is also taken at the top and in our own section for it.
constexpr std::string_view kForeignSections[] = {
    "",       "parallelism",  "model_parallel", "training",
    "tokens", "lr_scheduler", "general",        "optimizer.learning_rate_scheduler"};

std::string_view section_of(std::string_view key) {
  const size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? std::string_view{} : key.substr(0, dot);
}

std::string_view last_of(std::string_view key) {
  return key.substr(key.rfind('.') + 1);
}

/// Levenshtein's distance in bytes.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // distances of a[0, i) to every b[0, j)
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

/// Edits that still make a word look like a slip of the other: a third of its letters.
bool is_close(size_t edits, std::string_view word) {
  return edits <= std::max<size_t>(1, word.size() / 3);
}

constexpr size_t kLongestWord = 100;  // a longer one is no slip of ours

}  // namespace

const NotBuilt* find_not_built(std::string_view key) {
  for (const NotBuilt& row : kNotBuilt) {
    const bool inside = key.starts_with(row.key) && key.substr(row.key.size()).starts_with('.');
    if (key == row.key || inside) return &row;
  }
  return nullptr;
}

std::string_view find_alias(std::string_view key) {
  std::string name(last_of(key));
  std::replace(name.begin(), name.end(), '-', '_');
  const std::string_view section = section_of(key);
  for (const Alias& alias : kAliases) {
    if (alias.name != name) continue;
    const bool foreign =
        std::count(std::begin(kForeignSections), std::end(kForeignSections), section);
    if (foreign || section == section_of(alias.key)) return alias.key;
  }
  return {};
}

bool is_from_hf(std::string_view key) {
  constexpr std::string_view kOurs[] = {"model.from_hf", "model.layer_pattern", "model.window",
                                        "model.projected_keys", "model.causal"};
  return key.starts_with("model.") && !key.starts_with("model.linear.") &&
         !key.starts_with("model.delta.") &&
         std::find(std::begin(kOurs), std::end(kOurs), key) == std::end(kOurs);
}

std::string nearest(std::string_view misspelt, std::span<const std::string> words) {
  if (misspelt.size() > kLongestWord) return {};
  const std::string* best = nullptr;
  size_t fewest = 0;
  for (const std::string& word : words) {
    const size_t edits = distance(misspelt, word);
    if (!is_close(edits, word) || (best != nullptr && edits >= fewest)) continue;
    best = &word;
    fewest = edits;
  }
  return best == nullptr ? "" : *best;
}

std::string nearest_key(std::string_view misspelt) {
  if (misspelt.size() > kLongestWord) return {};
  std::string_view best;
  size_t fewest = 0;
  const auto consider = [&](std::string_view key) {
    const size_t name_edits = distance(last_of(misspelt), last_of(key));
    if (!is_close(name_edits, last_of(key))) return;
    // the section decides among equally close names
    const size_t edits =
        2 * kLongestWord * name_edits + distance(section_of(misspelt), section_of(key));
    if (!best.empty() && edits >= fewest) return;
    best = key;
    fewest = edits;
  };
  for (const Field& field : fields()) consider(field.key);
  for (const NotBuilt& row : kNotBuilt) consider(row.key);
  return std::string(best);
}

}  // namespace weft
