// What Hopper's matrix units work with: barriers in shared memory, copies of tiles by the copy
// engine, and products by a warpgroup, four warps that begin at a multiple of four. sm_90a alone.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace weft::cuda {

inline constexpr int kWarpgroup = 128;

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// A barrier whose phases end when `arrivals` have come and all bytes that they announced.
struct PhaseBarrier {
  uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ void arrive_and_expect(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  /// Until the phase of this parity has ended; the one before the first counts as ended, and has
  /// parity 1.
  __device__ void wait(uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};
/// Makes barriers that this thread has set up known to the copy engine. All threads of the block
/// meet before one of them uses the barriers.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

/// Where a ring of `Slots` is at: the slot, and the parity of its phase.
template <int Slots>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++slot < Slots) return;
    slot = 0;
    parity ^= 1;
  }
};

/// One thread starts to copy a box of `map` from (column, head, token, batch) on to what is aligned
/// to 128 bytes; `full` gets its bytes, those outside the tensor too, which are zeros.
__device__ inline void copy_box(void* shared, const CUtensorMap& map, PhaseBarrier& full,
                                int column, int head, int token, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&full)), "r"(column), "r"(head), "r"(token), "r"(batch)
      : "memory");
}

/// Of a block of one warpgroup with few and others with many, each says what it needs: a multiple
/// of 8.
template <int Registers>
__device__ inline void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// Where the matrix units find an operand in a tile of shared memory: swizzled by 128 bytes, eight
/// rows being 1024 bytes.
class Operand {
 public:
  /// Halves of a row lie `leading` bytes apart, if the unit is to go from one to the other.
  __device__ Operand(const void* shared, int leading)
      : low_(shared_address(shared) >> 4 | static_cast<uint32_t>(leading >> 4) << 16) {
    // Made where it is used: registers kept for addresses are registers that sums do not get.
    asm volatile("" : "+r"(low_));
  }
  /// The descriptor of what lies `bytes` further on, a multiple of 16.
  __device__ uint64_t at(int bytes) const {
    constexpr uint64_t kSwizzle = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
    return kSwizzle | kEightRows | (low_ + static_cast<uint32_t>(bytes >> 4));
  }

 private:
  uint32_t low_;
};

/// Rows of bf16, heads up to D wide, as the copy engine lays them for the matrix units: columns 0
/// to 63 of all rows, then the others, a row of 64 being 128 bytes; of these the chunks of 16 bytes
/// change places with the row's number, so that eight rows of a column lie in different banks. What
/// is past the width or the tensor's last row is zero. Begins at a multiple of 1024 bytes.
template <int D, int Rows>
struct EngineTile {
  static constexpr int kHalf = 64;  // columns
  static constexpr int kRowBytes = 128, kHalfBytes = Rows * kRowBytes,
                       kBytes = D / kHalf * kHalfBytes;
  alignas(1024) unsigned char at[kBytes];

  /// One thread starts to copy rows of one (batch, head) from `row` on.
  __device__ void fetch(const CUtensorMap& map, PhaseBarrier& full, int b, int h, int row) {
#pragma unroll
    for (int half = 0; half < D / kHalf; ++half) {
      copy_box(&at[half * kHalfBytes], map, full, half * kHalf, h, row, b);
    }
  }

  /// Operand whose rows are this tile's from `row` on, a multiple of 8, and whose summed dimension
  /// is columns, 16 a step.
  __device__ Operand along(int row) const {
    return Operand(&at[row * kRowBytes], kRowBytes);
  }
  static constexpr int step_along(int k) {
    return k / 4 * kHalfBytes + k % 4 * 32;
  }
  /// Operand whose summed dimension is this tile's rows, 16 a step; all columns are the other.
  __device__ Operand across() const {
    return Operand(at, kHalfBytes);
  }
  static constexpr int step_across(int k) {
    return k * 16 * kRowBytes;
  }
};

/// Before the first product, and after anything else has written registers of one.
__device__ inline void open_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void close_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until all but the `Open` last groups of products are done.
template <int Open>
__device__ inline void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Open) : "memory");
}
/// After a wait: nothing that reads these sums may be moved in front of it.
template <int N>
__device__ inline void settle(float (&sum)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sum[n][e])::"memory");
  }
}

// set_async: sum = a b, add_async: sum += a b, for a [64, 16] and b [16, N] of bf16 in f32, begun
// and not waited for. Warp w of the warpgroup has the rows from 16 w on, its lanes have sums, and a
// where it is in registers, as in multiply_add of mma.cuh. b is the descriptor of an operand along
// or, `Across`, across; a in shared memory that of one along.
//
// PTX numbers its operands, the sums first, so every N and place of a is written out; what they
// have in common is here.
#define WEFT_PRODUCT(shape, sums, keep, operands) \
  "{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep  \
  ", 0;\n"                                        \
  "wgmma.mma_async.sync.aligned." shape "k16.f32.bf16.bf16 " sums ", " operands ";\n}\n"
#define WEFT_32_REGISTERS                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WEFT_64_REGISTERS                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WEFT_SUMS(access, n) \
  access(sum[n][0]), access(sum[n][1]), access(sum[n][2]), access(sum[n][3])
#define WEFT_32_SUMS(access)                                                              \
  WEFT_SUMS(access, 0), WEFT_SUMS(access, 1), WEFT_SUMS(access, 2), WEFT_SUMS(access, 3), \
      WEFT_SUMS(access, 4), WEFT_SUMS(access, 5), WEFT_SUMS(access, 6), WEFT_SUMS(access, 7)
#define WEFT_64_SUMS(access)                                                                      \
  WEFT_32_SUMS(access), WEFT_SUMS(access, 8), WEFT_SUMS(access, 9), WEFT_SUMS(access, 10),        \
      WEFT_SUMS(access, 11), WEFT_SUMS(access, 12), WEFT_SUMS(access, 13), WEFT_SUMS(access, 14), \
      WEFT_SUMS(access, 15)

template <bool Across>
__device__ inline void set_async(float (&sum)[8][4], uint64_t a, uint64_t b) {
  asm volatile(WEFT_PRODUCT("m64n64", WEFT_32_REGISTERS, "0", "%32, %33, keep, 1, 1, 0, %34")
               : WEFT_32_SUMS("=f")
               : "l"(a), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ inline void add_async(float (&sum)[8][4], uint64_t a, uint64_t b) {
  asm volatile(WEFT_PRODUCT("m64n64", WEFT_32_REGISTERS, "1", "%32, %33, keep, 1, 1, 0, %34")
               : WEFT_32_SUMS("+f")
               : "l"(a), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ inline void add_async(float (&sum)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      WEFT_PRODUCT("m64n64", WEFT_32_REGISTERS, "1", "{%32, %33, %34, %35}, %36, keep, 1, 1, %37")
      : WEFT_32_SUMS("+f")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ inline void set_async(float (&sum)[16][4], uint64_t a, uint64_t b) {
  asm volatile(WEFT_PRODUCT("m64n128", WEFT_64_REGISTERS, "0", "%64, %65, keep, 1, 1, 0, %66")
               : WEFT_64_SUMS("=f")
               : "l"(a), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ inline void add_async(float (&sum)[16][4], uint64_t a, uint64_t b) {
  asm volatile(WEFT_PRODUCT("m64n128", WEFT_64_REGISTERS, "1", "%64, %65, keep, 1, 1, 0, %66")
               : WEFT_64_SUMS("+f")
               : "l"(a), "l"(b), "n"(Across ? 1 : 0));
}
template <bool Across>
__device__ inline void add_async(float (&sum)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      WEFT_PRODUCT("m64n128", WEFT_64_REGISTERS, "1", "{%64, %65, %66, %67}, %68, keep, 1, 1, %69")
      : WEFT_64_SUMS("+f")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(Across ? 1 : 0));
}
#undef WEFT_PRODUCT
#undef WEFT_32_REGISTERS
#undef WEFT_64_REGISTERS
#undef WEFT_SUMS
#undef WEFT_32_SUMS
#undef WEFT_64_SUMS

}  // namespace weft::cuda
