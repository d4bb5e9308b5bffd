// One thread, one access of 16 bytes per tensor: enough of them are resident to fill the memory.
#include <array>
#include <cmath>

#include "src/kernels/cuda/map.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

template <class T, int W>
struct SwigluForward {
  T* y;
  const T* gate;
  const T* up;

  __device__ void operator()(int64_t i) const {
    float g[W], u[W];
    load<W>(gate + i, g);
    load<W>(up + i, u);
#pragma unroll
    for (int j = 0; j < W; ++j) u[j] *= g[j] * sigmoid(g[j]);
    store<W>(y + i, u);
  }
};

template <class T, int W>
struct SwigluBackward {
  T* dgate;
  T* dup;
  T* y;
  const T* dy;
  const T* gate;
  const T* up;

  __device__ void operator()(int64_t i) const {
    float d[W], g[W], u[W], out[W];
    load<W>(dy + i, d);
    load<W>(gate + i, g);
    load<W>(up + i, u);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float s = sigmoid(g[j]);
      const float silu = g[j] * s;
      out[j] = silu * u[j];
      g[j] = d[j] * u[j] * (s + silu * (1 - s));
      u[j] = d[j] * silu;
    }
    store<W>(y + i, out);
    store<W>(dup + i, u);
    store<W>(dgate + i, g);
  }
};

template <class T, int W>
struct Add {
  T* y;
  const T* a;
  const T* b;

  __device__ void operator()(int64_t i) const {
    if constexpr (std::is_same_v<T, double>) {
      y[i] = a[i] + b[i];
    } else {
      float first[W], second[W];
      load<W>(a + i, first);
      load<W>(b + i, second);
#pragma unroll
      for (int j = 0; j < W; ++j) first[j] += second[j];
      store<W>(y + i, first);
    }
  }
};

template <class T, int W>
struct Fill {
  T* y;
  Pack<T, W> value;

  __device__ void operator()(int64_t i) const { *reinterpret_cast<Pack<T, W>*>(y + i) = value; }
};

template <class T>
void fill_with(const FillArgs& args, T value, Stream& stream) {
  with_width<T>(flat_in_packs({&args.y}), [&](auto width) {
    constexpr int W = decltype(width)::value;
    Fill<T, W> f{elements<T>(args.y), {}};
    for (T& v : f.value.value) v = value;
    launch_map<W>(args.y.numel(), f, stream);
  });
}

bool aligned(const Tensor& t, size_t bytes) {
  return reinterpret_cast<uintptr_t>(t.data) % bytes == 0;
}

template <class To, class From, int W>
struct Convert {
  To* y;
  const From* x;

  __device__ void operator()(int64_t i) const {
    float value[W];
    load<W>(x + i, value);
    store<W>(y + i, value);
  }
};

}  // namespace

void swiglu_forward(const SwigluArgs& args, Stream& stream) {
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(flat_in_packs({&args.y, &args.gate, &args.up}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(
          args.y.numel(),
          SwigluForward<T, W>{elements<T>(args.y), elements<T>(args.gate), elements<T>(args.up)},
          stream);
    });
  });
}

void swiglu_backward(const SwigluGradArgs& args, Stream& stream) {
  visit_element(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool packs =
        flat_in_packs({&args.dgate, &args.dup, &args.y, &args.dy, &args.gate, &args.up});
    with_width<T>(packs, [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(
          args.dy.numel(),
          SwigluBackward<T, W>{elements<T>(args.dgate), elements<T>(args.dup), elements<T>(args.y),
                               elements<T>(args.dy), elements<T>(args.gate), elements<T>(args.up)},
          stream);
    });
  });
}

void add(const AddArgs& args, Stream& stream) {
  if (args.y.dtype == DType::f64) {  // sums of losses and norms
    launch_map<1>(args.y.numel(),
                  Add<double, 1>{elements<double>(args.y), elements<double>(args.a),
                                 elements<double>(args.b)},
                  stream);
    return;
  }
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(flat_in_packs({&args.y, &args.a, &args.b}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(args.y.numel(),
                    Add<T, W>{elements<T>(args.y), elements<T>(args.a), elements<T>(args.b)},
                    stream);
    });
  });
}

void fill(const FillArgs& args, Stream& stream) {
  WEFT_CHECK(args.y.device == Device::cuda, args.y.text(), " is on ", name(args.y.device));
  if (args.value == 0 && !std::signbit(args.value)) {
    set_bytes(args.y.data, 0, args.y.nbytes(), &stream);
  } else if (args.y.dtype == DType::f64) {
    fill_with<double>(args, args.value, stream);
  } else {
    visit_element(args.y.dtype, [&](auto zero) {
      fill_with(args, static_cast<decltype(zero)>(static_cast<float>(args.value)), stream);
    });
  }
}

void convert(const ConvertArgs& args, Stream& stream) {
  visit_element(args.y.dtype, [&](auto to) {
    visit_element(args.x.dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      // Eight elements an access: 16 bytes of bf16, 32 of f32.
      constexpr int kWide = 8;
      const bool wide = args.y.numel() % kWide == 0 && aligned(args.y, kWide * sizeof(To)) &&
                        aligned(args.x, kWide * sizeof(From));
      const auto launch = [&](auto width) {
        constexpr int W = decltype(width)::value;
        launch_map<W>(args.y.numel(),
                      Convert<To, From, W>{elements<To>(args.y), elements<From>(args.x)}, stream);
      };
      if (wide) {
        launch(std::integral_constant<int, kWide>{});
      } else {
        launch(std::integral_constant<int, 1>{});
      }
    });
  });
}

}  // namespace weft::cuda
