// What every kernel takes against its floor, and how far it is from its CPU twin in f64.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/kernel_cases.hpp"
#include "src/core/kernel_call.hpp"
#include "src/kernels/optimizer.hpp"

namespace weft {

struct KernelResult {
  const KernelCase* of = nullptr;
  std::string shape;
  Cost cost;
  double seconds = 0;       // median; 0 where nothing was timed
  double floor_s = 0;       // what the call takes at least, at the rates of this run
  bool flops_bind = false;  // what the floor is of: FLOPs, or else bytes
  // Of the output that is nearest to its bound, or furthest beyond it:
  double error = 0;  // RMS of the difference over RMS of the reference; infinite: not comparable
  double bound = 0;
  std::string output;

  double share() const { return seconds > 0 ? floor_s / seconds : 0; }
  bool ok() const { return error <= bound; }
};

/// What a case does at the sizes of a setting, found on shapes.
struct KernelPlan {
  KernelCall call;
  std::string shape;
  int64_t bytes = 0;  // of the arena that its tensors take
};
/// Needs no device. Throws an internal Error where the case does not make one call, of its kernel.
KernelPlan plan_kernel(const KernelCase& one, const Workbench::Setting& setting);

/// Measures kernels, one after the other, on one thread of the CPU or on one GPU. Every timed call
/// starts from the same values, none of them in a cache.
class KernelsBench {
 public:
  struct Options {
    Device device = Device::cpu;
    DType dtype = DType::f32;  // f32 or f64 on the CPU, f32 or bf16 on a GPU
    int repeats = 5;           // that medians are over, after some to warm up; 0: errors alone
  };

  /// Takes memory for the largest of `cases`, and measures the rates that floors are made of,
  /// unless nothing is timed.
  KernelsBench(const Options& options, const std::vector<const KernelCase*>& cases);
  ~KernelsBench();

  /// 0 where nothing is timed.
  double copy_bytes_per_s() const { return copy_bytes_per_s_; }
  /// Of large products of the type; 0 where no case has products, or nothing is timed.
  double product_flops_per_s() const { return product_flops_per_s_; }
  std::string product_text() const;  // "bf16 product 8192^3"

  /// `one` is among the cases.
  KernelResult measure(const KernelCase& one);

 private:
  Workbench::Setting timed() const;
  Workbench::Setting compared() const;
  bool times() const { return options_.repeats > 0; }
  /// What timing takes beside a case's tensors, in bytes.
  int64_t bytes_of_rates() const;
  void measure_time(const KernelCase& one, const KernelPlan& planned, KernelResult& result);
  void make_sweep();
  std::vector<double> seconds_of(int repeats, const std::function<void()>& before,
                                 const std::function<void()>& work);
  void measure_copies();
  void measure_products();
  void compare(const KernelCase& one, KernelResult& result);

  Options options_;
  std::unique_ptr<Stream> stream_, host_;
  std::unique_ptr<Arena> arena_, reference_;  // of the device; of the CPU, for the reference
  SquaredSumArgs sweep_;                      // reads more than caches hold
  double copy_bytes_per_s_ = 0, product_flops_per_s_ = 0;
};

/// Throws Error(comparison), which names the first of `results` that exceeds its bound.
void require_within_bounds(const std::vector<KernelResult>& results);

/// Of an even number of values the greater of the two in the middle. There is one.
double median(std::vector<double> values);

/// RMS(got - reference) / RMS(reference); equal infinities count as equal. Infinite where anything
/// else is not finite, and where a reference of zeros is missed.
double relative_error(const std::vector<double>& got, const std::vector<double>& reference);

}  // namespace weft
