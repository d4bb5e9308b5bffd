#include "src/kernels/cuda/engine_map.hpp"

#include <cuda_runtime_api.h>

#include "src/core/cuda/call.hpp"

namespace weft::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// Of the driver, which the program is not linked with.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  WEFT_CALL(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                             cudaEnableDefault, &result));
  WEFT_CHECK(result == cudaDriverEntryPointSuccess, "this driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap engine_map(const Tensor& heads, int rows) {
  static const Encode encode = find_encode();
  constexpr int kDims = 4;
  constexpr int64_t kAlignment = 16;
  const int order[kDims] = {3, 2, 1, 0};
  cuuint64_t size[kDims], stride[kDims - 1];
  for (int d = 0; d < kDims; ++d) {
    size[d] = static_cast<cuuint64_t>(heads.dim(order[d]));
    if (d == 0) continue;
    // The stride of a dimension of one is never used, and may be anything.
    const int64_t elements = size[d] > 1 ? heads.stride[order[d]] : heads.dim(3);
    const int64_t bytes = elements * size_of(heads.dtype);
    stride[d - 1] = static_cast<cuuint64_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
  }
  const cuuint32_t box[kDims] = {64, 1, static_cast<cuuint32_t>(rows), 1};
  const cuuint32_t step[kDims] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kDims, heads.data, size, stride, box, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEFT_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: ", static_cast<int>(result), " for ",
             heads.text());
  return map;
}

}  // namespace weft::cuda
