// Stands in for the CUDA twins in a build without CUDA. No stream of such a build is on CUDA, so
// nothing here is reached.
#include "src/kernels/attention.hpp"
#include "src/kernels/decay_gates.hpp"
#include "src/kernels/feature_map.hpp"
#include "src/kernels/gated_norm.hpp"
#include "src/kernels/loss.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/rope.hpp"
#include "src/kernels/short_convolution.hpp"
#include "src/kernels/softmax.hpp"
#include "src/kernels/state_combine.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft::cuda {
namespace {

[[noreturn]] void refuse(const char* kernel) {
  throw Error(ExitCode::usage, concat(kernel, ": this build has no CUDA"));
}

}  // namespace

void attention_forward(const AttentionForwardArgs&, Stream&) {
  refuse("attention_forward");
}
void attention_merge(const AttentionMergeArgs&, Stream&) {
  refuse("attention_merge");
}
void attention_delta(const AttentionDeltaArgs&, Stream&) {
  refuse("attention_delta");
}
void attention_backward(const AttentionBackwardArgs&, Stream&) {
  refuse("attention_backward");
}
void cross_entropy_shard(const CrossEntropyShardArgs&, Stream&) {
  refuse("cross_entropy_shard");
}
void cross_entropy_combine(const CrossEntropyCombineArgs&, Stream&) {
  refuse("cross_entropy_combine");
}
void matmul(const MatmulArgs&, Stream&) {
  refuse("matmul");
}
void begin_norm(const BeginNormArgs&, Stream&) {
  refuse("begin_norm");
}
void squared_sum(const SquaredSumArgs&, Stream&) {
  refuse("squared_sum");
}
void adamw(const AdamWArgs&, Stream&) {
  refuse("adamw");
}
void nesterov(const NesterovArgs&, Stream&) {
  refuse("nesterov");
}
void decayed_step(const DecayedStepArgs&, Stream&) {
  refuse("decayed_step");
}
void normalize(const NormalizeArgs&, Stream&) {
  refuse("normalize");
}
void add_scaled(const AddScaledArgs&, Stream&) {
  refuse("add_scaled");
}
void rmsnorm_forward(const RmsNormArgs&, Stream&) {
  refuse("rmsnorm_forward");
}
void rmsnorm_backward(const RmsNormGradArgs&, Stream&) {
  refuse("rmsnorm_backward");
}
void swiglu_forward(const SwigluArgs&, Stream&) {
  refuse("swiglu_forward");
}
void swiglu_backward(const SwigluGradArgs&, Stream&) {
  refuse("swiglu_backward");
}
void embedding_forward(const EmbeddingArgs&, Stream&) {
  refuse("embedding_forward");
}
void embedding_backward(const EmbeddingGradArgs&, Stream&) {
  refuse("embedding_backward");
}
void add(const AddArgs&, Stream&) {
  refuse("add");
}
void fill(const FillArgs&, Stream&) {
  refuse("fill");
}
void copy(const CopyArgs&, Stream&) {
  refuse("copy");
}
void convert(const ConvertArgs&, Stream&) {
  refuse("convert");
}
void rope_table(const RopeTableArgs&, Stream&) {
  refuse("rope_table");
}
void rope(const RopeArgs&, Stream&) {
  refuse("rope");
}
void softmax_forward(const SoftmaxArgs&, Stream&) {
  refuse("softmax_forward");
}
void softmax_backward(const SoftmaxGradArgs&, Stream&) {
  refuse("softmax_backward");
}
void state_combine(const StateCombineArgs&, Stream&) {
  refuse("state_combine");
}
void fixed_decay(const FixedDecayArgs&, Stream&) {
  refuse("fixed_decay");
}
void sigmoid_decay_forward(const SigmoidDecayArgs&, Stream&) {
  refuse("sigmoid_decay_forward");
}
void sigmoid_decay_backward(const SigmoidDecayGradArgs&, Stream&) {
  refuse("sigmoid_decay_backward");
}
void delta_gates_forward(const DeltaGatesArgs&, Stream&) {
  refuse("delta_gates_forward");
}
void delta_gates_backward(const DeltaGatesGradArgs&, Stream&) {
  refuse("delta_gates_backward");
}
void silu_forward(const SiluArgs&, Stream&) {
  refuse("silu_forward");
}
void silu_backward(const SiluGradArgs&, Stream&) {
  refuse("silu_backward");
}
void feature_map_forward(const FeatureMapArgs&, Stream&) {
  refuse("feature_map_forward");
}
void feature_map_backward(const FeatureMapGradArgs&, Stream&) {
  refuse("feature_map_backward");
}
void unit_norm_forward(const UnitNormArgs&, Stream&) {
  refuse("unit_norm_forward");
}
void unit_norm_backward(const UnitNormGradArgs&, Stream&) {
  refuse("unit_norm_backward");
}
void gated_norm_forward(const GatedNormArgs&, Stream&) {
  refuse("gated_norm_forward");
}
void gated_norm_backward(const GatedNormGradArgs&, Stream&) {
  refuse("gated_norm_backward");
}
void row_squares(const RowSquaresArgs&, Stream&) {
  refuse("row_squares");
}
void gated_norm_along(const GatedNormAlongArgs&, Stream&) {
  refuse("gated_norm_along");
}
void short_convolution_forward(const ShortConvolutionArgs&, Stream&) {
  refuse("short_convolution_forward");
}
void short_convolution_backward(const ShortConvolutionGradArgs&, Stream&) {
  refuse("short_convolution_backward");
}
void state_summarize(const StateSummaryArgs&, Stream&) {
  refuse("state_summarize");
}
void state_local(const StateLocalArgs&, Stream&) {
  refuse("state_local");
}
void state_apply(const StateApplyArgs&, Stream&) {
  refuse("state_apply");
}
void state_cosummarize(const StateCosummaryArgs&, Stream&) {
  refuse("state_cosummarize");
}
void state_backward_local(const StateBackwardLocalArgs&, Stream&) {
  refuse("state_backward_local");
}
void state_backward_apply(const StateBackwardApplyArgs&, Stream&) {
  refuse("state_backward_apply");
}

}  // namespace weft::cuda
