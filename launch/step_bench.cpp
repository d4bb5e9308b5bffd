#include "launch/step_bench.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "launch/samples.hpp"
#include "launch/trainer.hpp"
#include "parallel/comm/recording.hpp"
#include "parallel/comm/threads.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  WEFT_CHECK(!values.empty());
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

// ---- What a step is made of

/// One step on the meta device: its kernel calls, and the memory a real one needs.
struct TracedStep {
  std::vector<KernelCall> calls;
  MemoryPlan memory;
};

TracedStep trace_step(const Config& config) {
  TracedStep traced;
  const auto world = make_recording_world(0, 1);
  Trainer trainer(config, *world, {});
  trainer.set_compute(
      make_meta_stream([&](const KernelCall& call) { traced.calls.push_back(call); }));
  trainer.step(0, batch_shapes(config, Coordinate{}), 1);
  traced.memory = trainer.peaks();
  return traced;
}

bool same_shape(const Product& a, const Product& b) {
  return a.m == b.m && a.n == b.n && a.k == b.k && a.transpose_a == b.transpose_a &&
         a.transpose_b == b.transpose_b && a.accumulate == b.accumulate;
}

std::vector<StepBench::Products> group_products(const std::vector<KernelCall>& calls) {
  std::vector<StepBench::Products> groups;
  for (const KernelCall& call : calls) {
    for (const Product& product : call.products) {
      if (product.flops == 0) continue;
      const auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) {
        return g.kernel == call.name && same_shape(g.shape, product);
      });
      if (group == groups.end()) {
        groups.push_back({call.name, product});
      } else {
        group->shape.flops += product.flops;
      }
    }
  }
  return groups;
}

// ---- The floor

/// The products of one kernel and shape, ready to run.
class FloorProducts {
 public:
  FloorProducts(const Product& shape, DType dtype)
      : shape_(shape),
        arena_(
            "floor", Device::cpu,
            (shape.m * shape.k + shape.k * shape.n + shape.m * shape.n + 3 * 64) * size_of(dtype)) {
    const auto stream = make_inline_stream();
    const auto operand = [&](const char* name, int64_t rows, int64_t columns, bool transposed) {
      const Tensor t = transposed ? arena_.allocate(name, dtype, {columns, rows})
                                  : arena_.allocate(name, dtype, {rows, columns});
      fill({.y = t, .value = 1e-3}, *stream);
      return t;
    };
    args_ = {.c = operand("c", shape.m, shape.n, false),
             .a = operand("a", shape.m, shape.k, shape.transpose_a),
             .b = operand("b", shape.k, shape.n, shape.transpose_b),
             .transpose_a = shape.transpose_a,
             .transpose_b = shape.transpose_b,
             .accumulate = shape.accumulate};
  }

  /// Seconds of all of them; a fraction of a product is that fraction of a whole one's seconds.
  double run() const {
    const int64_t whole = static_cast<int64_t>(std::ceil(shape_.count()));
    const auto start = Clock::now();
    for (int64_t i = 0; i < whole; ++i) cpu::matmul(args_);
    return seconds_since(start) * shape_.count() / static_cast<double>(whole);
  }

 private:
  Product shape_;
  Arena arena_;
  MatmulArgs args_;
};

// ---- The step

/// Runs work at once and keeps the seconds of every kernel.
class TimedStream final : public Stream {
 public:
  using Kernels = std::map<std::string, StepBench::Kernel>;

  Device device() const override { return Device::cpu; }
  Event record() override { return inner_->record(); }
  void wait(const Event& event) override { inner_->wait(event); }
  bool traces() const override { return true; }

  void trace(const KernelCall& call) override {
    current_ = &kernels_[call.name];
    current_->name = call.name;
    ++current_->calls;
    current_->cost += call.cost;
  }

  void enqueue(std::function<void()> work) override {
    const auto start = Clock::now();
    inner_->enqueue(std::move(work));
    current_->seconds += seconds_since(start);
  }

  /// What was booked since the last call.
  Kernels take() { return std::exchange(kernels_, {}); }

 private:
  std::unique_ptr<Stream> inner_ = make_inline_stream();
  Kernels kernels_;
  StepBench::Kernel* current_ = nullptr;
};

/// The config with one document of synthetic tokens a sample.
Config on_synthetic_tokens(Config config) {
  config.data.path = "synthetic";
  config.data.documents = false;
  return config;
}

/// One rank that trains on synthetic tokens, a step at a time.
class TimedTrainer {
 public:
  TimedTrainer(const Config& config, World& world, const MemoryPlan& memory)
      : config_(on_synthetic_tokens(config)),
        source_(open_samples(config_)),
        loader_(make_batch_loader(config_, *source_, Coordinate{})),
        trainer_(config, world, memory) {
    auto stream = std::make_unique<TimedStream>();
    stream_ = stream.get();
    trainer_.set_compute(std::move(stream));
  }

  /// Seconds of the next step, its kernels into `kernels`. Loading the batch is not part of it.
  double step(TimedStream::Kernels& kernels) {
    const int64_t step = std::min(steps_++, config_.train.steps - 1);
    const std::vector<Batch> batches = loader_.load(step);
    const auto start = Clock::now();
    const StepReport report = trainer_.step(step, batches, loader_.global_labels(step));
    const double seconds = seconds_since(start);
    WEFT_REQUIRE(std::isfinite(report.grad_norm), ExitCode::diverged,
                 "the gradient norm is not finite, and such a step updates nothing");
    kernels = stream_->take();
    return seconds;
  }

 private:
  Config config_;
  std::unique_ptr<SampleSource> source_;
  BatchLoader loader_;
  Trainer trainer_;
  TimedStream* stream_;
  int64_t steps_ = 0;
};

// ---- Both

/// Medians over the runs.
class Samples {
 public:
  void add(const StepBench::Run& run, const TimedStream::Kernels& kernels,
           const std::vector<double>& product_seconds) {
    runs_.push_back(run);
    kernels_.push_back(kernels);
    products_.push_back(product_seconds);
  }

  void reduce(StepBench& bench) const {
    bench.runs = runs_;
    bench.step_s = over_runs([&](size_t run) { return runs_[run].step_s; });
    bench.floor_s = over_runs([&](size_t run) { return runs_[run].floor_s; });
    for (size_t i = 0; i < bench.products.size(); ++i) {
      bench.products[i].seconds = over_runs([&](size_t run) { return products_[run][i]; });
    }
    for (const auto& [name, kernel] : kernels_.front()) {
      StepBench::Kernel& entry = bench.kernels.emplace_back(kernel);
      entry.seconds = over_runs([&, &key = name](size_t run) {  // a structured binding is no name
        return kernels_[run].at(key).seconds;
      });
    }
    std::stable_sort(bench.kernels.begin(), bench.kernels.end(),
                     [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
    bench.rest_s = over_runs([&](size_t run) {
      double rest = runs_[run].step_s;
      for (const auto& [name, kernel] : kernels_[run]) rest -= kernel.seconds;
      return rest;
    });
  }

 private:
  template <class F>
  double over_runs(F&& f) const {
    std::vector<double> values;
    for (size_t run = 0; run < runs_.size(); ++run) values.push_back(f(run));
    return median(std::move(values));
  }

  std::vector<StepBench::Run> runs_;
  std::vector<TimedStream::Kernels> kernels_;
  std::vector<std::vector<double>> products_;
};

}  // namespace

double StepBench::floor_of(const std::string& kernel) const {
  double sum = 0;
  for (const Products& group : products) {
    if (group.kernel == kernel) sum += group.seconds;
  }
  return sum;
}

StepBench bench_step(Config config, int repeats) {
  WEFT_CHECK(repeats > 0, repeats);
  if (config.mesh.along(Axis::data) == kAutoSize) config.mesh.along(Axis::data) = 1;
  WEFT_REQUIRE(config.mesh.ranks() == 1, ExitCode::config, "mesh: expected one rank, got ",
               config.mesh.text());
  const TracedStep traced = trace_step(config);
  StepBench bench;
  bench.products = group_products(traced.calls);
  std::vector<std::unique_ptr<FloorProducts>> floor;
  for (const auto& group : bench.products) {
    floor.push_back(std::make_unique<FloorProducts>(group.shape, config.train.precision));
  }
  run_ranks(1, [&](World& world) {
    cpu::set_blas_threads(1);
    TimedTrainer trainer(config, world, traced.memory);
    Samples samples;
    for (int run = -1; run < repeats; ++run) {  // -1 warms up
      TimedStream::Kernels kernels;
      const double step_s = trainer.step(kernels);
      std::vector<double> products;
      for (const auto& group : floor) products.push_back(group->run());
      const double floor_s = std::accumulate(products.begin(), products.end(), 0.0);
      if (run >= 0) samples.add({step_s, floor_s}, kernels, products);
    }
    samples.reduce(bench);
  });
  return bench;
}

}  // namespace weft
