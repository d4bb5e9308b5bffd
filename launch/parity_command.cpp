#include "launch/parity_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "launch/json_file.hpp"
#include "launch/mesh_option.hpp"
#include "launch/mesh_rules.hpp"
#include "launch/parity.hpp"
#include "launch/placement.hpp"
#include "launch/samples.hpp"
#include "parallel/comm/mpi.hpp"
#include "src/core/log.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {
namespace {

struct ParityOptions {
  std::string config, mesh, dtype, device, comm, json;
  std::vector<std::string> sets;
  int64_t steps = 0;  // 0: train.steps
};

Config load(const ParityOptions& options) {
  std::vector<std::string> sets = options.sets;
  if (!options.dtype.empty()) sets.push_back("train.precision=" + options.dtype);
  if (!options.device.empty()) sets.push_back("train.device=" + options.device);
  // The ranks of this command are what --comm says, whatever carries those of a training run.
  sets.push_back("train.comm=" + (options.comm.empty() ? "auto" : options.comm));
  if (options.steps > 0) sets.push_back(concat("train.steps=", options.steps));
  LoadedConfig loaded = load_config(options.config, sets);
  for (const std::string& note : loaded.notes) log::info(note);
  if (!options.mesh.empty()) set_mesh(loaded.config, options.mesh);
  resolve_mesh(loaded.config, loaded.config.mesh.ranks());
  return loaded.config;
}

void print(const Config& config, const ParityReport& report) {
  const bool rounds = config.train.precision == DType::bf16;
  fmt::print("{}  {}  {} steps, tolerance {:.0e}{}\n", config.mesh.text(),
             name(config.train.precision), config.train.steps,
             parity_tolerance(config.train.precision),
             rounds ? ", or twice what one rank is off from f32" : "");
  fmt::print("{:<12} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "layer", "forward", "backward",
             "gradient", "update", "oracle");
  for (const ParityReport::Row& row : report.rows) {
    fmt::print("{:<12} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e}\n", row.layer, row.forward,
               row.backward, row.gradient, row.update, row.oracle);
  }
  fmt::print("loss {:.2e}, gradients {:.2e}, updates {:.2e}; worst: {}\n", report.loss, report.grad,
             report.param, report.worst);
  if (report.ok) {
    fmt::print("equal to one rank\n");
  } else {
    fmt::print("departs first in {}: {}\n", report.first, report.first_tensor);
  }
}

void write(const std::string& path, const ParityReport& report) {
  nlohmann::ordered_json rows;
  for (const ParityReport::Row& row : report.rows) {
    rows.push_back({{"layer", row.layer},
                    {"forward", row.forward},
                    {"backward", row.backward},
                    {"gradient", row.gradient},
                    {"update", row.update},
                    {"oracle", row.oracle}});
  }
  write_json(path, {{"ok", report.ok},
                    {"max_rel",
                     {{"loss", report.loss},
                      {"grad", report.grad},
                      {"param", report.param},
                      {"activation", report.activation},
                      {"oracle", report.oracle},
                      {"param_stored", report.param_stored}}},
                    {"worst", report.worst},
                    {"first", report.first},
                    {"first_tensor", report.first_tensor},
                    {"layers", rows}});
}

int finish(const ParityOptions& options, const Config& config, const SampleSource& source,
           const Recording& reference, const Recording& run, const Recording* exact) {
  const ParityReport report = compare_runs(config, source, reference, run, exact);
  print(config, report);
  write(options.json, report);
  return static_cast<int>(report.ok ? ExitCode::done : ExitCode::comparison);
}

int parity(const ParityOptions& options) {
  cpu::set_blas_threads(1);
  const bool mpi = options.comm == "mpi" || (options.comm != "threads" && launched_by_mpi());
  std::unique_ptr<MpiSession> session;
  if (mpi) session = std::make_unique<MpiSession>();
  Config config = load(options);
  World* const host = mpi ? &session->world() : nullptr;
  const RankChoice choice = place_ranks(config, host);
  const int64_t steps = config.train.steps;
  const auto source = open_samples(config);
  Recording reference, run, exact;
  // How far bf16's rounding carries depends on the model: a run in f32 tells.
  const bool rounds = config.train.precision == DType::bf16;
  start_alone(choice.device, [&](World& world) {
    reference = record_run(on_one_rank(config), world, *source, steps);
    if (rounds) exact = record_run(in_f32(on_one_rank(config)), world, *source, steps);
  });
  if (mpi) {
    const std::unique_ptr<World> on_gpu = make_gpu_world(choice, *host);
    run = record_run(config, on_gpu ? *on_gpu : *host, *source, steps, {.check_bytes = true});
    if (host->rank() != 0) return static_cast<int>(ExitCode::done);
  } else {
    start_threads(choice, [&](World& world) {
      Recording mine = record_run(config, world, *source, steps, {.check_bytes = true});
      if (world.rank() == 0) run = std::move(mine);
    });
  }
  return finish(options, config, *source, reference, run, rounds ? &exact : nullptr);
}

}  // namespace

void add_parity_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* command =
      app.add_subcommand("parity", "compare losses, gradients and updates of a mesh with one rank");
  auto options = std::make_shared<ParityOptions>();
  command->add_option("config", options->config, "YAML file")->required()->type_name("CONFIG");
  command
      ->add_option("--mesh", options->mesh,
                   "data=D,pipeline=P,sequence=S,tensor=T (default: mesh of CONFIG)")
      ->type_name("MESH");
  command->add_option("--steps", options->steps, "optimizer steps (default: train.steps)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--dtype", options->dtype, "f32, f64, or bf16 on GPUs")->type_name("TYPE");
  command->add_option("--device", options->device, "cpu or cuda (default: train.device)")
      ->type_name("DEVICE");
  command
      ->add_option("--comm", options->comm,
                   "threads, mpi under mpirun, or nccl (default: as train.comm auto)")
      ->check(CLI::IsMember({"threads", "mpi", "nccl"}))
      ->type_name("COMM");
  command->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback([&action, options] { action = [options] { return parity(*options); }; });
}

}  // namespace weft
