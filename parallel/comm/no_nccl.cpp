// Stands in for nccl.cpp in a build without NCCL.
#include "parallel/comm/nccl.hpp"

namespace weft {

bool has_nccl() {
  return false;
}

std::unique_ptr<World> make_nccl_world(World&, int) {
  throw Error(ExitCode::usage,
              "this build has no NCCL; configure with WEFT_CUDA=ON where NCCL is installed");
}

}  // namespace weft
