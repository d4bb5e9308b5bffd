#include "src/kernels/naive/projected_attention.hpp"

namespace weft::naive {
namespace {

/// [B, rows, width] = projection [rows, tokens] x [B, tokens, width].
std::vector<double> projected(const ProjectedInputs& in, const std::vector<double>& projection,
                              const std::vector<double>& x) {
  const int64_t B = in.attention.batch, N = in.attention.keys, R = in.rows;
  const int64_t width = in.attention.kv_heads * in.attention.width;
  std::vector<double> y(B * R * width);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t t = 0; t < N; ++t) {
        for (int64_t i = 0; i < width; ++i) {
          y[(b * R + r) * width + i] += projection[r * N + t] * x[(b * N + t) * width + i];
        }
      }
    }
  }
  return y;
}

/// dx += projection^T dy and dprojection += dy x^T, for y = projection x.
void projected_backward(const ProjectedInputs& in, const std::vector<double>& projection,
                        const std::vector<double>& x, const std::vector<double>& dy,
                        std::vector<double>& dx, std::vector<double>& dprojection) {
  const int64_t B = in.attention.batch, N = in.attention.keys, R = in.rows;
  const int64_t width = in.attention.kv_heads * in.attention.width;
  dx.assign(x.size(), 0);
  dprojection.assign(projection.size(), 0);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t t = 0; t < N; ++t) {
        for (int64_t i = 0; i < width; ++i) {
          const double d = dy[(b * R + r) * width + i];
          dx[(b * N + t) * width + i] += projection[r * N + t] * d;
          dprojection[r * N + t] += d * x[(b * N + t) * width + i];
        }
      }
    }
  }
}

}  // namespace

ProjectedResult projected_attention(const ProjectedInputs& in) {
  AttentionInputs small = in.attention;
  small.keys = in.rows;
  small.k = projected(in, in.e, in.attention.k);
  small.v = projected(in, in.f, in.attention.v);
  small.key_begin.assign(small.batch * small.queries, 0);
  small.key_end.assign(small.batch * small.queries, in.rows);
  ProjectedResult result{.attention = attention(small), .de = {}, .df = {}};
  const std::vector<double> dk = std::move(result.attention.dk);
  const std::vector<double> dv = std::move(result.attention.dv);
  projected_backward(in, in.e, in.attention.k, dk, result.attention.dk, result.de);
  projected_backward(in, in.f, in.attention.v, dv, result.attention.dv, result.df);
  return result;
}

}  // namespace weft::naive
