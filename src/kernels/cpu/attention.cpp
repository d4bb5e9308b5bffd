// Tiles of 256 queries x 256 keys: a tile of scores stays in the second-level cache, and the
// products are large enough for a BLAS, which copies each operand once a product.
#include "src/kernels/attention.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/cpu/rows.hpp"
#include "src/kernels/cpu/vector_math.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {

constexpr int64_t kQueryTile = kAttentionQueryTile;
constexpr int64_t kKeyTile = kAttentionKeyTile;
constexpr int64_t kStripe = 64;  // queries of a masked tile that are cut to their keys together

int64_t attention_scratch_bytes(DType dtype, int64_t head_dim) {
  // Two tiles of scores, one of outputs, and per query the maximum, the sum and the correction.
  return size_of(accumulator_of(dtype)) *
         (2 * kQueryTile * kKeyTile + kQueryTile * head_dim + 3 * kQueryTile);
}

namespace cpu {
namespace {

/// The Tq numbers of one (batch, head) of [B, H, Tq].
template <class T>
T* row_numbers(const Tensor& t, int64_t b, int64_t h) {
  return t.as<T>() + b * t.stride[0] + h * t.stride[1];
}

/// Merges a row `part` of D numbers, times `scale`, whose log-sum-exp is part_lse, into the running
/// normalised (out, lse).
template <class T>
void merge_row(int64_t head_dim, const T* part, T scale, T part_lse, T* out, T& lse) {
  const T gap = part_lse - lse;  // +inf when this is the first block seen
  const T share = 1 / (1 + std::exp(-gap));
  const T weight = share * scale;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = out[d] * (1 - share) + part[d] * weight;
  lse = gap > 0 ? part_lse + std::log1p(std::exp(-gap)) : lse + std::log1p(std::exp(gap));
}

/// Scores of query rows [begin, end) of one (batch, head) against local keys [key_begin, key_end).
struct Tile {
  int64_t begin, end;
  int64_t key_begin, key_end;
  bool masked;  // some query does not see some key
  int64_t queries() const { return end - begin; }
  int64_t keys() const { return key_end - key_begin; }
};

/// The keys that rows [begin, end) of sequence b see, local to the block.
class Visible {
 public:
  Visible(const AttentionBlock& block, int64_t b)
      : begin_(block.key_begin.as<int64_t>() + b * block.key_begin.stride[0]),
        end_(block.key_end.as<int64_t>() + b * block.key_end.stride[0]),
        first_(block.first_key),
        keys_(block.k.dim(1)) {}

  int64_t begin(int64_t row) const { return std::clamp<int64_t>(begin_[row] - first_, 0, keys_); }
  int64_t end(int64_t row) const {
    return std::clamp<int64_t>(end_[row] - first_, begin(row), keys_);
  }

  /// Smallest interval that holds what any of the rows sees; empty when none sees anything.
  std::pair<int64_t, int64_t> hull(int64_t row_begin, int64_t row_end) const {
    int64_t low = keys_, high = 0;
    for (int64_t r = row_begin; r < row_end; ++r) {
      if (begin(r) == end(r)) continue;
      low = std::min(low, begin(r));
      high = std::max(high, end(r));
    }
    return {std::min(low, high), high};
  }

  bool sees(int64_t row, const Tile& tile) const {
    return std::max(begin(row), tile.key_begin) < std::min(end(row), tile.key_end);
  }

  /// Whether every row of the tile sees all its keys.
  bool all_see(const Tile& tile) const {
    for (int64_t r = tile.begin; r < tile.end; ++r) {
      if (begin(r) > tile.key_begin || end(r) < tile.key_end) return false;
    }
    return true;
  }

  /// Writes `hidden` over what row does not see of the tile.
  template <class T>
  void mask(const Tile& tile, int64_t row, T* scores, T hidden) const {
    const int64_t from = std::clamp(begin(row), tile.key_begin, tile.key_end);
    const int64_t to = std::clamp(end(row), from, tile.key_end);
    std::fill(scores, scores + (from - tile.key_begin), hidden);
    std::fill(scores + (to - tile.key_begin), scores + tile.keys(), hidden);
  }

 private:
  const int64_t* begin_;
  const int64_t* end_;
  int64_t first_;
  int64_t keys_;
};

/// Calls f for the parts of a tile that queries see: the tile itself when all see all of it,
/// otherwise stripes of it, each cut to the keys that any of its queries sees.
template <class F>
void for_stripes(const Visible& visible, Tile tile, F&& f) {
  if (visible.all_see(tile)) return f(tile);
  for (int64_t begin = tile.begin; begin < tile.end; begin += kStripe) {
    const int64_t end = std::min(begin + kStripe, tile.end);
    const auto [low, high] = visible.hull(begin, end);
    Tile stripe{begin, end, std::max(low, tile.key_begin), std::min(high, tile.key_end), false};
    if (stripe.key_begin >= stripe.key_end) continue;
    stripe.masked = !visible.all_see(stripe);
    f(stripe);
  }
}

/// Calls f(tile) for tiles that together hold all that any query sees, queries outermost.
template <class BeginRows, class F, class EndRows>
void for_tiles(const Visible& visible, int64_t queries, BeginRows&& begin_rows, F&& f,
               EndRows&& end_rows) {
  for (int64_t begin = 0; begin < queries; begin += kQueryTile) {
    const int64_t end = std::min(begin + kQueryTile, queries);
    const auto [low, high] = visible.hull(begin, end);
    if (low == high) continue;
    begin_rows(begin, end);
    for (int64_t key = low; key < high; key += kKeyTile) {
      for_stripes(visible, Tile{begin, end, key, std::min(key + kKeyTile, high), false}, f);
    }
    end_rows(begin, end);
  }
}

/// scores[queries, keys] = scale q k^T, -inf where hidden.
template <class T>
void masked_scores(const Tile& tile, const Rows<T>& q, const Rows<T>& k, int64_t head_dim, T scale,
                   const Visible& visible, T* scores) {
  gemm(Gemm<T>{.transpose_a = false,
               .transpose_b = true,
               .m = tile.queries(),
               .n = tile.keys(),
               .k = head_dim,
               .alpha = scale,
               .a = q.row(tile.begin),
               .lda = q.step,
               .b = k.row(tile.key_begin),
               .ldb = k.step,
               .beta = 0,
               .c = scores,
               .ldc = tile.keys()});
  if (!tile.masked) return;
  for (int64_t r = tile.begin; r < tile.end; ++r) {
    visible.mask<T>(tile, r, scores + (r - tile.begin) * tile.keys(), -INFINITY);
  }
}

/// Online softmax over the key tiles of one query tile (unnormalised output, maximum, sum).
template <class T>
struct SoftmaxTile {
  T* scores;  // [kQueryTile, kKeyTile]
  T* out;     // [kQueryTile, D]
  T* most;    // [kQueryTile]
  T* sum;     // [kQueryTile]
  int64_t head_dim;
  int64_t first = 0;  // query of row 0

  SoftmaxTile(const Tensor& scratch, int64_t dim) : head_dim(dim) {
    scores = reinterpret_cast<T*>(scratch.as<uint8_t>());
    out = scores + 2 * kQueryTile * kKeyTile;
    most = out + kQueryTile * head_dim;
    sum = most + kQueryTile;
  }

  void clear(int64_t first_query) {
    first = first_query;
    std::fill_n(out, kQueryTile * head_dim, T(0));
    std::fill_n(most, kQueryTile, T(-INFINITY));
    std::fill_n(sum, kQueryTile, T(0));
  }

  /// Scores become probabilities relative to the running maximum; out is rescaled to it.
  void absorb(const Tile& tile, const Rows<T>& v, const Visible& visible) {
    T* tile_out = out + (tile.begin - first) * head_dim;
    for (int64_t query = tile.begin; query < tile.end; ++query) {
      T* row = scores + (query - tile.begin) * tile.keys();
      if (tile.masked && !visible.sees(query, tile)) {  // all hidden; no maximum to go by
        std::fill_n(row, tile.keys(), T(0));
        continue;
      }
      const int64_t r = query - first;
      const T tile_most = max_of<T>(tile.keys(), [&](int64_t j) { return row[j]; });
      const T new_most = std::max(most[r], tile_most);
      const T correction = cpu::exp(most[r] - new_most);
      const auto turn = [&](int64_t j) { return row[j] = cpu::exp(row[j] - new_most); };
      sum[r] = sum[r] * correction + sum_of<T>(tile.keys(), turn);
      for (int64_t d = 0; d < head_dim; ++d) out[r * head_dim + d] *= correction;
      most[r] = new_most;
    }
    gemm(Gemm<T>{.transpose_a = false,
                 .transpose_b = false,
                 .m = tile.queries(),
                 .n = head_dim,
                 .k = tile.keys(),
                 .alpha = 1,
                 .a = scores,
                 .lda = tile.keys(),
                 .b = v.row(tile.key_begin),
                 .ldb = v.step,
                 .beta = 1,
                 .c = tile_out,
                 .ldc = head_dim});
  }

  /// Merges a query's row into the running normalised (out, lse).
  void merge(int64_t query, T* total_out, T& total_lse) const {
    const int64_t r = query - first;
    if (sum[r] == 0) return;
    merge_row(head_dim, out + r * head_dim, 1 / sum[r], most[r] + std::log(sum[r]), total_out,
              total_lse);
  }
};

template <class T>
void forward(const AttentionForwardArgs& args) {
  const AttentionBlock& block = args.block;
  const int64_t heads = block.q.dim(2), group = heads / block.k.dim(2);
  const int64_t queries = block.q.dim(1), head_dim = block.q.dim(3);
  SoftmaxTile<T> softmax(args.scratch, head_dim);
  for (int64_t b = 0; b < block.q.dim(0); ++b) {
    const Visible visible(block, b);
    for (int64_t h = 0; h < heads; ++h) {
      const Rows<T> q(block.q, b, h), k(block.k, b, h / group), v(block.v, b, h / group);
      const Rows<T> out(args.out, b, h);
      T* lse = row_numbers<T>(args.lse, b, h);
      for_tiles(
          visible, queries, [&](int64_t begin, int64_t) { softmax.clear(begin); },
          [&](const Tile& tile) {
            masked_scores<T>(tile, q, k, head_dim, static_cast<T>(block.scale), visible,
                             softmax.scores);
            softmax.absorb(tile, v, visible);
          },
          [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) softmax.merge(r, out.row(r), lse[r]);
          });
    }
  }
}

/// Scores become P = exp(score - lse), dprobs become dscores = P (dprobs - delta).
template <class T>
void probabilities_and_gradient(const Tile& tile, const T* lse, const T* delta, T* probs,
                                T* dscores) {
  for (int64_t r = 0; r < tile.queries(); ++r) {
    T* __restrict p = probs + r * tile.keys();
    T* __restrict ds = dscores + r * tile.keys();
    const T row_lse = lse[tile.begin + r];
    const T row_delta = delta[tile.begin + r];
    if (row_lse == -INFINITY) {  // a query that sees nothing anywhere
      std::fill_n(p, tile.keys(), T(0));
      std::fill_n(ds, tile.keys(), T(0));
      continue;
    }
    for (int64_t j = 0; j < tile.keys(); ++j) {
      p[j] = cpu::exp(p[j] - row_lse);
      ds[j] = p[j] * (ds[j] - row_delta);
    }
  }
}

template <class T>
void backward(const AttentionBackwardArgs& args) {
  const AttentionBlock& block = args.block;
  const int64_t heads = block.q.dim(2), group = heads / block.k.dim(2);
  const int64_t queries = block.q.dim(1), head_dim = block.q.dim(3);
  const T scale = static_cast<T>(block.scale);
  T* probs = reinterpret_cast<T*>(args.scratch.as<uint8_t>());
  T* dscores = probs + kQueryTile * kKeyTile;
  const auto nothing = [](int64_t, int64_t) {};
  for (int64_t b = 0; b < block.q.dim(0); ++b) {
    const Visible visible(block, b);
    for (int64_t h = 0; h < heads; ++h) {
      const Rows<T> q(block.q, b, h), k(block.k, b, h / group), v(block.v, b, h / group);
      const Rows<T> dout(args.dout, b, h), dq(args.dq, b, h);
      const Rows<T> dk(args.dk, b, h / group), dv(args.dv, b, h / group);
      const T* lse = row_numbers<T>(args.lse, b, h);
      const T* delta = row_numbers<T>(args.delta, b, h);
      const auto one_tile = [&](const Tile& tile) {
        const int64_t m = tile.queries(), n = tile.keys();
        masked_scores<T>(tile, q, k, head_dim, scale, visible, probs);
        gemm(Gemm<T>{false, true, m, n, head_dim, 1, dout.row(tile.begin), dout.step,
                     v.row(tile.key_begin), v.step, 0, dscores, n});
        probabilities_and_gradient<T>(tile, lse, delta, probs, dscores);
        gemm(Gemm<T>{true, false, n, head_dim, m, 1, probs, n, dout.row(tile.begin), dout.step, 1,
                     dv.row(tile.key_begin), dv.step});
        gemm(Gemm<T>{false, false, m, head_dim, n, scale, dscores, n, k.row(tile.key_begin), k.step,
                     1, dq.row(tile.begin), dq.step});
        gemm(Gemm<T>{true, false, n, head_dim, m, scale, dscores, n, q.row(tile.begin), q.step, 1,
                     dk.row(tile.key_begin), dk.step});
      };
      for_tiles(visible, queries, nothing, one_tile, nothing);
    }
  }
}

}  // namespace

void attention_forward(const AttentionForwardArgs& args) {
  visit_float(args.block.q.dtype, [&](auto zero) { forward<decltype(zero)>(args); });
}

void attention_backward(const AttentionBackwardArgs& args) {
  visit_float(args.block.q.dtype, [&](auto zero) { backward<decltype(zero)>(args); });
}

void attention_merge(const AttentionMergeArgs& args) {
  visit_float(args.out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t heads = args.out.dim(2), queries = args.out.dim(1), dim = args.out.dim(3);
    for (int64_t b = 0; b < args.out.dim(0); ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        const Rows<T> out(args.out, b, h), part(args.part_out, b, h);
        T* lse = row_numbers<T>(args.lse, b, h);
        const T* part_lse = row_numbers<T>(args.part_lse, b, h);
        for (int64_t t = 0; t < queries; ++t) {
          if (part_lse[t] == -INFINITY) continue;
          merge_row(dim, part.row(t), T(1), part_lse[t], out.row(t), lse[t]);
        }
      }
    }
  });
}

void attention_delta(const AttentionDeltaArgs& args) {
  visit_float(args.dout.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t heads = args.dout.dim(2), queries = args.dout.dim(1), dim = args.dout.dim(3);
    for (int64_t b = 0; b < args.dout.dim(0); ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        const Rows<T> out(args.out, b, h), dout(args.dout, b, h);
        T* delta = row_numbers<T>(args.delta, b, h);
        for (int64_t t = 0; t < queries; ++t) {
          delta[t] = sum_of<T>(dim, [&](int64_t d) { return out.row(t)[d] * dout.row(t)[d]; });
        }
      }
    }
  });
}

}  // namespace cpu
}  // namespace weft
