#include "launch/train_command.hpp"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>

#include "launch/dry_run.hpp"
#include "launch/job.hpp"
#include "launch/mesh_rules.hpp"
#include "launch/placement.hpp"
#include "launch/train_run.hpp"
#include "parallel/comm/mpi.hpp"
#include "src/core/log.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {
namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> sets;
  std::string output;
  bool strict = false;
  bool dry_run = false;

  std::string folder() const {
    return output.empty() ? "runs/" + std::filesystem::path(config).stem().string() : output;
  }
};

Config load(const TrainOptions& options) {
  LoadedConfig loaded = load_config(options.config, options.sets);
  for (const std::string& note : loaded.notes) log::info(note);
  loaded.config.train.strict |= options.strict;
  return loaded.config;
}

// ---- Ranks as threads of this process

int train_threads(const TrainOptions& options, Config config) {
  if (config.mesh.along(Axis::data) == kAutoSize) config.mesh.along(Axis::data) = 1;
  resolve_mesh(config, config.mesh.ranks());
  const RankChoice choice = place_ranks(config, nullptr);
  ExitCode code = ExitCode::done;
  const ExitCode failed = run_threads(choice, [&](World& world) {
    TrainRun run(config, world.rank());
    if (world.rank() == 0) run.open_folder(options.folder());
    const ExitCode ended = run.run(world);
    if (world.rank() == 0) code = ended;
  });
  return static_cast<int>(failed != ExitCode::done ? failed : code);
}

// ---- Ranks as MPI processes

/// The text that rank 0 has, on every rank: all ranks run one config, whatever their disks say.
std::string broadcast_text(Backend& all, std::string text) {
  int64_t size = std::ssize(text);
  const int64_t one[] = {1};
  all.broadcast(Tensor::view(&size, DType::i64, Device::cpu, one), 0);
  text.resize(size);
  const int64_t dims[] = {size};
  all.broadcast(Tensor::view(text.data(), DType::u8, Device::cpu, dims), 0);
  return text;
}

int train_mpi(const TrainOptions& options) {
  MpiSession session;
  World& world = session.world();
  log::set_up(world.rank() == 0);
  const auto all = world.everyone("launch");

  std::string text;
  const auto read = [&] {
    if (world.rank() != 0) return;
    Config config = load(options);
    WEFT_REQUIRE(config.train.comm != CommChoice::threads, ExitCode::config,
                 "train.comm: expected mpi, nccl or auto under mpirun, got threads");
    resolve_mesh(config, world.size());
    text = to_yaml(config);
  };
  if (const auto code = try_together(*all, read)) return static_cast<int>(*code);
  Config config = parse_config(broadcast_text(*all, text), options.config, {}).config;

  std::unique_ptr<World> on_gpu;
  const auto place = [&] { on_gpu = make_gpu_world(place_ranks(config, &world), world); };
  if (const auto code = try_together(*all, place)) return static_cast<int>(*code);
  std::unique_ptr<TrainRun> run;
  const auto prepare = [&] {
    run = std::make_unique<TrainRun>(config, world.rank());
    if (world.rank() == 0) run->open_folder(options.folder());
  };
  if (const auto code = try_together(*all, prepare)) return static_cast<int>(*code);

  ExitCode code = ExitCode::done;
  or_end_job([&] { code = run->run(on_gpu ? *on_gpu : world); });
  return static_cast<int>(code);
}

/// Needs no peers: under mpirun rank 0 alone speaks, and the mesh is that of the config.
int dry_run(const TrainOptions& options) {
  if (launched_rank() != 0) return static_cast<int>(ExitCode::done);
  Config config = load(options);
  if (config.mesh.along(Axis::data) == kAutoSize) config.mesh.along(Axis::data) = 1;
  resolve_mesh(config, config.mesh.ranks());
  print_dry_run(config);
  return static_cast<int>(ExitCode::done);
}

int train(const TrainOptions& options) {
  cpu::set_blas_threads(1);  // the ranks are the parallelism
  if (options.dry_run) return dry_run(options);
  if (launched_by_mpi()) return train_mpi(options);
  Config config = load(options);
  const bool alone = config.mesh.ranks() <= 1;
  const bool as_threads =
      config.train.comm == CommChoice::threads || config.train.comm == CommChoice::nccl;
  WEFT_REQUIRE(alone || as_threads, ExitCode::config, "mesh: ", config.mesh.text(), " is ",
               config.mesh.ranks(), " ranks: start them with mpirun -n ", config.mesh.ranks(),
               ", or as threads of one process with --set train.comm=threads");
  return train_threads(options, config);
}

}  // namespace

void add_train_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* command = app.add_subcommand("train", "train a model; start several ranks with mpirun");
  auto options = std::make_shared<TrainOptions>();
  command->add_option("config", options->config, "YAML file")->required()->type_name("CONFIG");
  command->add_option("--set", options->sets, "override a key: section.key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--output", options->output, "run folder (default: runs/<name of CONFIG>)")
      ->type_name("DIR");
  command->add_flag("--dry-run", options->dry_run,
                    "print config, ranks, predicted memory, bytes and FLOPs; train nothing");
  command->add_flag("--strict", options->strict,
                    "end with 3 when bytes sent differ from the prediction");
  command->callback([&action, options] { action = [options] { return train(*options); }; });
}

}  // namespace weft
