// Matrix products by cuBLASLt: f32 in f32 (no TF32), bf16 accumulated in f32. The algorithm of a
// shape is the library's first choice, asked for once: a stopwatch would pick another one on
// another run, and with it other bits.
#include "src/kernels/matmul.hpp"

#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <utility>

#include "src/core/cuda/cuda_stream.hpp"
#include "src/kernels/cuda/plan_cache.hpp"

namespace weft {

template <>
std::string status_text(const cublasStatus_t& status) {
  return cublasLtGetStatusName(status);
}

namespace cuda {
namespace {

constexpr int64_t kWorkspace = int64_t{32} << 20;  // what cuBLAS recommends on Hopper

using Library = Handle<cublasLtHandle_t, cublasLtDestroy>;
using Description = Handle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using MatrixLayout = Handle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Handle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

/// All that a choice of algorithm may depend on.
struct Shape {
  DType in, out;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  int64_t lda, ldb, ldc;
  uint32_t align_a, align_b, align_c;  // bytes
  auto operator<=>(const Shape&) const = default;
};

/// cuBLAS stores by columns. Read so, a row-major c is its transpose, and c^T = op(b)^T op(a)^T:
/// b comes first, m and n change places, the transposes stay.
struct Plan {
  Description description;
  MatrixLayout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
};

uint32_t alignment(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.data);
  return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), 256));
}

Shape shape_of(const MatmulArgs& args) {
  const auto row = [](const Tensor& t) { return std::max<int64_t>(t.stride[0], t.dim(1)); };
  return {.in = args.a.dtype,
          .out = args.c.dtype,
          .transpose_a = args.transpose_a,
          .transpose_b = args.transpose_b,
          .m = args.c.dim(0),
          .n = args.c.dim(1),
          .k = args.a.dim(args.transpose_a ? 0 : 1),
          .lda = row(args.a),
          .ldb = row(args.b),
          .ldc = row(args.c),
          .align_a = alignment(args.a),
          .align_b = alignment(args.b),
          .align_c = alignment(args.c)};
}

cudaDataType_t type_of(DType dtype) {
  WEFT_CHECK(dtype == DType::f32 || dtype == DType::bf16, "no CUDA product in ", name(dtype));
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

MatrixLayout make_layout(DType dtype, int64_t rows, int64_t columns, int64_t ld) {
  MatrixLayout layout;
  WEFT_CALL(cublasLtMatrixLayoutCreate(layout.out(), type_of(dtype), rows, columns, ld));
  return layout;
}

Description make_description(const Shape& s) {
  Description description;
  WEFT_CALL(cublasLtMatmulDescCreate(description.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto set = [&](cublasLtMatmulDescAttributes_t what, bool transpose) {
    const cublasOperation_t value = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    WEFT_CALL(cublasLtMatmulDescSetAttribute(description.get(), what, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a);
  return description;
}

Preference make_preference(const Shape& s) {
  Preference preference;
  WEFT_CALL(cublasLtMatmulPreferenceCreate(preference.out()));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
    WEFT_CALL(cublasLtMatmulPreferenceSetAttribute(preference.get(), what, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
  // Split sums are added in f32 and in order; never rounded to the output's type in between.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.align_b);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.align_a);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.align_c);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.align_c);
  return preference;
}

Plan make_plan(cublasLtHandle_t library, const Shape& s) {
  const auto stored = [&](bool transpose, int64_t rows, int64_t columns, int64_t ld) {
    return transpose ? make_layout(s.in, columns, rows, ld) : make_layout(s.in, rows, columns, ld);
  };
  Plan plan{.description = make_description(s),
            .a = stored(s.transpose_a, s.k, s.m, s.lda),
            .b = stored(s.transpose_b, s.n, s.k, s.ldb),
            .c = make_layout(s.out, s.n, s.m, s.ldc)};
  const Preference preference = make_preference(s);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  WEFT_CALL(cublasLtMatmulAlgoGetHeuristic(library, plan.description.get(), plan.b.get(),
                                           plan.a.get(), plan.c.get(), plan.c.get(),
                                           preference.get(), 1, &best, &found));
  WEFT_CHECK(found == 1, "cuBLASLt has no product of ", s.m, " x ", s.n, " x ", s.k, " in ",
             name(s.in));
  plan.algorithm = best.algo;
  return plan;
}

using Plans = PlanCache<Library, Shape, Plan>;

Plans& plans() {
  thread_local Plans mine = [] {
    Library library;
    WEFT_CALL(cublasLtCreate(library.out()));
    return Plans(std::move(library));
  }();
  return mine;
}

}  // namespace

void matmul(const MatmulArgs& args, Stream& stream) {
  for (const Tensor* t : {&args.c, &args.a, &args.b}) {
    WEFT_CHECK(t->device == Device::cuda, t->text(), " is on ", name(t->device));
  }
  const Shape shape = shape_of(args);
  if (shape.m == 0 || shape.n == 0) return;
  CudaStream& cuda = cuda_stream(stream);
  if (shape.k == 0) {  // an empty sum
    const int64_t size = size_of(args.c.dtype);
    if (!args.accumulate) {
      WEFT_CALL(
          cudaMemset2DAsync(args.c.data, shape.ldc * size, 0, shape.n * size, shape.m, cuda.get()));
    }
    return;
  }
  Plans& cached = plans();
  const Plan& plan = cached.of(shape, make_plan);
  const float alpha = static_cast<float>(args.alpha), beta = args.accumulate ? 1.0f : 0.0f;
  WEFT_CALL(cublasLtMatmul(cached.library(), plan.description.get(), &alpha, args.b.data,
                           plan.b.get(), args.a.data, plan.a.get(), &beta, args.c.data,
                           plan.c.get(), args.c.data, plan.c.get(), &plan.algorithm,
                           cuda.workspace(kWorkspace), kWorkspace, cuda.get()));
}

}  // namespace cuda
}  // namespace weft
