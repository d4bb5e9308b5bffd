#include "launch/config_schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "launch/config_rows.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

using rows::choice;
using rows::flag;
using rows::integer;
using rows::kNotNegative;
using rows::kPositive;
using rows::kPositiveShare;
using rows::kShare;
using rows::line;
using rows::number;
using rows::number_text;
using rows::to_number;
using yaml::Value;
using Kind = Value::Kind;

constexpr int64_t kMany = 1'000'000'000;  // products of three sizes stay inside int64
constexpr int64_t kMostRanks = 65'535;    // and of four axes inside uint64
constexpr int64_t kMostLayers = 100'000;

/// The getter of a section's member.
template <class Section, class Member>
auto in(Section Config::*section, Member Section::*member) {
  return [=](auto& config) -> auto& {
    return config.*section.*member;
  };
}

Field axis(Axis which, std::string doc) {
  return integer(
      concat("mesh.", name(which)),
      [=](auto& c) -> auto& { return c.mesh.size[static_cast<int>(which)]; }, 1, kMostRanks,
      std::move(doc));
}

/// The data axis, which may be auto.
Field data_axis() {
  Field field = axis(Axis::data, "ranks along the data axis; auto = what the other axes leave");
  field.type += " or auto";
  field.choices = {"auto"};
  field.read = [read = std::move(field.read)](Config& config, const Value& value) {
    if (value.kind != Kind::scalar || value.text != "auto") return read(config, value);
    config.mesh.along(Axis::data) = kAutoSize;
    return true;
  };
  field.write = [](const Config& config) {
    const int size = config.mesh.along(Axis::data);
    return size == kAutoSize ? "auto" : std::to_string(size);
  };
  return field;
}

Field mesh_order() {
  const auto read = [](Config& config, const Value& value) {
    std::vector<Axis> order;
    for (const Value& item : value.items) {
      for (const Axis one : kAllAxes) {
        if (item.text == name(one) && std::count(order.begin(), order.end(), one) == 0) {
          order.push_back(one);
        }
      }
    }
    if (order.size() != kAxes || value.items.size() != kAxes) return false;
    std::copy(order.begin(), order.end(), config.mesh.order.begin());
    return true;
  };
  const auto write = [](const Config& config) {
    std::string out;
    for (const Axis one : config.mesh.order)
      out += (out.empty() ? "[" : ", ") + std::string(name(one));
    return out + "]";
  };
  return {.key = "mesh.order",
          .type = "a list of the four axes",
          .doc = "slowest to fastest in rank order",
          .choices = {},
          .read = read,
          .write = write};
}

/// What sequence.attention may say.
const std::vector<std::string>& attention_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const AttentionStrategy& strategy : attention_strategies()) all.push_back(strategy.name);
    all.push_back("auto");
    return all;
  }();
  return names;
}

Field attention() {
  const auto read = [](Config& config, const Value& value) {
    const std::vector<Value> items = value.kind == Kind::list ? value.items : std::vector{value};
    std::vector<std::string> names;
    for (const Value& item : items) {
      if (std::count(attention_names().begin(), attention_names().end(), item.text) == 0)
        return false;
      names.push_back(item.text);
    }
    if (names.empty()) return false;
    config.sequence.attention = std::move(names);
    return true;
  };
  const auto write = [](const Config& config) {
    const auto& names = config.sequence.attention;
    return names.size() == 1 ? names[0] : fmt::format("[{}]", fmt::join(names, ", "));
  };
  return {.key = "sequence.attention",
          .type = fmt::format("{}, or a list of them", fmt::join(attention_names(), ", ")),
          .doc =
              "how softmax attention crosses ranks: one name, or one a softmax layer; auto = the "
              "fewest bytes, then the fewest calls",
          .choices = attention_names(),
          .read = read,
          .write = write};
}

/// The windows, which only a pattern with a W has.
Field window() {
  const auto read = [](Config& config, const Value& value) {
    const std::vector<Value> items = value.kind == Kind::list ? value.items : std::vector{value};
    std::vector<int64_t> windows;
    for (const Value& item : items) {
      const auto window = rows::to_integer(item);
      if (!window || *window < 1 || *window > kMany) return false;
      windows.push_back(*window);
    }
    if (windows.empty()) return false;
    config.model.window = std::move(windows);
    return true;
  };
  const auto write = [](const Config& config) -> std::string {
    const auto& windows = config.model.window;
    if (windows.empty()) return "";
    return windows.size() == 1 ? std::to_string(windows[0])
                               : fmt::format("[{}]", fmt::join(windows, ", "));
  };
  return {.key = "model.window",
          .type = rows::integer_type(1, kMany) + ", or a list of them",
          .doc =
              "keys that a query of a W layer sees, its own included: one number, or one a W "
              "layer; needed with a W",
          .choices = {},
          .read = read,
          .write = write};
}

/// The rows of the projections, which only a pattern with a P has.
Field projected_keys() {
  Field field =
      integer("model.projected_keys", in(&Config::model, &ModelConfig::projected_keys), 1, kMany,
              "rows that keys and values of a P layer are projected to; needed with a P");
  field.write = [write = std::move(field.write)](const Config& config) {
    return config.model.projected_keys == 0 ? "" : write(config);
  };
  return field;
}

/// The mask token, which the config may leave to the vocabulary.
Field mask_token() {
  Field field = integer("data.mask_token", in(&Config::data, &DataConfig::mask_token), 0, kMany,
                        "masked: the token that hides a selected one; default: the last of "
                        "`model.vocab_size`, which the data must leave free");
  field.write = [write = std::move(field.write)](const Config& config) {
    return config.data.mask_token < 0 ? "" : write(config);
  };
  return field;
}

Field betas() {
  const auto read = [](Config& config, const Value& value) {
    if (value.items.size() != 2) return false;
    const auto first = to_number(value.items[0]);
    const auto second = to_number(value.items[1]);
    const auto holds = [](const auto& beta) { return beta && *beta >= 0 && *beta < 1; };
    if (!holds(first) || !holds(second)) return false;
    config.optimizer.betas = {*first, *second};
    return true;
  };
  const auto write = [](const Config& config) {
    const auto& b = config.optimizer.betas;
    return "[" + number_text(b[0]) + ", " + number_text(b[1]) + "]";
  };
  return {.key = "optimizer.betas",
          .type = "a list of two numbers >= 0 and < 1",
          .doc = "decay of the first and second moment",
          .choices = {},
          .read = read,
          .write = write};
}

/// A key of model.rope_scaling: any of them turns the scaling on, the others at their defaults.
Field scaling(const std::string& name, double Llama3Scaling::*member, std::string doc) {
  const auto read = [=](Config& config, const Value& value) {
    const auto x = to_number(value);
    if (!x || *x <= 0) return false;
    auto& llama3 = config.model.rope.llama3;
    if (!llama3) llama3.emplace();
    (*llama3).*member = *x;
    return true;
  };
  const auto write = [=](const Config& config) {
    const auto& llama3 = config.model.rope.llama3;
    return llama3 ? number_text((*llama3).*member) : "";
  };
  return {.key = "model.rope_scaling." + name,
          .type = kPositive.type,
          .doc = std::move(doc),
          .choices = {},
          .read = read,
          .write = write};
}

Field scaling_type() {
  const auto read = [](Config& config, const Value& value) {
    if (value.text != "llama3") return false;
    auto& llama3 = config.model.rope.llama3;
    if (!llama3) llama3.emplace();
    return true;
  };
  const auto write = [](const Config& config) { return config.model.rope.llama3 ? "llama3" : ""; };
  return {.key = "model.rope_scaling.rope_type",
          .type = "llama3",
          .doc = "slow rotary frequencies are divided; leave the section out for none",
          .choices = {"llama3"},
          .read = read,
          .write = write};
}

// ---- The table

std::vector<Field> model_fields() {
  using M = ModelConfig;
  const auto model = [](auto member) { return in(&Config::model, member); };
  const auto from_hf = [](auto& c) -> auto& {
    return c.from_hf;
  };
  const auto theta = [](auto& c) -> auto& {
    return c.model.rope.theta;
  };
  using L = Llama3Scaling;
  return {
      line("model.from_hf", from_hf, "a folder",
           "Hugging Face folder: config.json gives the keys below, and training starts from its "
           "weights"),
      integer("model.vocab_size", model(&M::vocab_size), 2, kMany, "token ids are below this"),
      integer("model.hidden_size", model(&M::hidden_size), 1, kMany,
              "width of the residual stream"),
      integer("model.num_hidden_layers", model(&M::num_hidden_layers), 1, kMostLayers, "layers"),
      integer("model.num_attention_heads", model(&M::num_attention_heads), 1, kMany, "query heads"),
      integer("model.num_key_value_heads", model(&M::num_key_value_heads), 1, kMany,
              "key and value heads; divides the query heads"),
      integer("model.head_dim", model(&M::head_dim), 2, kMany, "width of a head; even"),
      integer("model.intermediate_size", model(&M::intermediate_size), 1, kMany,
              "inner width of the MLP"),
      number("model.rms_norm_eps", model(&M::rms_norm_eps), kPositive,
             "added to the mean square in RMSNorm"),
      number("model.rope_theta", theta, kPositive, "base of the rotary frequencies"),
      scaling_type(),
      scaling("factor", &L::factor, "divisor of the slow frequencies"),
      scaling("low_freq_factor", &L::low_freq_factor,
              "turns within the original context below which a frequency is slow"),
      scaling("high_freq_factor", &L::high_freq_factor, "turns above which a frequency stays"),
      scaling("original_max_position_embeddings", &L::original_max_position_embeddings,
              "the original context in tokens"),
      flag("model.tie_word_embeddings", model(&M::tie_word_embeddings),
           "the output matrix is the embedding table"),
      flag("model.causal", model(&M::causal), "a token sees those before it, not those after"),
      line("model.layer_pattern", model(&M::layer_pattern), "a pattern of letters",
           "one letter a layer, repeated: * softmax attention, W the same in a sliding window, P "
           "the same over projected keys"),
      window(),
      projected_keys(),
      number("model.embedding_std", model(&M::embedding_std), kNotNegative,
             "initial standard deviation of the embedding table"),
  };
}

std::vector<Field> layout_fields() {
  const auto data = [](auto member) { return in(&Config::data, member); };
  return {
      data_axis(),
      axis(Axis::pipeline, "ranks along the pipeline axis"),
      axis(Axis::sequence, "ranks that share a sequence"),
      axis(Axis::tensor, "ranks along the tensor axis"),
      mesh_order(),
      attention(),
      line("data.path", data(&DataConfig::path), "a token file or synthetic",
           "token file, or synthetic for counter-based tokens; required"),
      integer("data.seq_length", data(&DataConfig::seq_length), 1, kMany, "tokens of a sample"),
      flag("data.documents", data(&DataConfig::documents),
           "packed documents do not see each other"),
      choice("data.objective", data(&DataConfig::objective),
             std::vector<std::pair<std::string, Objective>>{{"next_token", Objective::next_token},
                                                            {"masked", Objective::masked}},
             "what is predicted: every next token, or tokens that a mask hides (needs "
             "`model.causal: false`)"),
      number("data.mask_fraction", data(&DataConfig::mask_fraction), kPositiveShare,
             "masked: how likely a token is selected"),
      mask_token(),
  };
}

std::vector<Field> train_fields() {
  using T = TrainConfig;
  const auto train = [](auto member) { return in(&Config::train, member); };
  return {
      integer("train.steps", train(&T::steps), 1, kMany, "optimizer steps of the run"),
      integer("train.global_batch_size", train(&T::global_batch_size), 1, kMany,
              "samples of a step, over the whole mesh"),
      integer("train.micro_batch_size", train(&T::micro_batch_size), 1, kMany,
              "samples that a rank computes at a time"),
      choice("train.precision", train(&T::precision),
             std::vector<std::pair<std::string, DType>>{{"f32", DType::f32}, {"f64", DType::f64}},
             "compute type; losses, states and reductions are at least f32"),
      choice("train.recompute", train(&T::recompute),
             std::vector<std::pair<std::string, Recompute>>{
                 {"none", Recompute::none},
                 {"layer", Recompute::layer},
                 {"attention_output", Recompute::attention_output}},
             "what backward computes again: nothing, layers, or layers but for the attention"),
      integer("train.seed", train(&T::seed), 0, std::numeric_limits<int64_t>::max(),
              "initial values and the order of the samples follow from it"),
      choice("train.device", train(&T::device),
             std::vector<std::pair<std::string, DeviceChoice>>{{"auto", DeviceChoice::automatic},
                                                               {"cpu", DeviceChoice::cpu}},
             "where the model runs"),
      choice("train.comm", train(&T::comm),
             std::vector<std::pair<std::string, CommChoice>>{{"auto", CommChoice::automatic},
                                                             {"mpi", CommChoice::mpi},
                                                             {"threads", CommChoice::threads}},
             "what carries messages between ranks"),
      integer("train.loss_slice", train(&T::loss_slice), 1, kMany,
              "tokens whose logits exist at a time"),
      flag("train.strict", train(&T::strict), "a prediction that does not hold ends the run"),
  };
}

std::vector<Field> optimizer_fields() {
  using O = OptimizerConfig;
  const auto optimizer = [](auto member) { return in(&Config::optimizer, member); };
  return {
      number("optimizer.lr", optimizer(&O::lr), kPositive, "highest learning rate"),
      number("optimizer.min_lr", optimizer(&O::min_lr), kNotNegative,
             "learning rate of the last step (cosine, wsd)"),
      integer("optimizer.warmup_steps", optimizer(&O::warmup_steps), 0, kMany,
              "steps of linear rise to lr"),
      choice("optimizer.schedule", optimizer(&O::schedule),
             std::vector<std::pair<std::string, Schedule>>{{"cosine", Schedule::cosine},
                                                           {"wsd", Schedule::wsd},
                                                           {"constant", Schedule::constant}},
             "learning rate after the warm-up; wsd is stable, then linear decay"),
      number("optimizer.decay_fraction", optimizer(&O::decay_fraction), kShare,
             "wsd: share of the steps, at the end, that decay"),
      betas(),
      number("optimizer.eps", optimizer(&O::eps), kPositive,
             "added to the root of the second moment"),
      number("optimizer.weight_decay", optimizer(&O::weight_decay), kNotNegative,
             "decoupled decay of matrices"),
      number("optimizer.grad_clip", optimizer(&O::grad_clip), kNotNegative,
             "largest global gradient norm; 0 never clips"),
      integer("optimizer.zero", optimizer(&O::zero), 0, 3,
              "ZeRO stage: 1 shards the optimizer state"),
      integer("log.every", in(&Config::log, &LogConfig::every), 1, kMany,
              "steps between lines of the log"),
  };
}

/// The section of a key and its last name: "model.rope_scaling", "factor".
std::pair<std::string_view, std::string_view> split(std::string_view key) {
  const size_t dot = key.rfind('.');
  if (dot == std::string_view::npos) return {{}, key};
  return {key.substr(0, dot), key.substr(dot + 1)};
}

/// Writes "section:" lines for the part of `section` that `previous` has not opened.
void open_section(std::string& out, std::string_view previous, std::string_view section) {
  const auto is_open = [&](std::string_view s) {
    return previous == s || (previous.starts_with(s) && previous[s.size()] == '.');
  };
  if (is_open(section)) return;
  const auto [above, last] = split(section);
  if (!above.empty()) open_section(out, previous, above);
  out += fmt::format("{:{}}{}:\n", "", 2 * std::count(section.begin(), section.end(), '.'), last);
}

}  // namespace

std::string rows::number_text(double number) {
  return fmt::format("{}", number);
}

std::span<const Field> fields() {
  static const std::vector<Field> all = [] {
    std::vector<Field> rows;
    for (auto part : {model_fields(), layout_fields(), train_fields(), optimizer_fields()}) {
      std::move(part.begin(), part.end(), std::back_inserter(rows));
    }
    return rows;
  }();
  return all;
}

const Field* find_field(std::string_view key) {
  const auto rows = fields();
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const Field& f) { return f.key == key; });
  return row == rows.end() ? nullptr : &*row;
}

std::string to_yaml(const Config& config) {
  std::string out;
  std::string_view section;
  for (const Field& field : fields()) {
    const std::string value = field.write(config);
    if (value.empty()) continue;
    const auto [own, last] = split(field.key);
    const bool comment = !config.from_hf.empty() && is_from_hf(field.key);
    if (comment) {
      out +=
          fmt::format("  # {}: {}\n", field.key.substr(std::string_view("model.").size()), value);
      continue;
    }
    open_section(out, section, own);
    section = own;
    out += fmt::format("{:{}}{}: {}\n", "", 2 * std::count(field.key.begin(), field.key.end(), '.'),
                       last, value);
  }
  return out;
}

std::string reference_table() {
  std::string out = "| Key | Value | Default | Meaning |\n|---|---|---|---|\n";
  for (const Field& field : fields()) {
    const std::string value = field.write(Config{});
    out += fmt::format("| `{}` | {} | {} | {} |\n", field.key, field.type,
                       value.empty() ? "" : "`" + value + "`", field.doc);
  }
  return out;
}

}  // namespace weft
