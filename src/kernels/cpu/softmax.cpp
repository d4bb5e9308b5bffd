#include "src/kernels/softmax.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/cpu/vector_math.hpp"

namespace weft::cpu {
namespace {

/// Calls f(b, h, t, begin, end) for every row of [B, H, T, K]; [begin, end) are the columns that
/// its query sees, column 0 being the global key `first_key`.
template <class F>
void for_rows(const Tensor& scores, const Tensor& key_begin, const Tensor& key_end,
              int64_t first_key, F&& f) {
  const int64_t keys = scores.dim(3);
  for (int64_t b = 0; b < scores.dim(0); ++b) {
    const int64_t* from = key_begin.as<int64_t>() + b * key_begin.stride[0];
    const int64_t* to = key_end.as<int64_t>() + b * key_end.stride[0];
    for (int64_t h = 0; h < scores.dim(1); ++h) {
      for (int64_t t = 0; t < scores.dim(2); ++t) {
        const int64_t begin = std::clamp<int64_t>(from[t] - first_key, 0, keys);
        f(b, h, t, begin, std::clamp<int64_t>(to[t] - first_key, begin, keys));
      }
    }
  }
}

template <class T>
T* row(const Tensor& t, int64_t b, int64_t h, int64_t i) {
  return t.as<T>() + b * t.stride[0] + h * t.stride[1] + i * t.stride[2];
}

template <class T>
void forward(const SoftmaxArgs& args) {
  const int64_t keys = args.scores.dim(3);
  for_rows(args.scores, args.key_begin, args.key_end, 0,
           [&](int64_t b, int64_t h, int64_t t, int64_t begin, int64_t end) {
             T* p = row<T>(args.scores, b, h, t);
             T& lse = *row<T>(args.lse, b, h, t);
             std::fill(p, p + begin, T(0));
             std::fill(p + end, p + keys, T(0));
             const T* seen = p + begin;
             const T most = max_of<T>(end - begin, [&](int64_t j) { return seen[j]; });
             if (begin == end) {
               lse = -INFINITY;
               return;
             }
             const T sum = sum_of<T>(
                 end - begin, [&](int64_t j) { return p[begin + j] = cpu::exp(seen[j] - most); });
             for (int64_t j = begin; j < end; ++j) p[j] /= sum;
             lse = most + std::log(sum);
           });
}

template <class T>
void backward(const SoftmaxGradArgs& args) {
  const int64_t keys = args.probs.dim(3);
  for_rows(args.probs, args.key_begin, args.key_end, args.first_key,
           [&](int64_t b, int64_t h, int64_t t, int64_t begin, int64_t end) {
             T* __restrict p = row<T>(args.probs, b, h, t);
             T* __restrict ds = row<T>(args.dscores, b, h, t);
             const T lse = *row<T>(args.lse, b, h, t), delta = *row<T>(args.delta, b, h, t);
             for (T* hidden : {p, ds}) {
               std::fill(hidden, hidden + begin, T(0));
               std::fill(hidden + end, hidden + keys, T(0));
             }
             for (int64_t j = begin; j < end; ++j) {
               p[j] = cpu::exp(p[j] - lse);
               ds[j] = p[j] * (ds[j] - delta);
             }
           });
}

}  // namespace

void softmax_forward(const SoftmaxArgs& args) {
  visit_float(args.scores.dtype, [&](auto zero) { forward<decltype(zero)>(args); });
}

void softmax_backward(const SoftmaxGradArgs& args) {
  visit_float(args.probs.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}

}  // namespace weft::cpu
