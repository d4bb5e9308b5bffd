#include "launch/config_schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "launch/config_rows.hpp"
#include "parallel/pipeline/schedules.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

using rows::choice;
using rows::flag;
using rows::in;
using rows::integer;
using rows::kMany;
using rows::kNotNegative;
using rows::kPositive;
using rows::kPositiveShare;
using rows::kShare;
using rows::kShareBelowOne;
using rows::line;
using rows::number;
using rows::number_text;
using rows::to_number;
using yaml::Value;
using Kind = Value::Kind;

constexpr int64_t kMostRanks = 65'535;  // and of four axes inside uint64

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

/// Names of a table of strategies, with auto.
template <class Row>
std::vector<std::string> names_of(std::span<const Row> table) {
  std::vector<std::string> names;
  for (const Row& row : table) names.push_back(row.name);
  names.push_back("auto");
  return names;
}

/// Names of strategies, one for all layers of a sort or one a layer.
Field strategies(const char* key, std::vector<std::string> SequenceConfig::*member,
                 std::vector<std::string> known, std::string doc) {
  const auto read = [=](Config& config, const Value& value) {
    const std::vector<Value> items = value.kind == Kind::list ? value.items : std::vector{value};
    std::vector<std::string> names;
    for (const Value& item : items) {
      if (std::count(known.begin(), known.end(), item.text) == 0) return false;
      names.push_back(item.text);
    }
    if (names.empty()) return false;
    config.sequence.*member = std::move(names);
    return true;
  };
  const auto write = [=](const Config& config) {
    const auto& names = config.sequence.*member;
    return names.size() == 1 ? names[0] : fmt::format("[{}]", fmt::join(names, ", "));
  };
  return {.key = key,
          .type = fmt::format("{}, or a list of them", fmt::join(known, ", ")),
          .doc = std::move(doc),
          .choices = known,
          .read = read,
          .write = write};
}

/// One of ours, or torchtitan's name for the same.
Field pipeline_schedule_name() {
  std::vector<std::pair<std::string, std::string>> names;
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    names.push_back({kind.name, kind.name});
  }
  Field field = choice("pipeline.schedule", in(&Config::pipeline, &PipelineConfig::schedule), names,
                       "in which order a stage takes micro-batches forward and backward");
  field.read = [read = std::move(field.read)](Config& config, const Value& value) {
    constexpr std::pair<const char*, const char*> kTorchtitan[] = {
        {"GPipe", "gpipe"},
        {"1F1B", "1f1b"},
        {"Interleaved1F1B", "interleaved"},
        {"ZBVZeroBubble", "zb_v"}};
    Value ours = value;
    for (const auto& [theirs, name] : kTorchtitan) {
      if (value.text == theirs) ours.text = name;
    }
    return read(config, ours);
  };
  return field;
}

/// An integer >= 1, or auto, which is kept as 0.
template <class Section>
Field integer_or_auto(const char* key, Section Config::*section, int64_t Section::*member,
                      int64_t most, std::string doc) {
  Field field = integer(key, in(section, member), 1, most, std::move(doc));
  field.type += " or auto";
  field.choices = {"auto"};
  field.read = [=, read = std::move(field.read)](Config& config, const Value& value) {
    if (value.kind != Kind::scalar || value.text != "auto") return read(config, value);
    config.*section.*member = 0;
    return true;
  };
  field.write = [=](const Config& config) {
    const int64_t size = config.*section.*member;
    return size == 0 ? "auto" : std::to_string(size);
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

// ---- The table

std::vector<Field> layout_fields() {
  const auto data = [](auto member) { return in(&Config::data, member); };
  return {
      data_axis(),
      axis(Axis::pipeline, "stages of a pipeline, each with some of the layers"),
      axis(Axis::sequence, "ranks that share a sequence"),
      axis(Axis::tensor, "ranks along the tensor axis"),
      mesh_order(),
      pipeline_schedule_name(),
      integer_or_auto("pipeline.chunks", &Config::pipeline, &PipelineConfig::chunks, kMostRanks,
                      "pieces of the model that a stage has; auto = one, two of interleaved and "
                      "zb_v"),
      strategies("sequence.attention", &SequenceConfig::attention, names_of(attention_strategies()),
                 "how softmax attention crosses ranks: one name, or one a softmax layer; auto = "
                 "the fewest bytes, then the fewest calls"),
      strategies("sequence.state", &SequenceConfig::state, names_of(state_scans()),
                 "how the state of L and G layers crosses ranks: one name, or one a layer; auto = "
                 "zeco, the fewest bytes in the shortest chain"),
      integer_or_auto("sequence.zeco_blocks", &Config::sequence, &SequenceConfig::zeco_blocks,
                      kMany,
                      "blocks that zeco cuts a state into; auto = as many as make the shortest "
                      "chain"),
      integer_or_auto("sequence.group", &Config::sequence, &SequenceConfig::group, kMostRanks,
                      "ranks of a group of two_level; auto = about the root of the ranks"),
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
             std::vector<std::pair<std::string, DType>>{
                 {"f32", DType::f32}, {"f64", DType::f64}, {"bf16", DType::bf16}},
             "compute type; losses, states and reductions are at least f32. bf16: on a GPU, with "
             "f32 master weights and gradients"),
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
                                                               {"cpu", DeviceChoice::cpu},
                                                               {"cuda", DeviceChoice::cuda}},
             "where the model runs; auto: on GPUs where every rank has one and the model can"),
      choice("train.comm", train(&T::comm),
             std::vector<std::pair<std::string, CommChoice>>{{"auto", CommChoice::automatic},
                                                             {"mpi", CommChoice::mpi},
                                                             {"threads", CommChoice::threads},
                                                             {"nccl", CommChoice::nccl}},
             "what carries messages between ranks; auto: of processes nccl where each has a GPU of "
             "its own, else mpi"),
      flag("train.deterministic", train(&T::deterministic),
           "two runs on one mesh and kind of device are equal to the bit, and end with a checksum "
           "of the parameters; in bf16 on GPUs own kernels take attention's backward pass from "
           "cuDNN"),
      integer("train.loss_slice", train(&T::loss_slice), 1, kMany,
              "tokens whose logits exist at a time"),
      flag("train.strict", train(&T::strict), "a prediction that does not hold ends the run"),
  };
}

std::vector<Field> optimizer_fields() {
  using O = OptimizerConfig;
  const auto optimizer = [](auto member) { return in(&Config::optimizer, member); };
  return {
      choice("optimizer.name", optimizer(&O::name),
             std::vector<std::pair<std::string, OptimizerName>>{{"adamw", OptimizerName::adamw},
                                                                {"muon", OptimizerName::muon}},
             "muon orthogonalises the updates of hidden matrices; the table, the head's matrix and "
             "all else then take adamw's"),
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
      number("optimizer.muon_momentum", optimizer(&O::muon_momentum), kShareBelowOne,
             "muon: Nesterov momentum of hidden matrices"),
      number("optimizer.weight_decay", optimizer(&O::weight_decay), kNotNegative,
             "decoupled decay of matrices"),
      number("optimizer.grad_clip", optimizer(&O::grad_clip), kNotNegative,
             "largest global gradient norm; 0 never clips"),
      integer("optimizer.zero", optimizer(&O::zero), 1, 3,
              "ZeRO stage: 1 shards the optimizer's state over the ranks that hold a parameter, 2 "
              "gradients too, 3 values too"),
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
    for (auto part : {rows::model_fields(), layout_fields(), train_fields(), optimizer_fields()}) {
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
