#include "launch/scale_command.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>

#include "launch/json_file.hpp"
#include "launch/machine.hpp"
#include "launch/parity.hpp"
#include "launch/placement.hpp"
#include "launch/quantity.hpp"
#include "launch/quote.hpp"
#include "launch/scale.hpp"
#include "parallel/comm/mpi.hpp"
#include "src/core/log.hpp"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

struct ScaleOptions {
  std::string config;
  std::vector<std::string> sets;
  std::string seq;  // empty: data.seq_length
  std::vector<std::string> strategies{"all"};
  std::vector<int> ranks{1, 2, 4, 8};
  int repeats = 2;
  std::string memory;  // empty: of what is available
  bool product = false, no_error = false;
  std::string json;
};

LoadedConfig load(const ScaleOptions& options, int64_t tokens) {
  std::vector<std::string> sets = options.sets;
  sets.push_back("data.path=synthetic");  // whatever the file says, or does not say
  if (tokens > 0) sets.push_back(concat("data.seq_length=", tokens));
  return load_config(options.config, sets);
}

void check(const Config& config) {
  for (const Axis axis : {Axis::data, Axis::pipeline, Axis::tensor}) {
    const int size = config.mesh.along(axis);
    WEFT_REQUIRE(size == 1 || size == kAutoSize, ExitCode::config, "mesh.", name(axis),
                 ": expected 1, since weft scale lays its ranks along the sequence axis, got ",
                 size);
  }
  WEFT_REQUIRE(config.train.comm != CommChoice::mpi, ExitCode::config,
               "train.comm: expected threads, nccl or auto, since the ranks of weft scale are "
               "threads, got mpi");
}

/// Where the cells run.
struct Place {
  std::string comm;
  Machine machine;
  std::optional<Gpus> gpus;  // none on the CPU

  int64_t memory_bytes() const { return gpus ? gpus->memory_bytes : machine.memory_bytes; }
};

/// Throws Error(config) for what is refused whatever the number of ranks.
Place find_place(const ScaleOptions& options, const Config& config) {
  Config alone = on_one_rank(config);
  const RankChoice choice = place_ranks(alone, nullptr);
  Place place{.comm = choice.comm, .machine = this_machine(), .gpus = {}};
  if (choice.device == Device::cuda) {
    place.gpus = these_gpus(*std::ranges::max_element(options.ranks));
  }
  return place;
}

int64_t memory_limit(const ScaleOptions& options, const Place& place) {
  if (options.memory.empty()) return place.memory_bytes() / 10 * 9;
  const double bytes = parse_quantity("--memory", options.memory, "B");
  WEFT_REQUIRE(bytes >= 1 && bytes <= 1e18, ExitCode::usage,
               "--memory: expected 1B to 1000PB, got ", quote(options.memory));
  return static_cast<int64_t>(bytes);
}

ScaleGrid make_grid(const ScaleOptions& options, const Config& config, const Place& place) {
  const std::set<int> ranks(options.ranks.begin(), options.ranks.end());
  return {.lengths = options.seq.empty() ? std::vector<int64_t>{config.data.seq_length}
                                         : parse_lengths("--seq", options.seq),
          .pairs = strategy_pairs(config, options.strategies, options.product, "--strategies"),
          .ranks = {ranks.begin(), ranks.end()},
          .repeats = options.repeats,
          .memory_bytes = memory_limit(options, place),
          .errors = !options.no_error};
}

// ---- The table

std::string text(const Place& place, const ScaleGrid& grid) {
  const Machine& machine = place.machine;
  const double gib = static_cast<double>(grid.memory_bytes) / (1 << 30);
  if (!place.gpus) {
    return fmt::format(
        "cpu: {}, {} cores, which the ranks share as threads; at most {:.3g} GiB of arenas",
        machine.cpu.empty() ? "unknown" : machine.cpu, machine.cores, gib);
  }
  return fmt::format(
      "gpu: {} x {}, {}; at most {:.3g} GiB of arenas on one", place.gpus->count, place.gpus->name,
      place.comm == "nccl" ? "one a rank, over NCCL" : "which the ranks take in turn as threads",
      gib);
}

std::string text_of_errors(const ScaleGrid& grid, DType precision) {
  if (!grid.errors) return ", and not asked for";
  return fmt::format(", at most {:.0e}{}", parity_tolerance(precision),
                     precision == DType::bf16 ? " or twice what one rank is off from f32" : "");
}

void print_header(const ScaleOptions& options, const Config& config, const ScaleGrid& grid,
                  const Place& place) {
  const ModelConfig& model = config.model;
  fmt::print("{}: {} layers of pattern {}, {} wide, {} heads of {}, {}, {} x seq tokens a step{}\n",
             options.config, model.num_hidden_layers, model.layer_pattern, model.hidden_size,
             model.num_attention_heads, model.head_dim, name(config.train.precision),
             config.train.global_batch_size, config.data.documents ? ", in documents" : "");
  fmt::print("{}\n", text(place, grid));
  fmt::print(
      "s/step is the best of {}{}; sent is of all ranks along the sequence axis;\n"
      "peak is the fullest rank's; strong and weak are against {} rank{}; "
      "error is against one rank{}\n\n",
      grid.repeats,
      place.gpus ? " that follow one another, from end to end" : " after one to warm up",
      grid.ranks.front(), grid.ranks.front() == 1 ? "" : "s",
      text_of_errors(grid, config.train.precision));
  fmt::print("{:>10} {:<10} {:<10} {:>5} {:>10} {:>12} {:>12} {:>14} {:>10} {:>7} {:>7} {:>9}\n",
             "seq", "attention", "scan", "ranks", "s/step", "tokens/s", "a rank", "sent bytes",
             "peak MiB", "strong", "weak", "error");
}

/// What a column has room for.
std::string column_name(const std::vector<std::string>& names) {
  return names.empty() ? "-" : names.size() == 1 ? names[0] : "by layer";
}

std::string ratio(const std::optional<double>& value) {
  return value ? fmt::format("{:.2f}", *value) : "-";
}

std::string largest_error(const ScaleCell& cell) {
  if (!cell.errors) return "-";
  return fmt::format("{:.2e}", std::max(cell.errors->loss, cell.errors->gradient));
}

void print(const ScaleCell& cell) {
  fmt::print("{:>10} {:<10} {:<10} {:>5}", cell.tokens, column_name(cell.strategies.attention),
             column_name(cell.strategies.state), cell.ranks);
  if (cell.measured()) {
    fmt::print(" {:>10.4g} {:>12.1f} {:>12.1f} {:>14} {:>10.1f} {:>7} {:>7} {:>9}", cell.step_s(),
               cell.tokens_per_s(), cell.tokens_per_s_per_rank(), cell.sent_bytes,
               static_cast<double>(cell.peak_bytes) / (1 << 20), ratio(cell.strong_efficiency),
               ratio(cell.weak_efficiency), largest_error(cell));
  }
  if (!cell.skipped.empty()) fmt::print("  skipped: {}", cell.skipped);
  if (!cell.failed.empty()) fmt::print("  FAILED: {}", cell.failed);
  fmt::print("\n");
  std::fflush(stdout);
}

// ---- JSON

Json names_json(const std::vector<std::string>& names) {
  if (names.empty()) return nullptr;
  return fmt::format("{}", fmt::join(names, ","));
}

Json or_null(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json to_json(const ScaleCell& cell) {
  Json json{{"tokens", cell.tokens},
            {"attention", names_json(cell.strategies.attention)},
            {"state", names_json(cell.strategies.state)},
            {"ranks", cell.ranks}};
  if (!cell.skipped.empty()) json["skipped"] = cell.skipped;
  if (!cell.failed.empty()) json["failed"] = cell.failed;
  if (!cell.measured()) return json;
  json["step_s"] = cell.step_s();
  json["steps_s"] = cell.seconds;
  json["tokens_per_s"] = cell.tokens_per_s();
  json["tokens_per_s_per_rank"] = cell.tokens_per_s_per_rank();
  json["sequence_bytes"] = {{"predicted", cell.predicted_bytes}, {"counted", cell.sent_bytes}};
  json["peak_bytes"] = {{"planned", cell.planned_peak_bytes}, {"real", cell.peak_bytes}};
  json["strong_efficiency"] = or_null(cell.strong_efficiency);
  json["weak_efficiency"] = or_null(cell.weak_efficiency);
  json["error"] = nullptr;
  if (cell.errors) {
    json["error"] = {{"loss", cell.errors->loss},
                     {"grad", cell.errors->gradient},
                     {"worst_grad", cell.errors->worst_gradient},
                     {"of_tolerance", cell.errors->of_tolerance}};
  }
  return json;
}

Json to_json(const Place& place) {
  Json json{{"cpu", place.machine.cpu}, {"cores", place.machine.cores}};
  if (place.gpus) json.update({{"gpu", place.gpus->name}, {"gpus", place.gpus->count}});
  return json;
}

Json to_json(const ScaleOptions& options, const Config& config, const ScaleGrid& grid,
             const Place& place) {
  const ModelConfig& model = config.model;
  return {{"ok", true},
          {"config", options.config},
          {"model",
           {{"num_hidden_layers", model.num_hidden_layers},
            {"layer_pattern", model.layer_pattern},
            {"hidden_size", model.hidden_size},
            {"num_attention_heads", model.num_attention_heads},
            {"head_dim", model.head_dim}}},
          {"precision", name(config.train.precision)},
          {"global_batch_size", config.train.global_batch_size},
          {"documents", config.data.documents},
          {"device", place.gpus ? "cuda" : "cpu"},
          {"comm", place.comm},
          {"machine", to_json(place)},
          {"memory_limit_bytes", grid.memory_bytes},
          {"tolerance", parity_tolerance(config.train.precision)},
          {"rows", Json::array()}};
}

int scale(const ScaleOptions& options) {
  WEFT_REQUIRE(!launched_by_mpi(), ExitCode::usage,
               "weft scale starts its ranks itself: run it without mpirun and srun");
  const LoadedConfig loaded = load(options, 0);
  for (const std::string& note : loaded.notes) log::info(note);
  const Config& config = loaded.config;
  check(config);
  const Place place = find_place(options, config);
  const ScaleGrid grid = make_grid(options, config, place);
  Json json = to_json(options, config, grid, place);
  write_json(options.json, json);
  if (place.comm != "nccl") set_wait_deadline(kLongestWait);  // a GPU each wait as in training
  print_header(options, config, grid, place);
  bool ok = true;
  run_scale(
      grid, [&](int64_t tokens) { return load(options, tokens).config; },
      [&](const ScaleCell& cell) {
        print(cell);
        ok &= cell.failed.empty();
        json["ok"] = ok;
        json["rows"].push_back(to_json(cell));
        write_json(options.json, json);  // what there is, should the run be cut short
      });
  return static_cast<int>(ok ? ExitCode::done : ExitCode::comparison);
}

}  // namespace

void add_scale_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* command = app.add_subcommand(
      "scale", "train a few steps at every length, strategy and number of ranks, and compare");
  auto options = std::make_shared<ScaleOptions>();
  command->add_option("config", options->config, "YAML file; its data is not read")
      ->required()
      ->type_name("CONFIG");
  command->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command
      ->add_option("--seq", options->seq,
                   "lengths of the sequence and ranges of them that double, as 4096,32k..1M "
                   "(k = 1024, M = 1024^2) [data.seq_length]")
      ->type_name("N,A..B,...");
  // A list is one argument, so that CONFIG may follow it.
  command
      ->add_option("--strategies", options->strategies,
                   "all, or attention strategies and state scans of `weft strategies`")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str()
      ->type_name("NAME,...");
  command->add_option("--ranks", options->ranks, "ranks of the sequence axis, threads here")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->type_name("P,...");
  command->add_option("--repeats", options->repeats, "steps that are timed; the fastest counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  command
      ->add_option("--memory", options->memory,
                   "limit of the arenas of all ranks together, on GPUs of those that share one "
                   "[nine tenths of what is available]")
      ->type_name("QUANTITY");
  command->add_flag("--product", options->product,
                    "every attention strategy with every scan, where a model has both");
  command->add_flag("--no-error", options->no_error, "do not compare with one rank");
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback([&action, options] { action = [options] { return scale(*options); }; });
}

}  // namespace weft
