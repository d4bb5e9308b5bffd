#include "src/kernels/pointwise.hpp"

#include <algorithm>
#include <cstring>

#include "src/kernels/cpu/vector_math.hpp"
#include "src/tensor/bf16.hpp"

namespace weft::cpu {
namespace {

/// Dims from this one on lie without gaps in both tensors.
int first_dense_dim(const Tensor& y, const Tensor& x) {
  int64_t step = 1;
  int dim = y.ndim;
  for (; dim > 0; --dim) {
    const int64_t size = y.shape[dim - 1];
    if (size != 1 && (y.stride[dim - 1] != step || x.stride[dim - 1] != step)) break;
    step *= size;
  }
  return dim;
}

/// Dims [dim, dense) by loops, the rest as one run of bytes.
void copy_dims(const CopyArgs& args, int dim, int dense, int64_t run, std::byte* y,
               const std::byte* x) {
  if (dim == dense) {
    std::memcpy(y, x, run);
    return;
  }
  const int64_t size = size_of(args.y.dtype);
  for (int64_t i = 0; i < args.y.shape[dim]; ++i) {
    copy_dims(args, dim + 1, dense, run, y + i * args.y.stride[dim] * size,
              x + i * args.x.stride[dim] * size);
  }
}

}  // namespace

void swiglu_forward(const SwigluArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = args.y.as<T>();
    const T* gate = args.gate.as<T>();
    const T* up = args.up.as<T>();
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) {
      const T sigmoid = 1 / (1 + cpu::exp(-gate[i]));  // as backward forms it: the same bits
      y[i] = gate[i] * sigmoid * up[i];
    }
  });
}

void swiglu_backward(const SwigluGradArgs& args) {
  visit_float(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dgate = args.dgate.as<T>();
    T* dup = args.dup.as<T>();
    T* y = args.y.as<T>();
    const T* dy = args.dy.as<T>();
    const T* gate = args.gate.as<T>();
    const T* up = args.up.as<T>();
    const int64_t n = args.dy.numel();
#pragma omp simd  // an output is an input or apart from it: iterations are independent
    for (int64_t i = 0; i < n; ++i) {
      const T sigmoid = 1 / (1 + cpu::exp(-gate[i]));
      const T silu = gate[i] * sigmoid, d = dy[i], u = up[i];
      y[i] = silu * u;
      dup[i] = d * silu;
      dgate[i] = d * u * (sigmoid + silu * (1 - sigmoid));
    }
  });
}

void add(const AddArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* y = args.y.as<T>();
    const T* a = args.a.as<T>();
    const T* b = args.b.as<T>();
    const int64_t n = args.y.numel();
    for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
  });
}

void fill(const FillArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::fill_n(args.y.as<T>(), args.y.numel(), static_cast<T>(args.value));
  });
}

void copy(const CopyArgs& args) {
  if (args.y.numel() == 0) return;
  const int dense = first_dense_dim(args.y, args.x);
  int64_t run = size_of(args.y.dtype);
  for (int dim = dense; dim < args.y.ndim; ++dim) run *= args.y.shape[dim];
  copy_dims(args, 0, dense, run, args.y.data, args.x.data);
}

void convert(const ConvertArgs& args) {
  const int64_t n = args.y.numel();
  const auto bits = [](const Tensor& t) { return reinterpret_cast<uint16_t*>(t.data); };
  const auto write = [&](auto value) {
    if (args.y.dtype == DType::bf16) {
      for (int64_t i = 0; i < n; ++i) bits(args.y)[i] = to_bf16(static_cast<float>(value(i)));
    } else {
      visit_float(args.y.dtype, [&](auto zero) {
        using T = decltype(zero);
        for (int64_t i = 0; i < n; ++i) args.y.as<T>()[i] = static_cast<T>(value(i));
      });
    }
  };
  if (args.x.dtype == DType::bf16) {
    write([x = bits(args.x)](int64_t i) { return from_bf16(x[i]); });
  } else {
    visit_float(args.x.dtype, [&](auto zero) {
      write([x = args.x.as<decltype(zero)>()](int64_t i) { return x[i]; });
    });
  }
}

}  // namespace weft::cpu
