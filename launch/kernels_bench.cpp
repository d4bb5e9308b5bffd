#include "launch/kernels_bench.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "src/core/cuda/stream.hpp"
#include "src/core/cuda/timer.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/tensor/bf16.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

/// A case whose tensors are made: called any number of times, each from the same values.
class Prepared {
 public:
  Prepared(const KernelCase& of, const Workbench::Setting& setting, Arena& arena, Stream& stream)
      : scope_(arena), stream_(stream), bench_(setting, arena, stream), use_(of.make(bench_)) {
    for (const Workbench::Output& output : bench_.outputs()) {
      if (!output.updated) continue;
      const Tensor flat = output.tensor.reshape({output.tensor.numel()});
      before_.push_back({flat, arena.allocate("before", flat.dtype, {flat.numel()})});
      copy({.y = before_.back().second, .x = flat}, stream);
    }
  }

  void restore() {
    for (const auto& [tensor, before] : before_) copy({.y = tensor, .x = before}, stream_);
  }
  void call() { use_.call(stream_); }
  const Workbench& bench() const { return bench_; }
  const std::string& shape() const { return use_.shape; }

 private:
  Scope scope_;
  Stream& stream_;
  Workbench bench_;
  KernelUse use_;
  std::vector<std::pair<Tensor, Tensor>> before_;
};

Workbench::Setting reference_setting(DType dtype) {
  return {Device::cpu, dtype, DType::f64, compared_sizes()};
}

std::vector<double> values_of(const Tensor& t, Stream& stream) {
  const HostCopy copy(t, stream);
  const Tensor& host = copy.tensor();
  std::vector<double> values(t.numel());
  if (t.dtype == DType::bf16) {
    const auto* bits = reinterpret_cast<const uint16_t*>(host.data);
    std::transform(bits, bits + t.numel(), values.begin(), from_bf16);
  } else {
    visit_float(t.dtype, [&](auto zero) {
      const auto* data = host.as<decltype(zero)>();
      std::copy_n(data, t.numel(), values.begin());
    });
  }
  return values;
}

/// What an output of a type may be off by (docs/numerics.md).
double bound_of(DType dtype, Tolerance tolerance) {
  if (dtype == DType::f64) return 1e-12;
  if (dtype == DType::bf16) return 8e-3;
  return tolerance == Tolerance::cancelling ? 1e-4 : 1e-5;
}

double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

/// Bytes that push everything else out of the caches.
int64_t swept_bytes(Device device) {
  return int64_t{device == Device::cuda ? 256 : 128} << 20;
}

/// Calls that a rate is the fastest of: a floor is what cannot be beaten, also where other programs
/// slow down some of them.
constexpr int kRateRepeats = 15;

struct RateSizes {
  int64_t copied;   // bytes
  int64_t product;  // rows, columns and inner length
};
RateSizes rate_sizes(Device device) {
  if (device == Device::cuda) return {int64_t{4} << 30, 8192};
  return {int64_t{64} << 20, 768};
}

}  // namespace

KernelPlan plan_kernel(const KernelCase& one, const Workbench::Setting& setting) {
  std::vector<KernelCall> calls;
  const auto stream = make_meta_stream([&](const KernelCall& call) { calls.push_back(call); });
  Arena arena("plan", Device::meta, 0);
  Prepared prepared(one, setting, arena, *stream);
  calls.clear();
  prepared.call();
  WEFT_CHECK(calls.size() == 1 && std::string_view(calls[0].name) == one.kernel, one.kernel,
             ": the case makes ", calls.size(), " calls, the first of ",
             calls.empty() ? "nothing" : calls[0].name);
  return {calls[0], prepared.shape(), arena.peak()};
}

void require_within_bounds(const std::vector<KernelResult>& results) {
  const auto wrong = [](const KernelResult& result) { return !result.ok(); };
  const auto first = std::find_if(results.begin(), results.end(), wrong);
  if (first == results.end()) return;
  const KernelCase& of = *first->of;
  throw Error(ExitCode::comparison,
              concat(std::count_if(results.begin(), results.end(), wrong), " of ", results.size(),
                     " cases exceed their bound; the first is ", of.kernel,
                     of.form.empty() ? "" : " (" + of.form + ")", ": ", first->output,
                     " is off by ", first->error, ", more than ", first->bound));
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& reference) {
  constexpr double kIncomparable = std::numeric_limits<double>::infinity();
  if (got.size() != reference.size()) return kIncomparable;
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(reference[i]) && got[i] == reference[i]) continue;
    if (!std::isfinite(got[i]) || !std::isfinite(reference[i])) return kIncomparable;
    difference += (got[i] - reference[i]) * (got[i] - reference[i]);
    size += reference[i] * reference[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);  // by 0: infinite
}

KernelsBench::KernelsBench(const Options& options, const std::vector<const KernelCase*>& cases)
    : options_(options),
      stream_(options.device == Device::cuda ? cuda::make_stream(0) : make_inline_stream()),
      host_(make_inline_stream()) {
  cpu::set_blas_threads(1);
  int64_t most = bytes_of_rates(), most_of_reference = 0;
  bool has_products = false;
  for (const KernelCase* one : cases) {
    const KernelPlan small = plan_kernel(*one, compared());
    most = std::max(most, small.bytes);
    if (times()) most = std::max(most, plan_kernel(*one, timed()).bytes);
    most_of_reference =
        std::max(most_of_reference, plan_kernel(*one, reference_setting(options.dtype)).bytes);
    has_products = has_products || !small.call.products.empty();
  }
  if (times()) most += swept_bytes(options.device) + 64;
  arena_ = std::make_unique<Arena>("kernels", options.device, most, stream_.get());
  reference_ = std::make_unique<Arena>("reference", Device::cpu, most_of_reference);
  if (!times()) return;
  make_sweep();
  measure_copies();
  if (has_products) measure_products();
}

KernelsBench::~KernelsBench() = default;

Workbench::Setting KernelsBench::timed() const {
  return {options_.device, options_.dtype, options_.dtype, timed_sizes(options_.device)};
}

int64_t KernelsBench::bytes_of_rates() const {
  if (!times()) return 0;
  const auto [copied, product] = rate_sizes(options_.device);
  return std::max(2 * copied, 3 * product * product * size_of(options_.dtype)) + 256;
}

void KernelsBench::make_sweep() {
  sweep_ = {.total = arena_->allocate_zeros("sum", DType::f64, {1}),
            .x = arena_->allocate_zeros("swept", DType::f32,
                                        {swept_bytes(options_.device) / size_of(DType::f32)})};
}

Workbench::Setting KernelsBench::compared() const {
  return {options_.device, options_.dtype, options_.dtype, compared_sizes()};
}

/// Of `work` alone, call by call; `before` stands in front of each and is not timed.
std::vector<double> KernelsBench::seconds_of(int repeats, const std::function<void()>& before,
                                             const std::function<void()>& work) {
  const int warm_ups = options_.device == Device::cuda ? 3 : 1;
  std::vector<double> seconds;
  for (int run = -warm_ups; run < repeats; ++run) {
    before();
    squared_sum(sweep_, *stream_);  // reads: what it leaves in a cache need not be written back
    double spent = 0;
    if (options_.device == Device::cuda) {
      spent = cuda::seconds_of(*stream_, work);
    } else {
      const auto start = std::chrono::steady_clock::now();
      work();
      spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    if (run >= 0) seconds.push_back(spent);
  }
  return seconds;
}

void KernelsBench::measure_copies() {
  const Scope scope(*arena_);
  const int64_t bytes = rate_sizes(options_.device).copied;
  const Tensor x = arena_->allocate("x", DType::u8, {bytes});
  const Tensor y = arena_->allocate("y", DType::u8, {bytes});
  poison_fill(x, stream_.get());
  const CopyArgs args{.y = y, .x = x};
  copy_bytes_per_s_ = cost(args).bytes / least(seconds_of(
                                             kRateRepeats, [] {}, [&] { copy(args, *stream_); }));
}

void KernelsBench::measure_products() {
  const Scope scope(*arena_);
  const int64_t n = rate_sizes(options_.device).product;
  Workbench bench(timed(), *arena_, *stream_);
  const MatmulArgs args{.c = bench.work(Element::data, {n, n}),
                        .a = bench.input(Element::data, {n, n}),
                        .b = bench.input(Element::data, {n, n}),
                        .transpose_b = true};
  product_flops_per_s_ =
      cost(args).flops / least(seconds_of(
                             kRateRepeats, [] {}, [&] { matmul(args, *stream_); }));
}

std::string KernelsBench::product_text() const {
  return concat(name(options_.dtype), " product ", rate_sizes(options_.device).product, "^3");
}

KernelResult KernelsBench::measure(const KernelCase& one) {
  KernelResult result;
  result.of = &one;
  const KernelPlan planned = plan_kernel(one, times() ? timed() : compared());
  result.shape = planned.shape;
  result.cost = planned.call.cost;
  if (times()) measure_time(one, planned, result);
  compare(one, result);
  return result;
}

void KernelsBench::measure_time(const KernelCase& one, const KernelPlan& planned,
                                KernelResult& result) {
  // Kernels of loops are held to their bytes: their FLOPs have no rate in common.
  const double flops_s =
      planned.call.products.empty() ? 0 : result.cost.flops / product_flops_per_s_;
  const double bytes_s = result.cost.bytes / copy_bytes_per_s_;
  result.flops_bind = flops_s > bytes_s;
  result.floor_s = std::max(flops_s, bytes_s);
  Prepared prepared(one, timed(), *arena_, *stream_);
  result.seconds = median(seconds_of(
      options_.repeats, [&] { prepared.restore(); }, [&] { prepared.call(); }));
}

void KernelsBench::compare(const KernelCase& one, KernelResult& result) {
  Prepared tested(one, {options_.device, options_.dtype, options_.dtype, compared_sizes()}, *arena_,
                  *stream_);
  Prepared reference(one, reference_setting(options_.dtype), *reference_, *host_);
  tested.call();
  reference.call();
  const auto& expected = reference.bench().outputs();
  double furthest = -1;
  for (const Workbench::Output& output : tested.bench().outputs()) {
    const auto twin = std::find_if(expected.begin(), expected.end(), [&](const auto& candidate) {
      return std::string_view(candidate.name) == output.name;
    });
    WEFT_CHECK(twin != expected.end(), one.kernel, ": no reference of ", output.name);
    const double error =
        relative_error(values_of(output.tensor, *stream_), values_of(twin->tensor, *host_));
    const double bound = bound_of(tested.bench().type_of_errors(), output.tolerance);
    if (error / bound <= furthest) continue;
    furthest = error / bound;
    result.error = error;
    result.bound = bound;
    result.output = output.name;
  }
  WEFT_CHECK(furthest >= 0, one.kernel, ": the case names no output");
}

}  // namespace weft
