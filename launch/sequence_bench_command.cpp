#include "launch/sequence_bench_command.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/json_file.hpp"
#include "launch/placement.hpp"
#include "launch/quantity.hpp"
#include "launch/quote.hpp"
#include "launch/sequence_bench_tables.hpp"
#include "launch/trainer.hpp"
#include "parallel/comm/mpi.hpp"
#include "parallel/comm/nccl.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/core/log.hpp"

namespace weft {
namespace {

struct SequenceBenchOptions {
  std::string config;
  std::vector<std::string> sets;
  std::vector<std::string> tables;      // none: all but measured
  std::vector<std::string> strategies;  // none: all, unless scans are named
  std::vector<std::string> scans;
  std::vector<int> ranks{2, 4, 8, 16};
  std::string flops = "100GFLOP/s", memory_bandwidth = "20GB/s";
  std::string link_bandwidth = "10GB/s", latency = "10us";
  std::string real_time = "400ms";
  int repeats = 0;  // 0: 2 real runs, 5 pairs of passes
  std::string device = "cpu", comm = "threads";
  bool no_error = false;
  std::string memory = "40GiB";
  std::vector<int64_t> state{1, 16, 128, 128};
  std::vector<std::string> transitions{"scalar", "dense"};
  std::vector<int64_t> tokens{65536, 262144};
  std::vector<std::string> state_sizes{"512KiB", "2MiB", "8MiB", "32MiB", "64MiB"};
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
      : runs{.machine = {.flops_per_s = above_zero("--flops", options.flops, "FLOP/s"),
                         .memory_bytes_per_s =
                             above_zero("--memory-bandwidth", options.memory_bandwidth, "B/s"),
                         .link_bytes_per_s =
                             above_zero("--link-bandwidth", options.link_bandwidth, "B/s"),
                         .message_s = parse_quantity("--latency", options.latency, "s")},
             .machine_text =
                 fmt::format("{}, memory {}, link {} each way, {} a message", options.flops,
                             options.memory_bandwidth, options.link_bandwidth, options.latency),
             .real_s = parse_quantity("--real-time", options.real_time, "s"),
             .repeats = options.repeats > 0 ? options.repeats : 2},
        memory_bytes(above_zero("--memory", options.memory, "B")) {
    WEFT_REQUIRE(memory_bytes <= kMostMemory, ExitCode::usage,
                 "--memory: expected at most 1000PB, got ", quote(options.memory));
    WEFT_REQUIRE(runs.real_s <= 600, ExitCode::usage, "--real-time: expected at most 600s, got ",
                 quote(options.real_time));
  }

  SimulatedRuns runs;
  double memory_bytes;

 private:
  static constexpr double kMostMemory = 1e18;  // so that twice the tokens are still counted in i64
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ",") + name;
  return text;
}

bool among(const std::vector<std::string>& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

bool wants(const SequenceBenchOptions& options, std::string_view table) {
  return options.tables.empty() || among(options.tables, table);
}

/// Real time is taken only where it is asked for.
bool wants_measured(const SequenceBenchOptions& options) {
  return among(options.tables, "measured");
}

/// The rows of a table that were named, in its order. Throws Error(code), naming `flag`.
template <class Row>
std::vector<const Row*> rows_named(std::span<const Row> table,
                                   const std::vector<std::string>& names, const char* flag,
                                   ExitCode code) {
  std::vector<const Row*> rows;
  std::string known = "all";
  size_t found = among(names, "all") ? 1 : 0;
  for (const Row& row : table) {
    known += concat(", ", row.name);
    found += among(names, row.name) ? 1 : 0;
    if (among(names, "all") || among(names, row.name)) rows.push_back(&row);
  }
  WEFT_REQUIRE(found == names.size(), code, flag, ": expected some of ", known, ", each once, got ",
               quote(joined(names)));
  return rows;
}

// ---- Of attention strategies

/// How `measured` is to run. Throws for what this build, this host or the config cannot.
AttentionRuns measured_runs(const SequenceBenchOptions& options, const Config& config) {
  const bool cuda = options.device == "cuda", nccl = options.comm == "nccl";
  const int gpus = cuda::device_count(), ranks = std::ranges::max(options.ranks);
  WEFT_REQUIRE(!launched_by_mpi(), ExitCode::usage,
               "--tables measured starts its ranks itself: run it without mpirun and srun");
  WEFT_REQUIRE(!nccl || cuda, ExitCode::usage, "--comm nccl needs --device cuda");
  WEFT_REQUIRE(!cuda || gpus > 0, ExitCode::usage, "--device cuda: no GPU can be used here");
  WEFT_REQUIRE(!nccl || has_nccl(), ExitCode::usage, "--comm nccl: this build has no NCCL");
  WEFT_REQUIRE(!nccl || ranks <= gpus, ExitCode::usage,
               "--comm nccl needs a GPU for every rank: ", ranks, " ranks, ", gpus,
               " GPUs on this host");
  WEFT_REQUIRE(cuda || config.train.precision != DType::bf16, ExitCode::config,
               "train.precision: bf16 needs a GPU: --device cuda");
  const std::string unfit = cuda ? unfit_for_gpu(config) : "";
  WEFT_REQUIRE(unfit.empty(), ExitCode::config, unfit);
  return {.place = {.comm = options.comm, .device = cuda ? Device::cuda : Device::cpu},
          .repeats = options.repeats > 0 ? options.repeats : 5,
          .errors = !options.no_error};
}

struct StrategyBench {
  StrategyBench(const SequenceBenchOptions& options, const Config& with) : config(with) {
    const std::vector<std::string> all{"all"};
    const bool unnamed = options.strategies.empty() && options.scans.empty();
    const auto& names = unnamed ? all : options.strategies;
    for (const auto* strategy :
         rows_named(attention_strategies(), names, "--strategies", ExitCode::config)) {
      for (const int ranks : options.ranks) cases.push_back({strategy, ranks, ""});
    }
    if (wants_measured(options)) runs = measured_runs(options, config);
  }

  const Config& config;
  std::vector<StrategyOnRanks> cases;
  AttentionRuns runs;  // of `measured`
};

/// Returns whether all predictions hold, and one rank confirms what was measured.
bool run(const StrategyBench& bench, const SequenceBenchOptions& options, const Quantities& given,
         Json& json) {
  const AttentionSetting layer = attention_setting(bench.config, 1);
  fmt::print("{}: one attention layer of {} x {} tokens, {} heads ({} of keys) of {}, {}{}\n",
             options.config, layer.batch, layer.cuts.total(), layer.heads, layer.kv_heads,
             layer.head_dim, name(layer.dtype), layer.causal ? ", causal" : "");
  json["layer"] = {{"batch", layer.batch},       {"tokens", layer.cuts.total()},
                   {"heads", layer.heads},       {"kv_heads", layer.kv_heads},
                   {"head_dim", layer.head_dim}, {"dtype", name(layer.dtype)},
                   {"causal", layer.causal}};
  bool all_hold = true;
  if (wants(options, "bytes")) all_hold = bytes_table(bench.config, bench.cases, json["bytes"]);
  if (wants(options, "overlap")) {
    overlap_table(bench.config, bench.cases, given.runs, json["overlap"]);
  }
  if (wants(options, "memory")) {
    memory_table(bench.config, bench.cases, static_cast<int64_t>(given.memory_bytes),
                 options.memory, json["memory"]);
  }
  if (wants_measured(options)) {
    if (bench.runs.place.device == Device::cpu) set_wait_deadline(kLongestWait);
    all_hold &= measured_table(bench.config, bench.cases, bench.runs, json["measured"]);
  }
  return all_hold;
}

// ---- Of state scans

ScanBenchState state_shape(const SequenceBenchOptions& options, const Config& config) {
  const auto& dims = options.state;
  const auto expect = [&](bool holds) {
    WEFT_REQUIRE(holds, ExitCode::usage,
                 "--state: expected four integers B,H,K,V from 1 to 4096, their product at most ",
                 int64_t{1} << 32, ", got ", quote(fmt::format("{}", fmt::join(dims, ","))));
  };
  expect(dims.size() == 4);
  int64_t numbers = 1;
  for (const int64_t dim : dims) {
    expect(dim >= 1 && dim <= 4096);
    numbers *= dim;
  }
  expect(numbers <= int64_t{1} << 32);
  return {.batch = dims[0],
          .heads = dims[1],
          .key_dim = dims[2],
          .value_dim = dims[3],
          .dtype = config.train.precision,
          .options = named_strategies(config).scan_options};
}

/// In bytes, each a whole number of heads.
std::vector<int64_t> state_sizes(const SequenceBenchOptions& options, const ScanBenchState& shape) {
  const int64_t head = shape.key_dim * shape.value_dim * size_of(accumulator_of(shape.dtype));
  constexpr double kMost = int64_t{16} << 30;
  std::vector<int64_t> sizes;
  for (const std::string& text : options.state_sizes) {
    const double bytes = parse_quantity("--state-sizes", text, "B");
    WEFT_REQUIRE(bytes >= 1 && bytes <= kMost && std::fmod(bytes, static_cast<double>(head)) == 0,
                 ExitCode::usage, "--state-sizes: expected at most 16GiB in whole heads of ", head,
                 " bytes, got ", quote(text));
    sizes.push_back(static_cast<int64_t>(bytes));
  }
  return sizes;
}

struct ScanBench {
  ScanBench(const SequenceBenchOptions& options, const Config& config)
      : shape(state_shape(options, config)),
        scans(rows_named(state_scans(), options.scans, "--scans", ExitCode::config)),
        transitions(
            rows_named(transition_kinds(), options.transitions, "--transitions", ExitCode::usage)) {
    if (!scans.empty()) sizes = state_sizes(options, shape);
    for (const auto* scan : scans) {
      for (const auto* transition : transitions) {
        for (const int ranks : options.ranks) cases.push_back({scan, transition, ranks});
      }
    }
  }

  ScanBenchState shape;
  std::vector<const StateScanKind*> scans;
  std::vector<const TransitionKindName*> transitions;
  std::vector<int64_t> sizes;
  std::vector<ScanOnRanks> cases;
};

/// Returns whether what was counted is the closed form.
bool run(const ScanBench& bench, const SequenceBenchOptions& options, const Quantities& given,
         Json& json) {
  const auto& [batch, heads, key_dim, value_dim, dtype, scan_options] = bench.shape;
  fmt::print("scans of a state of {} x {} heads of {} x {}, {}\n", batch, heads, key_dim, value_dim,
             name(accumulator_of(dtype)));
  json["state"] = {{"batch", batch},
                   {"heads", heads},
                   {"key_dim", key_dim},
                   {"value_dim", value_dim},
                   {"dtype", name(accumulator_of(dtype))}};
  bool bytes_hold = true;
  if (wants(options, "bytes")) {
    bytes_hold = scan_bytes_table(bench.shape, bench.cases, options.tokens, json["bytes"]);
  }
  if (wants(options, "overlap")) {
    scan_overlap_table(bench.shape, bench.cases, options.tokens, given.runs, json["overlap"]);
  }
  if (wants(options, "crossover")) {
    scan_crossover_table(bench.shape, bench.scans, bench.transitions, bench.sizes, options.ranks,
                         given.runs, json["crossover"]);
  }
  return bytes_hold;
}

// ---- Both

/// Refuses a table that nothing named has.
void check_tables(const SequenceBenchOptions& options, bool strategies, bool scans) {
  for (const std::string& table : options.tables) {
    WEFT_REQUIRE(strategies || (table != "memory" && table != "measured"), ExitCode::usage,
                 "--tables: ", table, " is of attention strategies, and --strategies names none");
    WEFT_REQUIRE(scans || table != "crossover", ExitCode::usage,
                 "--tables: crossover is of state scans, and --scans names none");
  }
}

int sequence_bench(const SequenceBenchOptions& options) {
  std::vector<std::string> sets = options.sets;
  sets.push_back("data.path=synthetic");  // whatever the file says, or does not say
  const LoadedConfig loaded = load_config(options.config, sets);
  for (const std::string& note : loaded.notes) log::info(note);
  const Quantities given(options);
  const StrategyBench strategies(options, loaded.config);
  const ScanBench scans(options, loaded.config);
  check_tables(options, !strategies.cases.empty(), !scans.cases.empty());
  Json json;
  bool all_hold = true;
  if (!strategies.cases.empty()) all_hold &= run(strategies, options, given, json);
  if (!scans.cases.empty()) all_hold &= run(scans, options, given, json["scans"]);
  write_json(options.json, json);
  return static_cast<int>(all_hold ? ExitCode::done : ExitCode::comparison);
}

}  // namespace

void add_sequence_bench_command(CLI::App& bench, std::function<int()>& action) {
  CLI::App* command = bench.add_subcommand(
      "sequence", "what each attention strategy or state scan costs: bytes, time, memory");
  auto options = std::make_shared<SequenceBenchOptions>();
  command->add_option("config", options->config, "YAML file; its data is not read")
      ->required()
      ->type_name("CONFIG");
  command->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  // A list is one argument, so that CONFIG may follow it.
  const auto list = [&](const char* flag, auto& values, const char* help, const char* type) {
    auto* option = command->add_option(flag, values, help)
                       ->delimiter(',')
                       ->allow_extra_args(false)
                       ->type_name(type);
    return values.empty() ? option : option->capture_default_str();
  };
  list("--tables", options->tables,
       "some of bytes, overlap, memory, crossover, measured [all but measured]", "TABLE,...")
      ->check(CLI::IsMember({"bytes", "overlap", "memory", "crossover", "measured"}));
  list("--strategies", options->strategies,
       "attention: all, or names of `weft strategies` [all, unless there are --scans]", "NAME,...");
  list("--scans", options->scans, "state scans: all, or names of `weft strategies`", "NAME,...");
  list("--ranks", options->ranks, "ranks of the sequence axis", "P,...")->check(CLI::Range(1, 64));
  const auto quantity = [&](const char* flag, std::string& value, const char* help) {
    command->add_option(flag, value, help)->capture_default_str()->type_name("QUANTITY");
  };
  quantity("--flops", options->flops, "overlap, crossover: what a rank computes");
  quantity("--memory-bandwidth", options->memory_bandwidth,
           "overlap, crossover: a kernel lasts as long as the longer of its arithmetic and its "
           "memory traffic");
  quantity("--link-bandwidth", options->link_bandwidth,
           "overlap, crossover: what a rank sends, and receives");
  quantity("--latency", options->latency,
           "overlap, crossover: what a message takes besides its bytes");
  quantity("--real-time", options->real_time,
           "overlap: how long a step is stretched to in real runs; 0s: none");
  command
      ->add_option("--repeats", options->repeats,
                   "overlap: real runs, the fastest counts [2]; measured: pairs of forward and "
                   "backward that the medians are over [5]")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  command->add_option("--device", options->device, "measured: where the ranks compute, cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str()
      ->type_name("DEVICE");
  command
      ->add_option("--comm", options->comm,
                   "measured: threads, which take the GPUs in turn, or nccl, a GPU a rank")
      ->check(CLI::IsMember({"threads", "nccl"}))
      ->capture_default_str()
      ->type_name("COMM");
  command->add_flag("--no-error", options->no_error, "measured: do not compare with one rank");
  quantity("--memory", options->memory, "memory: limit of a rank");
  list("--state", options->state, "scans: a rank's state", "B,H,K,V");
  list("--transitions", options->transitions,
       "scans: all, or some of none, scalar (a head), vector (a row), dense", "KIND,...");
  list("--tokens", options->tokens, "scans: lengths of the sequence, bytes and overlap", "N,...")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  list("--state-sizes", options->state_sizes, "scans: crossover", "QUANTITY,...");
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback(
      [&action, options] { action = [options] { return sequence_bench(*options); }; });
}

}  // namespace weft
