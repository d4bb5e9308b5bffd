#include "src/core/cuda/range.hpp"

#include <nvtx3/nvToolsExt.h>

namespace weft::cuda {

NamedRange::NamedRange(const std::string& name) {
  nvtxRangePushA(name.c_str());
}

NamedRange::~NamedRange() {
  nvtxRangePop();
}

}  // namespace weft::cuda
