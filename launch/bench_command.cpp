#include "launch/bench_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "launch/collectives_bench.hpp"
#include "launch/json_file.hpp"
#include "launch/kernels_bench_command.hpp"
#include "launch/sequence_bench_command.hpp"
#include "launch/step_bench.hpp"
#include "src/core/log.hpp"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::string config;
  std::vector<std::string> sets;
  int repeats = 5;
  std::string json;
};

/// "64x512x64 nt": m x n x k, which operand is transposed, and + where it adds to c.
std::string shape_text(const Product& p) {
  return fmt::format("{}x{}x{} {}{}{}", p.m, p.n, p.k, p.transpose_a ? 't' : 'n',
                     p.transpose_b ? 't' : 'n', p.accumulate ? "+" : "");
}

double giga_per_s(double flops, double seconds) {
  return seconds > 0 ? flops / seconds / 1e9 : 0;
}

void print(const StepBench& bench) {
  fmt::print("floor: matrix products\n{:<22}{:<20}{:>10}{:>10}{:>10}\n", "  kernel", "m x n x k",
             "count", "ms", "GFLOP/s");
  for (const auto& [kernel, shape, seconds] : bench.products) {
    fmt::print("  {:<20}{:<20}{:>10.1f}{:>10.3f}{:>10.1f}\n", kernel, shape_text(shape),
               shape.count(), seconds * 1e3, giga_per_s(shape.flops, seconds));
  }
  fmt::print("step: measured kernels\n{:<42}{:>10}{:>10}{:>10}{:>10}{:>8}\n", "  kernel", "calls",
             "ms", "floor ms", "GFLOP/s", "share");
  for (const StepBench::Kernel& k : bench.kernels) {
    fmt::print("  {:<40}{:>10}{:>10.3f}{:>10.3f}{:>10.1f}{:>7.1f}%\n", k.name, k.calls,
               k.seconds * 1e3, bench.floor_of(k.name) * 1e3, giga_per_s(k.cost.flops, k.seconds),
               100 * k.seconds / bench.step_s);
  }
  fmt::print("  {:<50}{:>10.3f}{:>27.1f}%\n", "outside of kernels", bench.rest_s * 1e3,
             100 * bench.rest_s / bench.step_s);
  fmt::print("step {:.3f} ms, floor {:.3f} ms, ratio {:.2f}\n", bench.step_s * 1e3,
             bench.floor_s * 1e3, bench.ratio());
}

Json to_json(const StepBench& bench) {
  Json json{{"step_s", bench.step_s},
            {"floor_s", bench.floor_s},
            {"ratio", bench.ratio()},
            {"rest_s", bench.rest_s}};
  for (const auto& [step_s, floor_s] : bench.runs) {
    json["runs"].push_back({{"step_s", step_s}, {"floor_s", floor_s}});
  }
  for (const auto& [kernel, shape, seconds] : bench.products) {
    json["products"].push_back({{"kernel", kernel},
                                {"m", shape.m},
                                {"n", shape.n},
                                {"k", shape.k},
                                {"transpose_a", shape.transpose_a},
                                {"transpose_b", shape.transpose_b},
                                {"accumulate", shape.accumulate},
                                {"count", shape.count()},
                                {"flops", shape.flops},
                                {"seconds", seconds}});
  }
  for (const StepBench::Kernel& kernel : bench.kernels) {
    json["kernels"].push_back({{"kernel", kernel.name},
                               {"calls", kernel.calls},
                               {"flops", kernel.cost.flops},
                               {"bytes", kernel.cost.bytes},
                               {"seconds", kernel.seconds},
                               {"floor_s", bench.floor_of(kernel.name)}});
  }
  return json;
}

int bench(const BenchOptions& options) {
  std::vector<std::string> sets = options.sets;
  sets.push_back("data.path=synthetic");  // whatever the file says, or does not say
  const LoadedConfig loaded = load_config(options.config, sets);
  for (const std::string& note : loaded.notes) log::info(note);
  const Config& config = loaded.config;
  WEFT_REQUIRE(config.train.device != DeviceChoice::cuda, ExitCode::config,
               "train.device: weft bench step measures the CPU, got cuda");
  const StepBench result = bench_step(config, options.repeats);
  fmt::print("{}: {} x {} tokens in {}, one thread, medians of {} runs\n", options.config,
             config.train.global_batch_size, config.data.seq_length, name(config.train.precision),
             options.repeats);
  print(result);
  write_json(options.json, to_json(result));
  return static_cast<int>(ExitCode::done);
}

}  // namespace

void add_bench_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* command = app.add_subcommand("bench", "measure on this machine");
  command->require_subcommand(1);
  add_kernels_bench(*command, action);
  add_collectives_bench(*command, action);
  CLI::App* step = command->add_subcommand(
      "step", "time one rank's training step against its matrix products alone");
  auto options = std::make_shared<BenchOptions>();
  step->add_option("config", options->config, "YAML file; its data is not read")
      ->required()
      ->type_name("CONFIG");
  step->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  step->add_option("--repeats", options->repeats, "runs that the medians are over")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  step->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  step->callback([&action, options] { action = [options] { return bench(*options); }; });
  add_sequence_bench_command(*command, action);
}

}  // namespace weft
