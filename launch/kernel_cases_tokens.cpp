// Products, and the kernels that treat every token alone.
#include <cmath>

#include "launch/kernel_cases.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/rope.hpp"

namespace weft {
namespace {

using enum Element;

// ---- The products of a projection y = x w^T of [T, C] to [T, F]

KernelUse forward_product(Workbench& w) {
  const int64_t T = w.sizes().product_tokens, C = w.sizes().width, F = w.sizes().hidden;
  return use_of(matmul,
                {.c = w.output("y", data, {T, F}),
                 .a = w.input(data, {T, C}),
                 .b = w.input(data, {F, C}),
                 .transpose_b = true},
                shape_text({T, F, C}));
}

KernelUse input_gradient_product(Workbench& w) {
  const int64_t T = w.sizes().product_tokens, C = w.sizes().width, F = w.sizes().hidden;
  return use_of(
      matmul,
      {.c = w.output("dx", data, {T, C}), .a = w.input(data, {T, F}), .b = w.input(data, {F, C})},
      shape_text({T, C, F}));
}

KernelUse weight_gradient_product(Workbench& w) {
  const int64_t T = w.sizes().product_tokens, C = w.sizes().width, F = w.sizes().hidden;
  return use_of(matmul,
                {.c = w.updated("dw", wide, {F, C}),
                 .a = w.input(data, {T, F}),
                 .b = w.input(data, {T, C}),
                 .transpose_a = true,
                 .accumulate = true},
                shape_text({F, C, T}));
}

// ---- Norm and MLP

KernelUse norm(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(rmsnorm_forward,
                {.y = w.output("y", data, {R, C}),
                 .rstd = w.output("rstd", wide, {R}),
                 .x = w.input(data, {R, C}),
                 .weight = w.input(data, {C})},
                shape_text({R, C}));
}

KernelUse norm_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(
      rmsnorm_backward,
      {.dx = w.updated("dx", data, {R, C}),
       .dweight = w.updated("dweight", wide, {C}),
       .dy = w.input(data, {R, C}),
       .x = w.input(data, {R, C}),
       .rstd = w.input(wide, {R}, [](double normal) { return 1 + 0.1 * std::tanh(normal); }),
       .weight = w.input(data, {C})},
      shape_text({R, C}));
}

KernelUse gate_and_up(Workbench& w) {
  const int64_t R = w.sizes().rows(), F = w.sizes().hidden;
  return use_of(swiglu_forward,
                {.y = w.output("y", data, {R, F}),
                 .gate = w.input(data, {R, F}),
                 .up = w.input(data, {R, F})},
                shape_text({R, F}));
}

KernelUse gate_and_up_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows(), F = w.sizes().hidden;
  return use_of(swiglu_backward,
                {.dgate = w.output("dgate", data, {R, F}),
                 .dup = w.output("dup", data, {R, F}),
                 .y = w.output("y", data, {R, F}),
                 .dy = w.input(data, {R, F}),
                 .gate = w.input(data, {R, F}),
                 .up = w.input(data, {R, F})},
                shape_text({R, F}));
}

// ---- Embedding, of the whole vocabulary or of the second of two ranks, which has most of the
// words

struct TableShard {
  int64_t begin, rows;
};
TableShard table_shard(const Workbench& w, bool cut) {
  const int64_t vocab = w.sizes().vocab, begin = cut ? vocab / 2 : 0;
  return {begin, vocab - begin};
}

/// Small ids often, as words of a language are; large ones where the table is cut.
Tensor tokens(Workbench& w, bool cut) {
  const int64_t vocab = w.sizes().vocab;
  return w.integers(DType::i32, {w.sizes().rows()}, [vocab, cut](int64_t i) {
    const double share = static_cast<double>(i * 7919 % 65521) / 65521;
    const auto id = static_cast<int64_t>(static_cast<double>(vocab) * std::pow(share, 6));
    return cut ? vocab - 1 - id : id;
  });
}

KernelUse lookup(Workbench& w, bool cut) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  const auto [begin, rows] = table_shard(w, cut);
  return use_of(embedding_forward,
                {.y = w.output("y", data, {R, C}),
                 .table = w.input(data, {rows, C}),
                 .tokens = tokens(w, cut),
                 .vocab_begin = begin,
                 .vocab = w.sizes().vocab},
                shape_text({R, C}));
}

KernelUse lookup_gradient(Workbench& w, bool cut) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  const auto [begin, rows] = table_shard(w, cut);
  return use_of(embedding_backward,
                {.dtable = w.updated("dtable", wide, {rows, C}),
                 .dy = w.input(data, {R, C}),
                 .tokens = tokens(w, cut),
                 .vocab_begin = begin},
                shape_text({R, C}));
}

// ---- Sums and copies

KernelUse sum(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(
      add,
      {.y = w.output("y", data, {R, C}), .a = w.input(data, {R, C}), .b = w.input(data, {R, C})},
      shape_text({R, C}));
}

KernelUse constant(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(fill, {.y = w.output("y", data, {R, C}), .value = 1.5}, shape_text({R, C}));
}

/// The right half of every row to the left half of another tensor's.
KernelUse strided_copy(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width, half = C / 2;
  const Tensor y = w.updated("y", data, {R, C}), x = w.input(data, {R, C});
  return use_of(copy, {.y = y.slice(1, 0, half), .x = x.slice(1, C - half, C)},
                shape_text({R, half}));
}

KernelUse conversion(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(convert, {.y = w.output("y", bf16, {R, C}), .x = w.input(wide, {R, C})},
                shape_text({R, C}));
}

// ---- Rotary embedding

KernelUse rotation_table(Workbench& w) {
  const int64_t B = w.sizes().batch, T = w.sizes().tokens, D = w.sizes().head_dim;
  return use_of(rope_table,
                {.cos = w.output("cos", wide, {B, T, D / 2}),
                 .sin = w.output("sin", wide, {B, T, D / 2}),
                 .positions = w.positions(T),
                 .frequencies = w.keep(rope_frequencies({}, D))},
                shape_text({B, T, D / 2}));
}

KernelUse rotation(Workbench& w) {
  const int64_t B = w.sizes().batch, T = w.sizes().tokens, H = w.sizes().heads;
  const int64_t D = w.sizes().head_dim;
  const Tensor cos = w.work(wide, {B, T, D / 2}), sin = w.work(wide, {B, T, D / 2});
  rope_table({cos, sin, w.positions(T), w.keep(rope_frequencies({}, D))}, w.stream());
  return use_of(rope, {.x = w.updated("x", data, {B, T, H, D}), .cos = cos, .sin = sin},
                shape_text({B, T, H, D}));
}

}  // namespace

std::vector<KernelCase> product_cases() {
  return {{"matmul", "y = x w^T", forward_product},
          {"matmul", "dx = dy w", input_gradient_product},
          {"matmul", "dw += dy^T x", weight_gradient_product}};
}

std::vector<KernelCase> token_cases() {
  return {
      {"rmsnorm_forward", "", norm},
      {"rmsnorm_backward", "", norm_gradient},
      {"swiglu_forward", "", gate_and_up},
      {"swiglu_backward", "", gate_and_up_gradient},
      {"embedding_forward", "", [](Workbench& w) { return lookup(w, false); }},
      {"embedding_forward", "half a table", [](Workbench& w) { return lookup(w, true); }},
      {"embedding_backward", "", [](Workbench& w) { return lookup_gradient(w, false); }},
      {"embedding_backward", "half a table", [](Workbench& w) { return lookup_gradient(w, true); }},
      {"add", "", sum},
      {"fill", "", constant},
      {"copy", "half rows", strided_copy},
      {"convert", "to bf16", conversion},
      {"rope_table", "", rotation_table},
      {"rope", "", rotation}};
}

}  // namespace weft
