#include "launch/collectives_bench.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/json_file.hpp"
#include "launch/start_ranks.hpp"
#include "parallel/comm/mpi.hpp"
#include "parallel/comm/recording.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/tensor/arena.hpp"

namespace weft {
namespace {

/// What one rank calls collectives with. Tensors are f32 and as large as the largest size.
struct Workplace {
  Communicator& comm;
  Stream& compute;
  Tensor buffer, inbox, scratch;

  Tensor flat(const Tensor& t, int64_t n) const { return t.slice(0, 0, n); }
  Cuts even(int64_t n) const { return Cuts::even(n, comm.size()); }
};

/// One operation on `n` elements, which the number of ranks divides.
struct Collective {
  const char* name;
  const char* size;  // what is `n` elements long
  Event (*start)(const Workplace&, int64_t n);
};

/// What is timed, a line each.
constexpr Collective kCollectives[] = {
    {"all_gather", "the result",
     [](const Workplace& at, int64_t n) {
       return at.comm.all_gather(at.flat(at.buffer, n), at.even(n), {}, at.compute);
     }},
    {"reduce_scatter", "the terms of a rank",
     [](const Workplace& at, int64_t n) {
       return at.comm.reduce_scatter(at.flat(at.buffer, n), at.even(n), at.scratch, {}, at.compute);
     }},
    {"all_reduce", "the result",
     [](const Workplace& at, int64_t n) {
       return at.comm.all_reduce(at.flat(at.buffer, n), at.scratch, {}, at.compute);
     }},
    {"ring", "a message to the next rank",
     [](const Workplace& at, int64_t n) {
       return at.comm.exchange({send_to(at.comm.next(), at.flat(at.buffer, n)),
                                receive_from(at.comm.prev(), at.flat(at.inbox, n))},
                               {}, at.compute);
     }},
};

/// A state of heads of K = V = 128 in f32, and the log decays of its heads: what a scan carries.
constexpr int64_t kStateWidth = 128;
constexpr int64_t kHeadBytes = 4 * kStateWidth * kStateWidth;

struct ScanTensors {
  ScanElement element;
  Tensor entering;

  ScanTensors(int64_t heads, Arena& arena)
      : element{.transition = arena.allocate("log decays", DType::f32, {1, heads}),
                .state = arena.allocate("state", DType::f32, {1, heads, kStateWidth, kStateWidth})},
        entering(arena.allocate("entering", DType::f32, {1, heads, kStateWidth, kStateWidth})) {}
};

/// A prefix, and a suffix back: prefixes in a row would overlap, the first rank always ahead.
void scan_both_ways(StateScan& scan, const ScanTensors& tensors, StepContext& ctx) {
  const auto run = [&](ScanDirection direction, Tag::Pass pass) {
    const Scope scope(ctx.scratch);
    scan.begin(tensors.element, tensors.entering, direction, state_tag(-1, 0, pass), ctx).finish();
  };
  run(ScanDirection::prefix, Tag::Pass::forward);
  run(ScanDirection::suffix, Tag::Pass::backward);
}

/// Bytes that the scans of a state of so many heads need, their scratch included.
int64_t scan_memory(int ranks, int64_t heads) {
  int64_t most = 0;
  for (const StateScanKind& kind : state_scans()) {
    for (int rank = 0; rank < ranks; ++rank) {
      const auto world = make_recording_world(rank, ranks);
      ProcessMesh mesh(*world, mesh_along(Axis::sequence, ranks), {}, /*strict=*/false);
      const auto compute = make_meta_stream({});
      Arena arena("scans", Device::meta, 0);
      const ParameterStore none({}, DType::f32, arena);
      StepContext ctx{.mesh = mesh,
                      .compute = *compute,
                      .scratch = arena,
                      .parameters = none,
                      .dtype = DType::f32,
                      .loss_sum = {}};
      const Scope scope(arena);
      const ScanTensors tensors(heads, arena);
      scan_both_ways(*kind.make({}), tensors, ctx);
      most = std::max(most, arena.peak());
    }
  }
  return most;
}

struct BenchOptions {
  RankChoice ranks;
  std::string device = "cpu";
  std::vector<int64_t> sizes{1 << 10, 16 << 10, 128 << 10, 512 << 10, 1 << 20, 2 << 20,
                             4 << 20, 8 << 20,  16 << 20,  32 << 20,  64 << 20};
  int repeats = 7;
  int calls = 20;
  std::string json;
};

struct Timing {
  const char* name;
  int64_t bytes;  // of `n` elements
  int64_t sent;   // that leave a rank, the busiest
  double seconds;

  double bandwidth() const { return static_cast<double>(sent) / seconds; }  // bytes/s
};

/// One rank's part of the measurement.
class Measurement {
 public:
  Measurement(World& world, const BenchOptions& options)
      : options_(options),
        mesh_(world, mesh_along(Axis::sequence, world.size()), {&booked_, &counted_},
              /*strict=*/false),
        compute_(world.make_compute_stream()),
        memory_("collectives", world.device(), capacity(world.size()), compute_.get()),
        at_{.comm = mesh_.along(Axis::sequence),
            .compute = *compute_,
            .buffer = memory_.allocate("buffer", DType::f32, {elements(largest())}),
            .inbox = memory_.allocate("inbox", DType::f32, {elements(largest())}),
            .scratch = memory_.allocate("scratch", DType::f32, {elements(largest())})},
        clocks_(memory_.allocate("clocks", DType::f64, {world.size()})),
        scans_("scans", world.device(), scan_capacity(world.size()), compute_.get()),
        no_parameters_({}, DType::f32, scans_),
        context_{.mesh = mesh_,
                 .compute = *compute_,
                 .scratch = scans_,
                 .parameters = no_parameters_,
                 .dtype = DType::f32,
                 .loss_sum = {}} {}

  std::vector<Timing> run() {
    std::vector<Timing> timings;
    for (const Collective& collective : kCollectives) {
      for (const int64_t size : options_.sizes) {
        const int64_t n = elements(size);
        timings.push_back(
            measure(collective.name, 4 * n, [&] { at_.compute.wait(collective.start(at_, n)); }));
      }
    }
    for (const StateScanKind& kind : state_scans()) {
      for (const int64_t size : options_.sizes) {
        if (size >= kHeadBytes) timings.push_back(measure_scan(kind, size / kHeadBytes));
      }
    }
    return timings;
  }

  int64_t host_waits() const { return at_.comm.host_waits(); }

 private:
  int64_t largest() const {
    return *std::max_element(options_.sizes.begin(), options_.sizes.end());
  }
  int64_t capacity(int ranks) const { return 3 * (largest() + 4 * ranks + 64) + 8 * ranks + 64; }

  int64_t scan_capacity(int ranks) const {
    return largest() < kHeadBytes ? 0 : scan_memory(ranks, largest() / kHeadBytes);
  }

  /// The elements in about `size` bytes: pieces of one size.
  int64_t elements(int64_t size) const {
    const int64_t ranks = mesh_.size(Axis::sequence);
    return std::max<int64_t>(1, size / 4 / ranks) * ranks;
  }

  Timing measure(const char* name, int64_t bytes, const std::function<void()>& call) {
    std::vector<double> seconds;
    Timing timing{name, bytes, 0, 0};
    for (int repeat = -1; repeat < options_.repeats; ++repeat) {  // one to warm up
      fill({.y = at_.buffer, .value = 1.0 / 3}, at_.compute);     // sums grow from call to call
      at_.compute.wait(at_.comm.barrier(at_.compute));
      at_.compute.record().wait();
      booked_.clear();
      counted_.clear();
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < options_.calls; ++i) call();
      at_.compute.record().wait();
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      WEFT_REQUIRE(booked_.entries() == counted_.entries(), ExitCode::comparison, name,
                   ": bytes booked and bytes counted differ");
      const int64_t sent = booked_.by_group()[at_.comm.group()] / options_.calls;
      timing.sent = std::llround(longest(static_cast<double>(sent)));
      if (repeat >= 0) seconds.push_back(longest(spent.count() / options_.calls));
    }
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    timing.seconds = seconds[seconds.size() / 2];
    return timing;
  }

  Timing measure_scan(const StateScanKind& kind, int64_t heads) {
    const Scope scope(scans_);
    const ScanTensors tensors(heads, scans_);
    fill({.y = tensors.element.transition, .value = -0.1}, at_.compute);
    fill({.y = tensors.element.state, .value = 1.0 / 3}, at_.compute);
    const auto scan = kind.make({});
    Timing timing =
        measure(kind.name, heads * kHeadBytes, [&] { scan_both_ways(*scan, tensors, context_); });
    timing.sent /= 2;  // of one scan
    timing.seconds /= 2;
    return timing;
  }

  /// The largest of the ranks' values.
  double longest(double mine) {
    const int ranks = at_.comm.size();
    std::vector<double> all(ranks, mine);
    const int64_t bytes = ranks * static_cast<int64_t>(sizeof(double));
    const auto copy = [&](void* to, const void* from) {
      if (clocks_.device == Device::cuda) {
        cuda::copy_bytes(to, from, bytes, at_.compute);
      } else {
        std::memcpy(to, from, bytes);
      }
    };
    copy(clocks_.data, all.data());
    at_.compute.wait(at_.comm.all_gather(clocks_, Cuts::even(ranks, ranks), {}, at_.compute));
    copy(all.data(), clocks_.data);
    at_.compute.record().wait();
    return *std::max_element(all.begin(), all.end());
  }

  const BenchOptions& options_;
  Ledger booked_, counted_;
  ProcessMesh mesh_;
  std::unique_ptr<Stream> compute_;
  Arena memory_;
  Workplace at_;
  Tensor clocks_;
  Arena scans_;
  ParameterStore no_parameters_;
  StepContext context_;
};

void print(const std::vector<Timing>& timings) {
  const char* last = "";
  for (const Timing& t : timings) {
    if (std::string_view(last) != t.name) {
      const auto* row = std::find_if(std::begin(kCollectives), std::end(kCollectives),
                                     [&](const Collective& c) { return c.name == t.name; });
      fmt::print("{} (bytes: {})\n  {:>12}{:>14}{:>12}{:>12}\n", t.name,
                 row == std::end(kCollectives) ? "a state" : row->size, "bytes", "sent by rank",
                 "us", "bus GB/s");
    }
    last = t.name;
    fmt::print("  {:>12}{:>14}{:>12.1f}{:>12.3f}\n", t.bytes, t.sent, t.seconds * 1e6,
               t.bandwidth() / 1e9);
  }
}

nlohmann::ordered_json to_json(const std::vector<Timing>& timings) {
  auto rows = nlohmann::ordered_json::array();
  for (const Timing& t : timings) {
    rows.push_back({{"operation", t.name},
                    {"bytes", t.bytes},
                    {"bytes_sent", t.sent},
                    {"seconds", t.seconds},
                    {"bus_bytes_per_s", t.bandwidth()}});
  }
  return rows;
}

int bench(BenchOptions options) {
  options.ranks.device = options.device == "cuda" ? Device::cuda : Device::cpu;
  if (options.ranks.comm.empty()) options.ranks.comm = launched_by_mpi() ? "mpi" : "threads";
  start_ranks(options.ranks, [&](World& world) {
    WEFT_REQUIRE(world.size() > 1, ExitCode::usage,
                 "one rank sends nothing: start more with --ranks or mpirun -n");
    Measurement measurement(world, options);
    const std::vector<Timing> timings = measurement.run();
    if (world.rank() != 0) return;
    fmt::print("{} ranks, {}, medians of {} x {} calls, the slowest rank's\n", world.size(),
               options.device, options.repeats, options.calls);
    print(timings);
    write_json(options.json, {{"comm", options.ranks.comm},
                              {"device", options.device},
                              {"ranks", world.size()},
                              {"host_waits", measurement.host_waits()},
                              {"results", to_json(timings)}});
  });
  return static_cast<int>(ExitCode::done);
}

}  // namespace

void add_collectives_bench(CLI::App& bench_command, std::function<int()>& action) {
  CLI::App* command =
      bench_command.add_subcommand("collectives", "time every collective by message size");
  auto options = std::make_shared<BenchOptions>();
  command
      ->add_option("--comm", options->ranks.comm,
                   "threads, mpi or nccl (default: mpi under mpirun, threads elsewhere)")
      ->check(CLI::IsMember({"threads", "mpi", "nccl"}))
      ->type_name("COMM");
  command->add_option("--device", options->device, "where the tensors are: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str()
      ->type_name("DEVICE");
  command
      ->add_option("--ranks", options->ranks.ranks,
                   "threads to start without mpirun (default: one a GPU, 2 on the CPU)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  command
      ->add_option("--gpus", options->ranks.gpus,
                   "GPUs that these threads share in turn (default: all)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  command->add_option("--sizes", options->sizes, "message sizes in bytes, as 4096 or 512k or 64M")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(int64_t{4}, int64_t{1} << 33))
      ->type_name("SIZE,...");
  command->add_option("--repeats", options->repeats, "measurements that the medians are over")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--calls", options->calls, "calls in a row in one measurement")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--json", options->json, "write the result to FILE")->type_name("FILE");
  command->callback([&action, options] { action = [options] { return bench(*options); }; });
}

}  // namespace weft
