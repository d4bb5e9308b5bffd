// Stands in for attention_hopper.cu and attention_hopper_backward.cu in a build without sm_90a.
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {

bool has_warpgroups() {
  return false;
}

void attention_forward_on_warpgroups(const AttentionForwardArgs&, Stream&) {
  WEFT_CHECK(false, "this build has no kernels for Hopper");
}

void attention_backward_on_warpgroups(const AttentionBackwardArgs&, Stream&) {
  WEFT_CHECK(false, "this build has no kernels for Hopper");
}

}  // namespace weft::cuda
