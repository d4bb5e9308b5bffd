#include "launch/kernels_bench_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/json_file.hpp"
#include "launch/kernels_bench.hpp"
#include "launch/quote.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

struct KernelsBenchOptions {
  std::string device = "cpu";
  std::string dtype;                        // empty: f32 on the CPU, bf16 on a GPU
  std::vector<std::string> kernels{"all"};  // names of kernels
  std::optional<int> repeats;               // absent: 5 on the CPU, 20 on a GPU
  std::string json;
};

DType chosen_dtype(const KernelsBenchOptions& options, Device device) {
  const bool cuda = device == Device::cuda;
  if (options.dtype.empty()) return cuda ? DType::bf16 : DType::f32;
  WEFT_REQUIRE(options.dtype == "f32" || options.dtype == (cuda ? "bf16" : "f64"), ExitCode::usage,
               "--dtype: expected ", cuda ? "f32 or bf16 on a GPU" : "f32 or f64 on the CPU",
               ", got ", quote(options.dtype));
  return options.dtype == "f32" ? DType::f32 : cuda ? DType::bf16 : DType::f64;
}

/// The cases of the kernels that were named, in the order of the table, where they do anything.
std::vector<const KernelCase*> chosen_cases(const std::vector<std::string>& names, Device device,
                                            DType dtype) {
  const auto named = [&](std::string_view name) { return std::ranges::count(names, name) > 0; };
  std::vector<const KernelCase*> cases;
  for (const KernelCase& one : kernel_cases()) {
    const bool idle = one.idle && one.idle(device, dtype);
    if ((named("all") || named(one.kernel)) && !idle) cases.push_back(&one);
  }
  for (const std::string& name : names) {
    const bool known = name == "all" || std::ranges::any_of(kernel_cases(), [&](const auto& one) {
                         return name == one.kernel;
                       });
    WEFT_REQUIRE(known, ExitCode::usage, "--kernels: no kernel is called ", quote(name),
                 "; without the flag all are measured and named");
  }
  return cases;
}

constexpr const char* kRow = "{:<27}{:<22}{:<28}{:>9}{:>10} {:<6}{:>8}{:>10}{:>9}{:>7} {}\n";

void print_head() {
  fmt::print(kRow, "kernel", "", "shape", "ms", "floor ms", "", "share", "GFLOP/s", "error",
             "bound", "output");
}

void print(const KernelResult& r) {
  const std::string error = fmt::format("{:.1e}", r.error), bound = fmt::format("{:.0e}", r.bound);
  if (r.seconds == 0) {
    fmt::print(kRow, r.of->kernel, r.of->form, r.shape, "-", "-", "", "-", "-", error, bound,
               r.output);
  } else {
    fmt::print(kRow, r.of->kernel, r.of->form, r.shape, fmt::format("{:.4g}", r.seconds * 1e3),
               fmt::format("{:.4g}", r.floor_s * 1e3), r.flops_bind ? "FLOPs" : "bytes",
               fmt::format("{:.1f}%", 100 * r.share()),
               fmt::format("{:.1f}", r.cost.flops / r.seconds * 1e-9), error, bound, r.output);
  }
  std::fflush(stdout);  // a row as soon as it is measured
}

Json to_json(const KernelResult& r) {
  return {{"kernel", r.of->kernel},
          {"form", r.of->form},
          {"shape", r.shape},
          {"seconds", r.seconds},
          {"flops", r.cost.flops},
          {"bytes", r.cost.bytes},
          {"floor_s", r.floor_s},
          {"floor", r.flops_bind ? "flops" : "bytes"},
          {"share", r.share()},
          {"error", r.error},  // null where nothing could be compared
          {"bound", r.bound},
          {"output", r.output},
          {"ok", r.ok()}};
}

int bench(const KernelsBenchOptions& options) {
  const Device device = options.device == "cuda" ? Device::cuda : Device::cpu;
  const bool cuda = device == Device::cuda;
  const DType dtype = chosen_dtype(options, device);
  const std::vector<const KernelCase*> cases = chosen_cases(options.kernels, device, dtype);
  WEFT_REQUIRE(!cuda || cuda::device_count() > 0, ExitCode::usage,
               "--device cuda: no GPU can be used here");
  const int repeats = options.repeats.value_or(cuda ? 20 : 5);
  KernelsBench kernels({.device = device, .dtype = dtype, .repeats = repeats}, cases);
  fmt::print("{} on {}, ", name(dtype), cuda ? "one GPU" : "one thread of the CPU");
  if (repeats == 0) {
    fmt::print("errors alone");
  } else {
    fmt::print("medians of {}; copy {:.1f} GB/s", repeats, kernels.copy_bytes_per_s() * 1e-9);
  }
  if (kernels.product_flops_per_s() > 0) {
    fmt::print(", {} {:.1f} GFLOP/s", kernels.product_text(), kernels.product_flops_per_s() * 1e-9);
  }
  fmt::print("\n");
  print_head();
  std::vector<KernelResult> results;
  Json rows = Json::array();
  for (const KernelCase* one : cases) {
    results.push_back(kernels.measure(*one));
    print(results.back());
    rows.push_back(to_json(results.back()));
  }
  write_json(options.json, {{"device", options.device},
                            {"dtype", name(dtype)},
                            {"repeats", repeats},
                            {"copy_bytes_per_s", kernels.copy_bytes_per_s()},
                            {"product_flops_per_s", kernels.product_flops_per_s()},
                            {"ok", std::ranges::all_of(results, &KernelResult::ok)},
                            {"kernels", rows}});
  require_within_bounds(results);
  return static_cast<int>(ExitCode::done);
}

}  // namespace

void add_kernels_bench(CLI::App& bench_command, std::function<int()>& action) {
  CLI::App* command = bench_command.add_subcommand(
      "kernels", "time every kernel against its floor and compare it with its CPU twin in f64");
  auto options = std::make_shared<KernelsBenchOptions>();
  command->add_option("--device", options->device, "where the kernels run: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str()
      ->type_name("DEVICE");
  command
      ->add_option("--dtype", options->dtype,
                   "f32 or f64 on the CPU (default f32), f32 or bf16 on a GPU (default bf16)")
      ->check(CLI::IsMember({"f32", "bf16", "f64"}))
      ->type_name("DTYPE");
  command->add_option("--kernels", options->kernels, "which kernels, by name: all, or a list")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("NAME,...");
  command
      ->add_option(
          "--repeats", options->repeats,
          "calls that the medians are over (default: 5 on the CPU, 20 on a GPU); 0: nothing "
          "is timed")
      ->check(CLI::Range(0, 1000))
      ->type_name("N");
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback([&action, options] { action = [options] { return bench(*options); }; });
}

}  // namespace weft
