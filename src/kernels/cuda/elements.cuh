// Element types of the CUDA twins, 16-byte accesses, and launch sizes.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "src/core/cuda/cuda_stream.hpp"
#include "src/tensor/tensor.hpp"

namespace weft::cuda {

using bf16 = __nv_bfloat16;

template <class T>
constexpr DType element_dtype() {
  if constexpr (std::is_same_v<T, bf16>) {
    return DType::bf16;
  } else {
    return dtype_of<T>();
  }
}

/// The elements, typed; as Tensor::as, and bf16 too.
template <class T>
T* elements(const Tensor& t) {
  WEFT_CHECK(t.dtype == element_dtype<T>(), "a ", name(t.dtype), " tensor read as ",
             name(element_dtype<T>()));
  WEFT_CHECK(t.device == Device::cuda, t.text(), " is on ", name(t.device));
  return reinterpret_cast<T*>(t.data);
}

/// Calls `f` with a value of the C++ type of a dtype the GPU computes in: f32, or bf16 with f32
/// arithmetic.
template <class F>
auto visit_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    default:
      break;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no CUDA arithmetic in ", name(dtype)));
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

/// Elements of one 16-byte access.
template <class T>
constexpr int kPack = 16 / sizeof(T);

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

/// N elements from p, one access; p is aligned to it.
template <int N, class T>
__device__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

/// The same, in f32.
template <int N, class T>
__device__ void load(const T* p, float (&out)[N]) {
  const Pack<T, N> pack = load_pack<N>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = to_float(pack.value[i]);
}

template <int N, class T>
__device__ void store(T* p, const float (&in)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.value[i] = from_float<T>(in[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

/// Whether rows of `width` elements can be read in packs of 16 bytes: every row of every tensor
/// starts on a multiple of 16 bytes and ends on a whole pack.
inline bool rows_in_packs(int64_t width, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) {
    if (reinterpret_cast<uintptr_t>(t->data) % 16 != 0 || width * size_of(t->dtype) % 16 != 0) {
      return false;
    }
    for (int d = 0; d + 1 < t->ndim; ++d) {
      if (t->shape[d] > 1 && t->stride[d] * size_of(t->dtype) % 16 != 0) return false;
    }
  }
  return true;
}

/// The same for tensors without gaps, which are one row.
inline bool flat_in_packs(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) {
    if (reinterpret_cast<uintptr_t>(t->data) % 16 != 0 || t->nbytes() % 16 != 0) return false;
  }
  return true;
}

/// Calls `f` with the number of elements an access takes, as a constant: a pack or one.
template <class T, class F>
void with_width(bool packs, F&& f) {
  if (packs) {
    f(std::integral_constant<int, kPack<T>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline unsigned grid_of(int64_t blocks) {
  WEFT_CHECK(blocks > 0 && blocks <= INT32_MAX, blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

/// Index of this thread in a one-dimensional grid.
__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace weft::cuda
