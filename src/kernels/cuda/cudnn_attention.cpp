#include "src/kernels/cuda/cudnn_attention.hpp"

#include <cudnn_frontend.h>

#include <compare>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/core/cuda/cuda_stream.hpp"
#include "src/core/handle.hpp"
#include "src/core/log.hpp"
#include "src/kernels/cuda/plan_cache.hpp"

namespace weft {

template <>
std::string status_text(const cudnnStatus_t& status) {
  return cudnnGetErrorString(status);
}

namespace cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using Mask = AttentionPiece::Mask;

/// Older ones have backward passes that go wrong (9.10) or were never tried.
constexpr size_t kOldestVersion = 91400;
/// Keys of a backward pass that is not told their number end on a multiple of this: the rest of the
/// last tile has made NaN (cuDNN up to 9.15.0, and later ones for very small log-sum-exps).
constexpr int64_t kKeyTile = 128;

using Library = Handle<cudnnHandle_t, cudnnDestroy>;

enum Uid : int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv, kQueries, kKeys };

/// Of a tensor [B, T, heads, D].
struct Layout {
  int64_t tokens, heads, batch_stride, token_stride, head_stride;
  auto operator<=>(const Layout&) const = default;

  static Layout of(const Tensor& t) {
    return {t.dim(1), t.dim(2), t.stride[0], t.stride[1], t.stride[2]};
  }
};

/// All that a plan depends on.
struct Shape {
  bool backward;
  int64_t batch, head_dim;
  Layout q, k, v, dout;  // everything else is contiguous
  float scale;
  Mask mask;
  int64_t window;
  auto operator<=>(const Shape&) const = default;
};

struct Plan {
  std::unique_ptr<Graph> graph;
  int64_t workspace = 0;  // bytes
  std::string refusal;    // why there is none
};

/// As cuDNN wants it: [B, heads, T, D] with any strides.
std::shared_ptr<Tensor_attributes> add(Graph& graph, Uid uid, const Shape& s, const Layout& l) {
  return graph.tensor(Tensor_attributes()
                          .set_uid(uid)
                          .set_dim({s.batch, l.heads, l.tokens, s.head_dim})
                          .set_stride({l.batch_stride, l.head_stride, l.token_stride, 1})
                          .set_data_type(fe::DataType_t::BFLOAT16));
}

Layout contiguous(const Layout& l, int64_t head_dim) {
  const int64_t row = l.heads * head_dim;
  return {l.tokens, l.heads, l.tokens * row, row, head_dim};
}

void set_rows(Tensor_attributes& t, const Shape& s) {  // [B, H, Tq]
  t.set_uid(kLse)
      .set_dim({s.batch, s.q.heads, s.q.tokens, 1})
      .set_stride({s.q.heads * s.q.tokens, s.q.tokens, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

void set_output(Tensor_attributes& t, Uid uid, const Shape& s, const Layout& like) {
  const Layout l = contiguous(like, s.head_dim);
  t.set_output(true)
      .set_uid(uid)
      .set_dim({s.batch, l.heads, l.tokens, s.head_dim})
      .set_stride({l.batch_stride, l.head_stride, l.token_stride, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
}

/// The mask in cuDNN's words. `Attributes`: of either direction, which have the same setters.
template <class Attributes>
void set_mask(Attributes& attributes, const Shape& s) {
  switch (s.mask) {
    case Mask::full:
      return;
    case Mask::causal:
      // The corners' diagonal; cuDNN's plain causal mask where both corners are on it.
      attributes.set_diagonal_alignment(s.q.tokens == s.k.tokens
                                            ? fe::DiagonalAlignment_t::TOP_LEFT
                                            : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
      attributes.set_diagonal_band_right_bound(0);
      if (s.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(s.window));
      return;
    case Mask::upper:  // a bound of n leaves the keys j > i - n
      attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT);
      attributes.set_diagonal_band_left_bound(1);
      return;
  }
}

bool needs_lengths(const Shape& s) {
  return s.backward && s.k.tokens % kKeyTile != 0;
}

void describe_forward(Graph& graph, const Shape& s) {
  auto attributes = fe::graph::SDPA_attributes()
                        .set_name("attention")
                        .set_generate_stats(true)
                        .set_attn_scale(s.scale)
                        .set_implementation(fe::AttentionImplementation_t::COMPOSITE);
  set_mask(attributes, s);
  const auto [out, lse] = graph.sdpa(add(graph, kQ, s, s.q), add(graph, kK, s, s.k),
                                     add(graph, kV, s, s.v), attributes);
  set_output(*out, kOut, s, s.q);
  set_rows(*lse, s);
  lse->set_output(true);
}

void describe_backward(Graph& graph, const Shape& s) {
  auto attributes =
      fe::graph::SDPA_backward_attributes().set_name("attention").set_attn_scale(s.scale);
  set_mask(attributes, s);
  if (needs_lengths(s)) {
    const auto lengths = [&](Uid uid) {
      return graph.tensor(Tensor_attributes()
                              .set_uid(uid)
                              .set_dim({s.batch, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_data_type(fe::DataType_t::INT32));
    };
    attributes.set_padding_mask(true)
        .set_seq_len_q(lengths(kQueries))
        .set_seq_len_kv(lengths(kKeys));
  }
  Tensor_attributes rows;
  set_rows(rows, s);
  const auto lse = graph.tensor(rows);
  const auto [dq, dk, dv] =
      graph.sdpa_backward(add(graph, kQ, s, s.q), add(graph, kK, s, s.k), add(graph, kV, s, s.v),
                          add(graph, kOut, s, contiguous(s.q, s.head_dim)),
                          add(graph, kDout, s, s.dout), lse, attributes);
  set_output(*dq, kDq, s, s.q);
  set_output(*dk, kDk, s, s.k);
  set_output(*dv, kDv, s, s.v);
}

std::string text(const Shape& s) {
  static constexpr const char* kMasks[] = {"full", "causal", "upper"};
  return concat(s.backward ? "backward" : "forward", " of ", s.batch, " x ", s.q.tokens,
                " queries, ", s.k.tokens, " keys, ", s.q.heads, " heads, ", s.k.heads,
                " kv heads of ", s.head_dim, ", ", kMasks[static_cast<int>(s.mask)],
                " mask, window ", s.window);
}

/// What cuDNN takes at all, whatever its version.
std::string refused_layout(const Shape& s) {
  constexpr int64_t kPack = 8;  // elements of 16 bytes
  if (s.head_dim % kPack != 0 || s.head_dim > 256) return concat("heads of ", s.head_dim);
  for (const Layout* l : {&s.q, &s.k, &s.v, &s.dout}) {
    if (l->batch_stride % kPack != 0 || l->token_stride % kPack != 0 ||
        l->head_stride % kPack != 0) {
      return "rows that do not start on 16 bytes";
    }
  }
  return {};
}

Plan make_plan(cudnnHandle_t library, const Shape& s) {
  Plan plan{.graph = std::make_unique<Graph>(), .refusal = refused_layout(s)};
  if (plan.refusal.empty()) {
    plan.graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    s.backward ? describe_backward(*plan.graph, s) : describe_forward(*plan.graph, s);
    fe::error_t status = plan.graph->build(library, {fe::HeurMode_t::A});
    if (status.is_good()) status = plan.graph->get_workspace_size(plan.workspace);
    if (status.is_bad()) plan.refusal = status.get_message();
  }
  if (!plan.refusal.empty()) {
    log::info(
        concat("cuDNN has no plan for the ", text(s), "; own kernels take it: ", plan.refusal));
  }
  return plan;
}

using Plans = PlanCache<Library, Shape, Plan>;

Plans& plans() {
  thread_local Plans mine = [] {
    Library library;
    WEFT_CALL(cudnnCreate(library.out()));
    return Plans(std::move(library));
  }();
  return mine;
}

Shape shape_of(const CudnnOperands& o, const Tensor* dout) {
  for (const Tensor* t : {&o.q, &o.k, &o.v}) {
    WEFT_CHECK(t->device == Device::cuda && t->dtype == DType::bf16 && t->numel() > 0, t->text());
  }
  const Layout q = Layout::of(o.q);
  return {.backward = dout != nullptr,
          .batch = o.q.dim(0),
          .head_dim = o.q.dim(3),
          .q = q,
          .k = Layout::of(o.k),
          .v = Layout::of(o.v),
          .dout = dout != nullptr ? Layout::of(*dout) : q,
          .scale = static_cast<float>(o.scale),
          .mask = o.mask,
          .window = o.window};
}

/// Why the plan cannot run on these; empty when it can.
std::string refused(const Plan& plan, std::initializer_list<const Tensor*> operands,
                    const Tensor& workspace) {
  if (!plan.refusal.empty()) return plan.refusal;
  if (plan.workspace > workspace.nbytes()) {
    return concat("a workspace of ", plan.workspace, " bytes, where ", workspace.nbytes(), " are");
  }
  for (const Tensor* t : operands) {
    if (reinterpret_cast<uintptr_t>(t->data) % 16 != 0) return "memory not aligned to 16 bytes";
  }
  return {};
}

void run(const Plans& cached, const Plan& plan, std::unordered_map<int64_t, void*> tensors,
         const Tensor& workspace, Stream& stream) {
  WEFT_CALL(cudnnSetStream(cached.library(), native(stream)));
  fe::error_t status = plan.graph->execute(cached.library(), tensors, workspace.data);
  WEFT_CHECK(status.is_good(), "cuDNN: ", status.get_message());
}

/// Why no plan is asked for; empty in a library that is new enough.
std::string refused_version() {
  if (cudnnGetVersion() >= kOldestVersion) return {};
  return concat(cudnn_version(), " is too old, 9.14 is the oldest");
}

}  // namespace

bool has_cudnn() {
  return true;
}

std::string cudnn_version() {
  const size_t version = cudnnGetVersion();
  return concat("cuDNN ", version / 10000, ".", version / 100 % 100, ".", version % 100,
                ", front end ", CUDNN_FRONTEND_MAJOR_VERSION, ".", CUDNN_FRONTEND_MINOR_VERSION,
                ".", CUDNN_FRONTEND_PATCH_VERSION);
}

std::string cudnn_attention_forward(const CudnnOperands& operands, const Tensor& out,
                                    const Tensor& lse, const Tensor& workspace, Stream& stream) {
  if (std::string why = refused_version(); !why.empty()) return why;
  native(stream);  // its GPU is the thread's from here on
  Plans& cached = plans();
  const auto& [q, k, v, scale, mask, window] = operands;
  const Plan& plan = cached.of(shape_of(operands, nullptr), make_plan);
  if (std::string why = refused(plan, {&q, &k, &v, &out, &lse}, workspace); !why.empty()) {
    return why;
  }
  run(cached, plan, {{kQ, q.data}, {kK, k.data}, {kV, v.data}, {kOut, out.data}, {kLse, lse.data}},
      workspace, stream);
  return {};
}

std::string cudnn_attention_backward(const CudnnOperands& operands, const CudnnGradients& g,
                                     const Tensor& workspace, Stream& stream) {
  if (std::string why = refused_version(); !why.empty()) return why;
  native(stream);
  Plans& cached = plans();
  const auto& [q, k, v, scale, mask, window] = operands;
  const Shape shape = shape_of(operands, &g.dout);
  const Plan& plan = cached.of(shape, make_plan);
  if (std::string why =
          refused(plan, {&q, &k, &v, &g.out, &g.dout, &g.lse, &g.dq, &g.dk, &g.dv}, workspace);
      !why.empty()) {
    return why;
  }
  std::unordered_map<int64_t, void*> tensors{
      {kQ, q.data},       {kK, k.data},       {kV, v.data},
      {kOut, g.out.data}, {kLse, g.lse.data}, {kDout, g.dout.data},
      {kDq, g.dq.data},   {kDk, g.dk.data},   {kDv, g.dv.data}};
  if (needs_lengths(shape)) {
    tensors[kQueries] = g.lengths.data;
    tensors[kKeys] = g.lengths.data + shape.batch * sizeof(int32_t);
  }
  run(cached, plan, std::move(tensors), workspace, stream);
  return {};
}

}  // namespace cuda
}  // namespace weft
