#include <algorithm>
#include <cmath>

#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/loss.hpp"

namespace weft::cpu {
namespace {

/// One row: its loss in f64, and the logits replaced by their gradient.
template <class T>
double row_loss(T* logits, int64_t vocab, int32_t label, T scale, bool gradient) {
  const T most = max_of<T>(vocab, [&](int64_t i) { return logits[i]; });
  const T target = logits[label];
  if (!gradient) {
    const T sum = sum_of<T>(vocab, [&](int64_t i) { return cpu::exp(logits[i] - most); });
    return std::log(static_cast<double>(sum)) + (static_cast<double>(most) - target);
  }
  for (int64_t i = 0; i < vocab; ++i) logits[i] = cpu::exp(logits[i] - most);
  const T sum = sum_of<T>(vocab, [&](int64_t i) { return logits[i]; });
  const T factor = scale / sum;
  for (int64_t i = 0; i < vocab; ++i) logits[i] *= factor;
  logits[label] -= scale;
  return std::log(static_cast<double>(sum)) + (static_cast<double>(most) - target);
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args) {
  visit_float(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t vocab = args.logits.dim(1);
    const int32_t* labels = args.labels.as<int32_t>();
    double sum = 0;
    for (int64_t r = 0; r < args.logits.dim(0); ++r) {
      T* logits = args.logits.as<T>() + r * args.logits.stride[0];
      if (labels[r] < 0) {
        if (args.gradient) std::fill_n(logits, vocab, T(0));
        continue;
      }
      WEFT_REQUIRE(labels[r] < vocab, ExitCode::data, "token id ", labels[r],
                   " is outside the vocabulary of ", vocab);
      sum += row_loss(logits, vocab, labels[r], static_cast<T>(args.scale), args.gradient);
    }
    args.loss_sum.as<double>()[0] += sum;
  });
}

}  // namespace weft::cpu
