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

constexpr int kDims = 4;

/// Sizes and boxes in elements, strides of all dimensions but the innermost in bytes.
struct Layout {
  CUtensorMapDataType type;
  CUtensorMapSwizzle swizzle;
  cuuint64_t size[kDims], stride[kDims - 1];
  cuuint32_t box[kDims];
};

CUtensorMap encode(void* data, const Layout& layout) {
  static const Encode encode = find_encode();
  const cuuint32_t step[kDims] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, layout.type, kDims, data, layout.size, layout.stride, layout.box, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, layout.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEFT_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: ", static_cast<int>(result));
  return map;
}

}  // namespace

CUtensorMap engine_map(const Tensor& heads, int rows) {
  constexpr int64_t kAlignment = 16;
  const int order[kDims] = {3, 2, 1, 0};
  Layout layout{.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                .size = {},
                .stride = {},
                .box = {64, 1, static_cast<cuuint32_t>(rows), 1}};
  for (int d = 0; d < kDims; ++d) {
    layout.size[d] = static_cast<cuuint64_t>(heads.dim(order[d]));
    if (d == 0) continue;
    // The stride of a dimension of one is never used, and may be anything.
    const int64_t elements = layout.size[d] > 1 ? heads.stride[order[d]] : heads.dim(3);
    const int64_t bytes = elements * size_of(heads.dtype);
    layout.stride[d - 1] =
        static_cast<cuuint64_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
  }
  return encode(heads.data, layout);
}

CUtensorMap record_map(void* records, int64_t count, int bytes) {
  // A box has at most 256 elements along a dimension: a record is two halves of 4-byte words.
  const auto record = static_cast<cuuint64_t>(bytes), half = record / 2;
  const auto records_bytes = record * static_cast<cuuint64_t>(count);
  return encode(records, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT32,
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE,
                          .size = {half / 4, 2, static_cast<cuuint64_t>(count), 1},
                          .stride = {half, record, records_bytes},
                          .box = {static_cast<cuuint32_t>(half / 4), 2, 1, 1}});
}

}  // namespace weft::cuda
