// Stands in for the CUDA twins in a build without CUDA. No stream of such a build is on CUDA, so
// nothing here is reached.
#include "src/kernels/attention.hpp"
#include "src/kernels/loss.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/rope.hpp"
#include "src/kernels/softmax.hpp"
#include "src/kernels/state_combine.hpp"

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
void cross_entropy(const CrossEntropyArgs&, Stream&) {
  refuse("cross_entropy");
}
void matmul(const MatmulArgs&, Stream&) {
  refuse("matmul");
}
void squared_sum(const SquaredSumArgs&, Stream&) {
  refuse("squared_sum");
}
void adamw(const AdamWArgs&, Stream&) {
  refuse("adamw");
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

}  // namespace weft::cuda
