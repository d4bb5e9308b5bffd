// Blocks of softmax attention, and the softmax over whole rows of scores.
#include <algorithm>
#include <cmath>

#include "launch/kernel_cases.hpp"
#include "src/kernels/attention.hpp"
#include "src/kernels/softmax.hpp"

namespace weft {
namespace {

using enum Element;

/// What tells cases of attention from one another: whether the host knows the mask, which lets a
/// GPU ask a library in bf16, how wide the heads are, and whether only one order of sums will do.
struct Form {
  bool banded = false;
  bool half = false;  // heads half as wide, twice as many of queries, half as many of keys
  bool deterministic = false;
};

/// Queries against keys: one causal document, or a block whose keys begin before the queries and
/// end before the last of them, in documents where the mask is not a band.
struct Block {
  static constexpr int64_t kFirstKey = 20, kFirstQuery = 30;

  Block(Workbench& bench, Form of)
      : w(bench),
        form(of),
        B(w.sizes().batch),
        T(w.sizes().attention_tokens),
        H(of.half ? 2 * w.sizes().heads : w.sizes().heads),
        G(of.half ? w.sizes().kv_heads / 2 : w.sizes().kv_heads),
        D(of.half ? w.sizes().head_dim / 2 : w.sizes().head_dim) {}

  AttentionBlock inputs() const {
    const bool inside = w.sizes().documents;
    const int64_t first = inside ? kFirstQuery : 0;
    const auto begin = [&](int64_t i) {
      return form.banded ? 0 : first + w.document_begin(i / T, i % T);
    };
    const auto end = [&](int64_t i) { return first + i % T + 1; };
    AttentionBlock block{.q = w.input(data, {B, T, H, D}),
                         .k = w.input(data, {B, T, G, D}),
                         .v = w.input(data, {B, T, G, D}),
                         .key_begin = w.integers(DType::i64, {B, T}, begin),
                         .key_end = w.integers(DType::i64, {B, T}, end),
                         .first_key = inside ? kFirstKey : 0,
                         .scale = 1 / std::sqrt(static_cast<double>(D)),
                         .pairs = causal_pairs(0, T, 0, T),
                         .deterministic = form.deterministic};
    if (form.banded) block.band = BandMask{.first_query = first, .causal = true};
    return block;
  }
  Tensor scratch() const {
    return w.scratch(attention_scratch_bytes(w.device(), w.stored(data), {B, T, T, H, G, D}));
  }
  std::string shape() const { return shape_text({B, T, H, D}); }

  Workbench& w;
  Form form;
  int64_t B, T, H, G, D;
};

/// What some other block has left.
Tensor earlier_lse(Workbench& w, const Block& b) {
  return w.updated("lse", wide, {b.B, b.H, b.T}, [](double normal) { return 2 + 0.5 * normal; });
}

KernelUse forward(Workbench& w, Form form) {
  const Block b(w, form);
  return use_of(attention_forward,
                {.out = w.updated("out", wide, {b.B, b.T, b.H, b.D}),
                 .lse = earlier_lse(w, b),
                 .scratch = b.scratch(),
                 .block = b.inputs()},
                b.shape());
}

KernelUse merge(Workbench& w) {
  const Block b(w, {});
  return use_of(
      attention_merge,
      {.out = w.updated("out", wide, {b.B, b.T, b.H, b.D}),
       .lse = earlier_lse(w, b),
       .part_out = w.input(wide, {b.B, b.T, b.H, b.D}),
       .part_lse = w.input(wide, {b.B, b.H, b.T}, [](double normal) { return 2 + 0.5 * normal; })},
      b.shape());
}

KernelUse delta(Workbench& w) {
  const Block b(w, {});
  return use_of(attention_delta,
                {.delta = w.output("delta", wide, {b.B, b.H, b.T}),
                 .out = w.input(wide, {b.B, b.T, b.H, b.D}),
                 .dout = w.input(data, {b.B, b.T, b.H, b.D})},
                b.shape());
}

KernelUse backward(Workbench& w, Form form) {
  const Block b(w, form);
  const AttentionBlock block = b.inputs();
  const Tensor scratch = b.scratch(), dout = w.input(data, {b.B, b.T, b.H, b.D});
  const Tensor out = w.input(wide, {b.B, b.T, b.H, b.D}, [](double) { return 0.0; });
  const Tensor lse = w.input(wide, {b.B, b.H, b.T}, [](double) { return -INFINITY; });
  const Tensor rows = w.work(wide, {b.B, b.H, b.T});
  attention_forward({out, lse, scratch, block}, w.stream());
  attention_delta({rows, out, dout}, w.stream());
  const auto small = [](double normal) { return 0.1 * normal; };
  return use_of(attention_backward,
                {.dq = w.updated("dq", wide, {b.B, b.T, b.H, b.D}, small),
                 .dk = w.updated("dk", wide, {b.B, b.T, b.G, b.D}, small),
                 .dv = w.updated("dv", wide, {b.B, b.T, b.G, b.D}, small),
                 .scratch = scratch,
                 .dout = dout,
                 .lse = lse,
                 .delta = rows,
                 .block = block},
                b.shape());
}

// ---- Rows of scores

/// The last eighth of the tokens against all keys.
struct ScoreRows {
  explicit ScoreRows(Workbench& bench)
      : w(bench),
        B(w.sizes().batch),
        H(w.sizes().heads),
        T((w.sizes().attention_tokens + 7) / 8),
        N(w.sizes().attention_tokens) {}

  Tensor seen(bool end) const {
    return w.integers(DType::i64, {B, T}, [this, end](int64_t i) {
      const int64_t t = N - T + i % T;
      return end ? t + 1 : std::max<int64_t>(0, w.document_begin(i / T, t));
    });
  }
  std::string shape() const { return shape_text({B, H, T, N}); }

  Workbench& w;
  int64_t B, H, T, N;
};

KernelUse softmax(Workbench& w) {
  const ScoreRows r(w);
  return use_of(softmax_forward,
                {.scores = w.updated("probs", wide, {r.B, r.H, r.T, r.N}),
                 .lse = w.output("lse", wide, {r.B, r.H, r.T}),
                 .key_begin = r.seen(false),
                 .key_end = r.seen(true)},
                r.shape());
}

KernelUse softmax_gradient(Workbench& w) {
  const ScoreRows r(w);
  const double rows = std::log(static_cast<double>(r.N));
  return use_of(
      softmax_backward,
      {.probs = w.updated("probs", wide, {r.B, r.H, r.T, r.N}),
       .dscores = w.updated("dscores", wide, {r.B, r.H, r.T, r.N}),
       .lse = w.input(wide, {r.B, r.H, r.T}, [rows](double normal) { return rows + 0.1 * normal; }),
       .delta = w.input(wide, {r.B, r.H, r.T}),
       .key_begin = r.seen(false),
       .key_end = r.seen(true)},
      r.shape());
}

}  // namespace

std::vector<KernelCase> attention_cases() {
  constexpr std::pair<const char*, Form> kForms[] = {
      {"intervals", {}},
      {"causal", {.banded = true}},
      {"causal, deterministic", {.banded = true, .deterministic = true}},
      {"intervals, D / 2", {.half = true}},
      {"causal, D / 2", {.banded = true, .half = true}}};
  std::vector<KernelCase> cases;
  for (const auto& [name, form] : kForms) {
    if (!form.deterministic) {  // forward is that anyway
      cases.push_back(
          {"attention_forward", name, [f = form](Workbench& w) { return forward(w, f); }});
    }
    cases.push_back(
        {"attention_backward", name, [f = form](Workbench& w) { return backward(w, f); }});
  }
  cases.push_back({"attention_merge", "", merge});
  cases.push_back({"attention_delta", "", delta});
  cases.push_back({"softmax_forward", "", softmax});
  cases.push_back({"softmax_backward", "", softmax_gradient});
  return cases;
}

}  // namespace weft
