#include "launch/sequence_bench_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "launch/json_file.hpp"
#include "launch/quantity.hpp"
#include "launch/quote.hpp"
#include "launch/sequence_bench.hpp"
#include "launch/trainer.hpp"
#include "src/core/log.hpp"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

struct SequenceBenchOptions {
  std::string config;
  std::vector<std::string> sets;
  std::vector<std::string> tables{"bytes", "overlap", "memory"};
  std::vector<std::string> strategies{"all"};
  std::vector<int> ranks{2, 4, 8, 16};
  std::string flops = "100GFLOP/s", memory_bandwidth = "20GB/s";
  std::string link_bandwidth = "10GB/s", latency = "10us";
  std::string real_time = "400ms";
  int repeats = 2;
  std::string memory = "40GiB";
  std::string json;
};

double above_zero(const char* flag, const std::string& text, const char* unit) {
  const double value = parse_quantity(flag, text, unit);
  WEFT_REQUIRE(value > 0, ExitCode::usage, flag, ": expected more than 0, got ", quote(text));
  return value;
}

/// What the quantities say, read before any table is made.
struct Quantities {
  explicit Quantities(const SequenceBenchOptions& options)
      : machine{.flops_per_s = above_zero("--flops", options.flops, "FLOP/s"),
                .memory_bytes_per_s =
                    above_zero("--memory-bandwidth", options.memory_bandwidth, "B/s"),
                .link_bytes_per_s = above_zero("--link-bandwidth", options.link_bandwidth, "B/s"),
                .message_s = parse_quantity("--latency", options.latency, "s")},
        real_s(parse_quantity("--real-time", options.real_time, "s")),
        memory_bytes(above_zero("--memory", options.memory, "B")) {
    WEFT_REQUIRE(memory_bytes <= kMostMemory, ExitCode::usage,
                 "--memory: expected at most 1000PB, got ", quote(options.memory));
    WEFT_REQUIRE(real_s <= 600, ExitCode::usage, "--real-time: expected at most 600s, got ",
                 quote(options.real_time));
  }

  SimulatedMachine machine;
  double real_s;
  double memory_bytes;

 private:
  static constexpr double kMostMemory = 1e18;  // so that twice the tokens are still counted in i64
};

/// The strategies that were asked for, in the order of the table, each on every number of ranks.
std::vector<StrategyOnRanks> cases_of(const SequenceBenchOptions& options) {
  std::vector<StrategyOnRanks> cases;
  std::string known = "all";
  const auto asked = [&](const char* name) {
    return std::count(options.strategies.begin(), options.strategies.end(), name) > 0;
  };
  size_t found = asked("all") ? 1 : 0;
  for (const AttentionStrategy& strategy : attention_strategies()) {
    known += concat(", ", strategy.name);
    found += asked(strategy.name) ? 1 : 0;
    if (!asked("all") && !asked(strategy.name)) continue;
    for (const int ranks : options.ranks) cases.push_back({&strategy, ranks, ""});
  }
  std::string names;
  for (const std::string& name : options.strategies) names += (names.empty() ? "" : ",") + name;
  WEFT_REQUIRE(found == options.strategies.size(), ExitCode::config,
               "--strategies: expected some of ", known, ", each once, got ", quote(names));
  return cases;
}

// ---- Tables

/// The beginning of a row; the whole of it where the strategy refused, which is then true.
bool print_case(const StrategyOnRanks& row) {
  fmt::print("  {:<10}{:>6}", row.strategy->name, row.ranks);
  if (!row.refused.empty()) fmt::print("  refused: {}\n", row.refused);
  return !row.refused.empty();
}

Json to_json(const StrategyOnRanks& row) {
  Json json{{"strategy", row.strategy->name}, {"ranks", row.ranks}};
  if (!row.refused.empty()) json["refused"] = row.refused;
  return json;
}

Json by_rank(const std::vector<PassBytes>& bytes) {
  Json forward = Json::array(), backward = Json::array();
  for (const PassBytes& rank : bytes) {
    forward.push_back(rank.forward);
    backward.push_back(rank.backward);
  }
  return {{"forward", forward}, {"backward", backward}};
}

/// Returns whether all predictions hold.
bool bytes_table(const Config& config, std::span<const StrategyOnRanks> cases, Json& json) {
  fmt::print("\nbytes a rank sends for the layer, as counted\n");
  fmt::print("  {:<10}{:>6}{:>15}{:>15}{:>15}{:>15}  {}\n", "strategy", "ranks", "forward least",
             "most", "backward least", "most", "predicted");
  bool all_hold = true;
  for (const SequenceBytes& row : bench_bytes(config, cases)) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    const bool holds = row.sent == row.booked;
    all_hold &= holds;
    const auto [f0, f1] = std::ranges::minmax(row.sent, {}, &PassBytes::forward);
    const auto [b0, b1] = std::ranges::minmax(row.sent, {}, &PassBytes::backward);
    fmt::print("{:>15}{:>15}{:>15}{:>15}  {}\n", f0.forward, f1.forward, b0.backward, b1.backward,
               holds ? "the same" : "otherwise");
    entry["sent"] = by_rank(row.sent);
    entry["booked"] = by_rank(row.booked);
  }
  return all_hold;
}

Json to_json(const Overlap& overlap) {
  return {{"kernels_s", overlap.kernels_s},
          {"transfers_s", overlap.transfers_s},
          {"critical_path_s", overlap.both_s},
          {"hidden", overlap.hidden()}};
}

void overlap_table(const SequenceBenchOptions& options, const Quantities& given,
                   const Config& config, std::span<const StrategyOnRanks> cases, Json& json) {
  fmt::print(
      "\nsimulated ms of the layer, forward and backward ({}, memory {}, link {} each way, {} a "
      "message)\n",
      options.flops, options.memory_bandwidth, options.link_bandwidth, options.latency);
  fmt::print("  {:<10}{:>6}{:>11}{:>11}{:>11}{:>9}{:>8}{}\n", "strategy", "ranks", "kernels",
             "transfers", "both", "hidden", "busy", given.real_s > 0 ? "   attained   ratio" : "");
  for (const SequenceTime& row :
       bench_time(config, cases, given.machine, given.real_s, options.repeats)) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    const auto& [kernels_s, transfers_s, both_s] = row.overlap.step;
    fmt::print("{:>11.3f}{:>11.3f}{:>11.3f}{:>8.1f}%{:>7.1f}%", 1e3 * kernels_s, 1e3 * transfers_s,
               1e3 * both_s, 100 * row.overlap.step.hidden(), 100 * row.overlap.busy);
    entry["forward"] = to_json(row.overlap.forward);
    entry["step"] = to_json(row.overlap.step);
    entry["busy"] = row.overlap.busy;
    if (row.attained_s > 0) {
      fmt::print("{:>11.3f}{:>8.3f}", 1e3 * row.attained_s, row.attained_ratio());
      entry["attained_s"] = row.attained_s;
    }
    fmt::print("\n");
  }
}

void memory_table(const SequenceBenchOptions& options, const Quantities& given,
                  const Config& config, std::span<const StrategyOnRanks> cases, Json& json) {
  fmt::print("\nlongest sequence whose training step takes at most {} a rank\n", options.memory);
  fmt::print("  {:<10}{:>6}{:>14}{:>14}{:>12}  {}\n", "strategy", "ranks", "tokens", "a rank",
             "peak GiB", "most of it");
  for (const SequenceMemory& row :
       bench_memory(config, cases, static_cast<int64_t>(given.memory_bytes))) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    entry["tokens"] = row.tokens;
    if (row.tokens == 0) {
      fmt::print("{:>14}  one token does not fit\n", 0);
      continue;
    }
    fmt::print(
        "{:>14}{:>14}{:>12.2f}  {} ({:.0f}%)\n", row.tokens, row.tokens / row.ranks,
        static_cast<double>(row.peak_bytes) / (1 << 30), row.largest,
        100.0 * static_cast<double>(row.largest_bytes) / static_cast<double>(row.peak_bytes));
    entry["peak_bytes"] = row.peak_bytes;
    entry["largest"] = {{"name", row.largest}, {"bytes", row.largest_bytes}};
  }
}

int sequence_bench(const SequenceBenchOptions& options) {
  std::vector<std::string> sets = options.sets;
  sets.push_back("data.path=synthetic");  // whatever the file says, or does not say
  const LoadedConfig loaded = load_config(options.config, sets);
  for (const std::string& note : loaded.notes) log::info(note);
  const Config& config = loaded.config;
  const Quantities given(options);
  const std::vector<StrategyOnRanks> cases = cases_of(options);
  const AttentionSetting layer = attention_setting(config, 1);
  fmt::print("{}: one attention layer of {} x {} tokens, {} heads ({} of keys) of {}, {}{}\n",
             options.config, layer.batch, layer.cuts.total(), layer.heads, layer.kv_heads,
             layer.head_dim, name(layer.dtype), layer.causal ? ", causal" : "");
  Json json{{"layer",
             {{"batch", layer.batch},
              {"tokens", layer.cuts.total()},
              {"heads", layer.heads},
              {"kv_heads", layer.kv_heads},
              {"head_dim", layer.head_dim},
              {"dtype", name(layer.dtype)},
              {"causal", layer.causal}}}};
  const auto wanted = [&](const char* table) {
    return std::count(options.tables.begin(), options.tables.end(), table) > 0;
  };
  bool bytes_hold = true;
  if (wanted("bytes")) bytes_hold = bytes_table(config, cases, json["bytes"]);
  if (wanted("overlap")) overlap_table(options, given, config, cases, json["overlap"]);
  if (wanted("memory")) memory_table(options, given, config, cases, json["memory"]);
  write_json(options.json, json);
  return static_cast<int>(bytes_hold ? ExitCode::done : ExitCode::comparison);
}

}  // namespace

void add_sequence_bench_command(CLI::App& bench, std::function<int()>& action) {
  CLI::App* command = bench.add_subcommand(
      "sequence", "what each sequence strategy costs: bytes, overlap, longest sequence");
  auto options = std::make_shared<SequenceBenchOptions>();
  command->add_option("config", options->config, "YAML file; its data is not read")
      ->required()
      ->type_name("CONFIG");
  command->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  // A list is one argument, so that CONFIG may follow it.
  const auto list = [&](const char* flag, auto& values, const char* help, const char* type) {
    return command->add_option(flag, values, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->capture_default_str()
        ->type_name(type);
  };
  list("--tables", options->tables, "some of bytes, overlap, memory", "TABLE,...")
      ->check(CLI::IsMember({"bytes", "overlap", "memory"}));
  list("--strategies", options->strategies, "all, or names of `weft strategies`", "NAME,...");
  list("--ranks", options->ranks, "ranks of the sequence axis", "P,...")->check(CLI::Range(1, 64));
  const auto quantity = [&](const char* flag, std::string& value, const char* help) {
    command->add_option(flag, value, help)->capture_default_str()->type_name("QUANTITY");
  };
  quantity("--flops", options->flops, "overlap: what a rank computes");
  quantity(
      "--memory-bandwidth", options->memory_bandwidth,
      "overlap: a kernel lasts as long as the longer of its arithmetic and its memory traffic");
  quantity("--link-bandwidth", options->link_bandwidth, "overlap: what a rank sends, and receives");
  quantity("--latency", options->latency, "overlap: what a message takes besides its bytes");
  quantity("--real-time", options->real_time,
           "overlap: how long a step is stretched to in real runs; 0s: none");
  command->add_option("--repeats", options->repeats, "overlap: real runs, the fastest counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  quantity("--memory", options->memory, "memory: limit of a rank");
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback(
      [&action, options] { action = [options] { return sequence_bench(*options); }; });
}

}  // namespace weft
