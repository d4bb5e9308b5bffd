#include "src/kernels/attention.hpp"

#include <algorithm>

#include "src/kernels/cuda/attention_scratch.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check(const AttentionBlock& block) {
  const auto& [q, k, v, key_begin, key_end, first_key, scale, pairs, band, deterministic] = block;
  WEFT_CHECK(q.ndim == 4 && k.ndim == 4 && same_shape(k, v), q.text(), k.text(), v.text());
  WEFT_CHECK(q.dtype == k.dtype && q.dtype == v.dtype);
  WEFT_CHECK(k.dim(0) == q.dim(0) && k.dim(3) == q.dim(3), q.text(), k.text());
  WEFT_CHECK(k.dim(2) > 0 && q.dim(2) % k.dim(2) == 0, q.dim(2), " heads, ", k.dim(2), " kv heads");
  WEFT_CHECK(key_begin.has_shape({q.dim(0), q.dim(1)}) && same_shape(key_begin, key_end),
             key_begin.text());
}

void check_rows(const Tensor& rows, const Tensor& q) {
  WEFT_CHECK(rows.has_shape({q.dim(0), q.dim(2), q.dim(1)}) &&
                 rows.dtype == accumulator_of(q.dtype) && rows.stride[2] == 1,
             rows.text(), " for ", q.text());
}

/// On the meta device it is not known for which one the scratch was planned.
void check_scratch(const Tensor& scratch, const AttentionBlock& block) {
  const Tensor &q = block.q, &k = block.k;
  const AttentionSizes sizes{q.dim(0), q.dim(1), k.dim(1), q.dim(2), k.dim(2), q.dim(3)};
  WEFT_CHECK(scratch.dtype == DType::u8 &&
                 (q.device == Device::meta ||
                  scratch.nbytes() >= attention_scratch_bytes(q.device, q.dtype, sizes)),
             scratch.text(), " for ", q.text(), k.text());
}

/// What every pass over a block reads.
int64_t input_bytes(const AttentionBlock& block) {
  return block.q.nbytes() + block.k.nbytes() + block.v.nbytes() + block.key_begin.nbytes() +
         block.key_end.nbytes();
}

double dots(const AttentionBlock& block) {  // multiply-adds of one product over the seen pairs
  return 2.0 * block.q.dim(0) * block.q.dim(2) * block.q.dim(3) * block.pairs;
}

/// One of the products of a block of tiles [queries, keys]; `flops` as in Product.
enum class TileProduct { scores, rows, columns };  // [q, keys], [q, D], [keys, D]
Product product(TileProduct which, const AttentionBlock& block) {
  const int64_t queries = std::min(block.q.dim(1), kAttentionQueryTile);
  const int64_t keys = std::min(block.k.dim(1), kAttentionKeyTile);
  const int64_t head_dim = block.q.dim(3);
  const double flops = dots(block);
  switch (which) {
    case TileProduct::scores:
      return {.m = queries, .n = keys, .k = head_dim, .transpose_b = true, .flops = flops};
    case TileProduct::rows:
      return {.m = queries, .n = head_dim, .k = keys, .accumulate = true, .flops = flops};
    case TileProduct::columns:
      return {.m = keys,
              .n = head_dim,
              .k = queries,
              .transpose_a = true,
              .accumulate = true,
              .flops = flops};
  }
  return {};
}

}  // namespace

int64_t attention_scratch_bytes(Device device, DType dtype, const AttentionSizes& sizes) {
  WEFT_CHECK(device != Device::meta);
  if (device == Device::cpu) return attention_scratch_bytes(dtype, sizes.head_dim);
  return dtype == DType::bf16 ? cuda::AttentionScratch(nullptr, sizes).bytes : 0;
}

double causal_pairs(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  double pairs = 0;
  // Query i sees keys [k_begin, min(k_end, i + 1)): none, then a triangle, then all.
  const int64_t triangle_begin = std::clamp(k_begin, q_begin, q_end);
  const int64_t triangle_end = std::clamp(k_end, triangle_begin, q_end);
  const double first = static_cast<double>(triangle_begin - k_begin + 1);
  const double rows = static_cast<double>(triangle_end - triangle_begin);
  if (rows > 0) pairs += rows * (2 * first + rows - 1) / 2;
  pairs += static_cast<double>(q_end - triangle_end) *
           (triangle_end < q_end ? static_cast<double>(k_end - k_begin) : 0.0);
  return pairs;
}

double window_pairs(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end,
                    int64_t window) {
  // All keys up to i, less those up to i - window.
  return causal_pairs(q_begin, q_end, k_begin, k_end) -
         causal_pairs(q_begin - window, q_end - window, k_begin, k_end);
}

Cost cost(const AttentionForwardArgs& a) {
  return {2 * dots(a.block),
          static_cast<double>(input_bytes(a.block) + 2 * a.out.nbytes() + 2 * a.lse.nbytes())};
}

std::vector<Product> products(const AttentionForwardArgs& args) {
  return {product(TileProduct::scores, args.block), product(TileProduct::rows, args.block)};
}

void attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  check(args.block);
  check_rows(args.lse, args.block.q);
  WEFT_CHECK(same_shape(args.out, args.block.q) && args.out.dtype == args.lse.dtype,
             args.out.text());
  check_scratch(args.scratch, args.block);
  WEFT_DISPATCH(attention_forward, args, stream);
}

Cost cost(const AttentionMergeArgs& a) {
  return {3.0 * a.out.numel(), static_cast<double>(2 * a.out.nbytes() + a.part_out.nbytes() +
                                                   2 * a.lse.nbytes() + a.part_lse.nbytes())};
}

void attention_merge(const AttentionMergeArgs& args, Stream& stream) {
  check_rows(args.lse, args.out);
  check_rows(args.part_lse, args.part_out);
  WEFT_CHECK(same_shape(args.out, args.part_out) && args.out.dtype == args.part_out.dtype,
             args.out.text(), args.part_out.text());
  WEFT_DISPATCH(attention_merge, args, stream);
}

Cost cost(const AttentionDeltaArgs& a) {
  return {2.0 * a.out.numel(),
          static_cast<double>(a.out.nbytes() + a.dout.nbytes() + a.delta.nbytes())};
}

void attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  check_rows(args.delta, args.dout);
  WEFT_CHECK(same_shape(args.out, args.dout), args.out.text(), args.dout.text());
  WEFT_DISPATCH(attention_delta, args, stream);
}

Cost cost(const AttentionBackwardArgs& a) {
  return {
      5 * dots(a.block),
      static_cast<double>(input_bytes(a.block) + a.dout.nbytes() + a.lse.nbytes() +
                          a.delta.nbytes() + 2 * (a.dq.nbytes() + a.dk.nbytes() + a.dv.nbytes()))};
}

std::vector<Product> products(const AttentionBackwardArgs& args) {
  const Product scores = product(TileProduct::scores, args.block);
  const Product columns = product(TileProduct::columns, args.block);
  // q k^T, dout v^T; dq; dk, dv.
  return {scores, scores, product(TileProduct::rows, args.block), columns, columns};
}

void attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  check(args.block);
  check_rows(args.lse, args.block.q);
  check_rows(args.delta, args.block.q);
  WEFT_CHECK(same_shape(args.dq, args.block.q) && same_shape(args.dout, args.block.q));
  WEFT_CHECK(same_shape(args.dk, args.block.k) && same_shape(args.dv, args.block.v));
  for (const Tensor* t : {&args.dq, &args.dk, &args.dv}) {
    WEFT_CHECK(t->dtype == accumulator_of(args.block.q.dtype), t->text());
  }
  check_scratch(args.scratch, args.block);
  WEFT_DISPATCH(attention_backward, args, stream);
}

}  // namespace weft
