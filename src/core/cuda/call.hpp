// Names of CUDA errors in what WEFT_CALL reports.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "src/core/check.hpp"

namespace weft {

template <>
inline std::string status_text(const cudaError_t& status) {
  return concat(cudaGetErrorName(status), ": ", cudaGetErrorString(status));
}

}  // namespace weft
