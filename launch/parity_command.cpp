#include "launch/parity_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "launch/job.hpp"
#include "launch/json_file.hpp"
#include "launch/mesh_option.hpp"
#include "launch/mesh_rules.hpp"
#include "launch/parity.hpp"
#include "launch/placement.hpp"
#include "launch/report_error.hpp"
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

/// `ranks` that were started; 0: those that the mesh asks for will be.
Config load(const ParityOptions& options, int ranks = 0) {
  std::vector<std::string> sets = options.sets;
  if (!options.dtype.empty()) sets.push_back("train.precision=" + options.dtype);
  if (!options.device.empty()) sets.push_back("train.device=" + options.device);
  // The ranks of this command are what --comm says, whatever carries those of a training run.
  sets.push_back("train.comm=" + (options.comm.empty() ? "auto" : options.comm));
  if (options.steps > 0) sets.push_back(concat("train.steps=", options.steps));
  LoadedConfig loaded = load_config(options.config, sets);
  for (const std::string& note : loaded.notes) log::info(note);
  if (!options.mesh.empty()) set_mesh(loaded.config, options.mesh);
  resolve_mesh(loaded.config, ranks > 0 ? ranks : loaded.config.mesh.ranks());
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

/// What one rank computes.
struct Reference {
  Recording run, exact;  // exact: in bf16 the same in f32, which tells how far rounding carries
};

Reference record_reference(const Config& config, const SampleSource& source, Device device) {
  Reference reference;
  const int64_t steps = config.train.steps;
  start_alone(device, [&](World& world) {
    reference.run = record_run(on_one_rank(config), world, source, steps);
    if (config.train.precision != DType::bf16) return;
    reference.exact = record_run(in_f32(on_one_rank(config)), world, source, steps);
  });
  return reference;
}

ExitCode finish(const ParityOptions& options, const Config& config, const SampleSource& source,
                const Reference& reference, const Recording& run) {
  const bool rounds = config.train.precision == DType::bf16;
  const ParityReport report =
      compare_runs(config, source, reference.run, run, rounds ? &reference.exact : nullptr);
  print(config, report);
  write(options.json, report);
  return report.ok ? ExitCode::done : ExitCode::comparison;
}

/// Ranks as MPI processes, each of which computes the reference too.
ExitCode parity_mpi(const ParityOptions& options) {
  MpiSession session;
  World& host = session.world();
  log::set_up(host.rank() == 0);
  const auto all = host.everyone("launch");
  Config config;
  const auto read = [&] { config = load(options, host.size()); };
  if (const auto code = try_together(*all, read)) return *code;
  RankChoice choice;
  std::unique_ptr<World> on_gpu;
  std::unique_ptr<SampleSource> source;
  const auto prepare = [&] {
    choice = place_ranks(config, &host);
    on_gpu = make_gpu_world(choice, host);
    source = open_samples(config);
  };
  if (const auto code = try_together(*all, prepare)) return *code;
  ExitCode code = ExitCode::done;
  or_end_job([&] {
    whereabouts() = {.rank = host.rank()};
    const Reference reference = record_reference(config, *source, choice.device);
    const Recording run = record_run(config, on_gpu ? *on_gpu : host, *source, config.train.steps,
                                     {.check_bytes = true});
    if (host.rank() == 0) code = finish(options, config, *source, reference, run);
  });
  return code;
}

ExitCode parity_threads(const ParityOptions& options) {
  Config config = load(options);
  const RankChoice choice = place_ranks(config, nullptr);
  const auto source = open_samples(config);
  const Reference reference = record_reference(config, *source, choice.device);
  Recording run;
  const ExitCode failed = run_threads(choice, [&](World& world) {
    whereabouts() = {.rank = world.rank()};
    Recording mine = record_run(config, world, *source, config.train.steps, {.check_bytes = true});
    if (world.rank() == 0) run = std::move(mine);
  });
  return failed != ExitCode::done ? failed : finish(options, config, *source, reference, run);
}

int parity(const ParityOptions& options) {
  cpu::set_blas_threads(1);
  const bool mpi = options.comm == "mpi" || (options.comm != "threads" && launched_by_mpi());
  return static_cast<int>(mpi ? parity_mpi(options) : parity_threads(options));
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
