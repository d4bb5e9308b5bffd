// The instructions that bf16 products of attention and of the state mixers are made of.
#pragma once

#include <cstdint>

namespace weft::cuda {

/// Four 8 x 8 matrices of bf16 from shared memory; lane l gives the address of row l % 8 of matrix
/// l / 8, 16 bytes aligned to 16. Lane l gets of each the elements (l / 4, 2 (l % 4)) and the next
/// in its row, of the transposed matrix with `Transposed`.
template <bool Transposed>
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
}

/// sum += a b for a [16, 16] and b [16, 8] of bf16 in f32. With g = lane / 4 and t = lane % 4: sum
/// is (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1); a, in pairs along its row, (g, 2t), (g +
/// 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b, in pairs along its column, (2t, g), (2t + 8, g).
__device__ inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// 16 bytes from global to shared memory, both aligned to 16, beside the computation.
__device__ inline void copy_beside(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
/// The same, or, without anything there to read, zeros.
__device__ inline void copy_or_zero(void* shared, const void* global, bool there) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits for all groups of copies of this thread but the `Open` last.
template <int Open>
__device__ inline void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Open) : "memory");
}

}  // namespace weft::cuda
