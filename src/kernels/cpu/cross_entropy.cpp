#include <algorithm>
#include <cmath>

#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/loss.hpp"

namespace weft::cpu {
namespace {

template <class T>
struct Statistics {
  T largest, sum;
};

/// Of a row; with `gradient` it becomes scale x its softmax.
template <class T>
Statistics<T> statistics_of(T* logits, int64_t n, T scale, bool gradient) {
  const T most = max_of<T>(n, [&](int64_t i) { return logits[i]; });
  if (!gradient) {
    return {most, sum_of<T>(n, [&](int64_t i) { return cpu::exp(logits[i] - most); })};
  }
  for (int64_t i = 0; i < n; ++i) logits[i] = cpu::exp(logits[i] - most);
  const T sum = sum_of<T>(n, [&](int64_t i) { return logits[i]; });
  const T factor = scale / sum;
  for (int64_t i = 0; i < n; ++i) logits[i] *= factor;
  return {most, sum};
}

/// A row as all ranks together have it.
template <class T>
struct WholeRow {
  T largest, sum, target;
};

/// statistics: [ranks, 3, rows].
template <class T>
WholeRow<T> whole_row(const T* statistics, int64_t ranks, int64_t rows, int64_t row) {
  const auto of = [&](int64_t rank, int64_t which) {
    return statistics[(rank * kRowStatistics + which) * rows + row];
  };
  WholeRow<T> whole{-INFINITY, 0, 0};
  for (int64_t p = 0; p < ranks; ++p) whole.largest = std::max(whole.largest, of(p, 0));
  for (int64_t p = 0; p < ranks; ++p) {
    whole.sum += of(p, 1) * std::exp(of(p, 0) - whole.largest);
    whole.target += of(p, 2);
  }
  return whole;
}

}  // namespace

void cross_entropy_shard(const CrossEntropyShardArgs& args) {
  visit_float(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = args.logits.dim(0), width = args.logits.dim(1);
    const int32_t* labels = args.labels.as<int32_t>();
    T* largest = args.statistics.as<T>();
    T* sum = largest + rows;
    T* target = sum + rows;
    for (int64_t r = 0; r < rows; ++r) {
      T* logits = args.logits.as<T>() + r * args.logits.stride[0];
      largest[r] = sum[r] = target[r] = 0;
      if (labels[r] < 0) {
        if (args.gradient) std::fill_n(logits, width, T(0));
        continue;
      }
      WEFT_REQUIRE(labels[r] < args.vocab, ExitCode::data, "token id ", labels[r],
                   " is outside the vocabulary of ", args.vocab);
      const int64_t at = labels[r] - args.vocab_begin;
      if (at >= 0 && at < width) target[r] = logits[at];
      const auto own = statistics_of(logits, width, static_cast<T>(args.scale), args.gradient);
      largest[r] = own.largest;
      sum[r] = own.sum;
    }
  });
}

void cross_entropy_combine(const CrossEntropyCombineArgs& args) {
  visit_float(args.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = args.logits.dim(0), width = args.logits.dim(1);
    const int32_t* labels = args.labels.as<int32_t>();
    const T* own = args.statistics.as<T>() + args.rank * kRowStatistics * rows;
    const T scale = static_cast<T>(args.scale);
    double loss = 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (labels[r] < 0) continue;
      const auto whole = whole_row(args.statistics.as<T>(), args.statistics.dim(0), rows, r);
      loss += std::log(static_cast<double>(whole.sum)) +
              (static_cast<double>(whole.largest) - whole.target);
      if (!args.gradient) continue;
      T* logits = args.logits.as<T>() + r * args.logits.stride[0];
      // From the softmax of the own logits to that of all.
      const T share = own[rows + r] * std::exp(own[r] - whole.largest) / whole.sum;
      if (share != 1) {
        for (int64_t i = 0; i < width; ++i) logits[i] *= share;
      }
      const int64_t at = labels[r] - args.vocab_begin;
      if (at >= 0 && at < width) {
        logits[at] = std::exp(whole.target - whole.largest) * (scale / whole.sum) - scale;
      }
    }
    if (args.loss_sum) args.loss_sum.as<double>()[0] += loss;
  });
}

}  // namespace weft::cpu
