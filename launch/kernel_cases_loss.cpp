// Cross-entropy of a slice of tokens, and the update of parameters.
#include <cmath>

#include "launch/kernel_cases.hpp"
#include "src/kernels/loss.hpp"
#include "src/kernels/optimizer.hpp"

namespace weft {
namespace {

using enum Element;

constexpr double kScale = 1e-4;  // about one over the tokens of a batch

/// Some rows have no label.
Tensor labels(Workbench& w, int64_t vocab) {
  return w.integers(DType::i32, {w.sizes().loss_slice},
                    [vocab](int64_t i) { return i % 11 == 7 ? -1 : i * 7919 % vocab; });
}

KernelUse shard(Workbench& w, bool gradient) {
  const int64_t R = w.sizes().loss_slice, V = w.sizes().vocab;
  return use_of(cross_entropy_shard,
                {.statistics = w.output("statistics", wide, {kRowStatistics, R}),
                 .logits = w.updated("logits", data, {R, V}),
                 .labels = labels(w, V),
                 .vocab_begin = 0,
                 .vocab = V,
                 .scale = kScale,
                 .gradient = gradient},
                shape_text({R, V}));
}

/// The first of `ranks` that hold as many logits each.
KernelUse combine(Workbench& w, int ranks) {
  const int64_t R = w.sizes().loss_slice, V = w.sizes().vocab;
  const Tensor statistics = w.work(wide, {ranks, kRowStatistics, R});
  const Tensor all_labels = labels(w, ranks * V);
  Tensor own;
  for (int rank = 0; rank < ranks; ++rank) {
    const Tensor logits = w.input(data, {R, V});
    if (rank == 0) own = logits;
    cross_entropy_shard(
        {.statistics = statistics.slice(0, rank, rank + 1).reshape({kRowStatistics, R}),
         .logits = logits,
         .labels = all_labels,
         .vocab_begin = rank * V,
         .vocab = ranks * V,
         .scale = kScale},
        w.stream());
  }
  w.updates("logits", own);
  return use_of(cross_entropy_combine,
                {.loss_sum = w.updated("loss_sum", f64, {1}),
                 .logits = own,
                 .statistics = statistics,
                 .labels = all_labels,
                 .scale = kScale},
                shape_text({R, V}));
}

// ---- Optimizer

KernelUse norm(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(squared_sum, {.total = w.updated("total", f64, {1}), .x = w.input(wide, {n})},
                shape_text({n}));
}

/// Of all gradients: at twice the bound that they are clipped to.
Tensor squared_norm(Workbench& w) {
  return w.input(f64, {1}, [](double) { return 4.0; });
}

KernelUse new_norm(Workbench& w) {
  return use_of(
      begin_norm,
      {.squared_norm = w.updated("squared norm", f64, {1}), .loss_sum = w.input(f64, {1})},
      shape_text({1}));
}

/// A rate at which the update is as large as the parameters, so that its error shows.
KernelUse update(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(adamw,
                {.param = w.updated("param", wide, {n}),
                 .m = w.updated("m", wide, {n}),
                 .v = w.updated("v", wide, {n}, [](double normal) { return normal * normal; }),
                 .grad = w.input(wide, {n}),
                 .squared_norm = squared_norm(w),
                 .grad_clip = 1,
                 .lr = 1,
                 .weight_decay = 0.1,
                 .step = 3},
                shape_text({n}));
}

// ---- Muon, besides its products

KernelUse momentum(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(nesterov,
                {.update = w.output("update", wide, {n}),
                 .m = w.updated("m", wide, {n}),
                 .grad = w.input(wide, {n}),
                 .squared_norm = squared_norm(w),
                 .grad_clip = 1},
                shape_text({n}));
}

KernelUse orthogonal_step(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(decayed_step,
                {.param = w.updated("param", wide, {n}),
                 .update = w.input(wide, {n}),
                 .squared_norm = squared_norm(w),
                 .lr = 1,
                 .scale = 0.2,
                 .weight_decay = 0.1},
                shape_text({n}));
}

KernelUse unit_matrix(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(normalize, {.x = w.updated("x", wide, {n}), .squared_sum = squared_norm(w)},
                shape_text({n}));
}

KernelUse multiple(Workbench& w) {
  const int64_t n = w.sizes().parameters;
  return use_of(add_scaled,
                {.y = w.updated("y", wide, {n}), .x = w.input(wide, {n}), .alpha = -1.7},
                shape_text({n}));
}

}  // namespace

std::vector<KernelCase> loss_cases() {
  return {{"cross_entropy_shard", "loss only", [](Workbench& w) { return shard(w, false); }},
          {"cross_entropy_shard", "with gradient", [](Workbench& w) { return shard(w, true); }},
          {"cross_entropy_combine", "one rank", [](Workbench& w) { return combine(w, 1); }},
          {"cross_entropy_combine", "two ranks", [](Workbench& w) { return combine(w, 2); }},
          {"begin_norm", "", new_norm},
          {"squared_sum", "", norm},
          {"adamw", "", update},
          {"nesterov", "", momentum},
          {"decayed_step", "", orthogonal_step},
          {"normalize", "", unit_matrix},
          {"add_scaled", "", multiple}};
}

}  // namespace weft
