// Stands in for cudnn_attention.cpp in a build without cuDNN.
#include "src/kernels/cuda/cudnn_attention.hpp"

namespace weft::cuda {
namespace {

constexpr const char* kAbsent = "this build has no cuDNN";

}  // namespace

bool has_cudnn() {
  return false;
}

std::string cudnn_version() {
  return {};
}

std::string cudnn_attention_forward(const CudnnOperands&, const Tensor&, const Tensor&,
                                    const Tensor&, Stream&) {
  return kAbsent;
}

std::string cudnn_attention_backward(const CudnnOperands&, const CudnnGradients&, const Tensor&,
                                     Stream&) {
  return kAbsent;
}

}  // namespace weft::cuda
