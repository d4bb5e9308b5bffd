// A team of threads reads a row once into registers, reduces it, and writes. Rows too wide for that
// read their rest again, mostly from the cache.
#include "src/kernels/gated_norm.hpp"

#include "src/kernels/cuda/column_sums.cuh"
#include "src/kernels/cuda/map.cuh"
#include "src/kernels/cuda/rows.cuh"

namespace weft::cuda {
namespace {

constexpr int kForwardHeld = 4;   // packs of a row that a thread keeps, and of its gate
constexpr int kBackwardHeld = 2;  // of three rows, and their sums

/// f(gate) and its slope.
struct GateValue {
  float value, slope;
};

template <GateFunction function>
__device__ GateValue value_of(float gate) {
  if constexpr (function == GateFunction::none) {
    return {1, 0};
  } else {
    const float s = sigmoid(gate);
    if constexpr (function == GateFunction::sigmoid) return {s, s * (1 - s)};
    return {gate * s, silu_slope(gate, s)};
  }
}

/// The gates at p; without a gate nothing is read.
template <GateFunction function, int W, class T>
__device__ Pack<T, W> load_gate(const T* p) {
  if constexpr (function == GateFunction::none) {
    return {};
  } else {
    return load_pack<W>(p);
  }
}

/// y from x rstd: in the forward and again in the backward, to the bit.
__device__ float output_of(float unit, float weight, float gate) {
  return unit * weight * gate;
}

/// Sums over wholes of which the rows are parts, where they are.
struct Whole {
  const float* sums;  // [rows], or null: rows are whole
  float width;        // of a whole
};

/// `squares`: of x.
template <GateFunction function, class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    forward(T* y, float* rstd, const float* x, const T* gate, const T* weight, Whole squares,
            int64_t rows, int width, float eps) {
  constexpr int kHeld = kForwardHeld;
  __shared__ float shared[kRowWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t start = (r < rows ? r : 0) * width;
  const int end = r < rows ? width : 0;  // all threads reach the barriers
  const int step = static_cast<int>(blockDim.x) * W, first = static_cast<int>(threadIdx.x) * W;
  Pack<float, W> xs[kHeld];
  Pack<T, W> gates[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step >= end) continue;
    xs[i] = load_pack<W>(x + start + first + i * step);
    gates[i] = load_gate<function, W>(gate + start + first + i * step);
  }
  const auto own_squares = [&] {
    float sum = 0;
    const auto add_squares = [&](const Pack<float, W>& pack) {
#pragma unroll
      for (const float value : pack.value) sum += value * value;
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step < end) add_squares(xs[i]);
    }
    for (int c = first + kHeld * step; c < end; c += step) {
      add_squares(load_pack<W>(x + start + c));
    }
    return team_sum(sum, shared);
  };
  const float total = squares.sums != nullptr ? squares.sums[r < rows ? r : 0] : own_squares();
  const float scale = 1.0f / sqrtf(total / squares.width + eps);
  if (threadIdx.x == 0 && r < rows) rstd[r] = scale;
  const auto write = [&](int c, const Pack<float, W>& values, const Pack<T, W>& g) {
    float w[W], out[W];
    load<W>(weight + c, w);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float f = value_of<function>(to_float(g.value[j])).value;
      out[j] = output_of(values.value[j] * scale, w[j], f);
    }
    store<W>(y + start + c, out);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) write(first + i * step, xs[i], gates[i]);
  }
  for (int c = first + kHeld * step; c < end; c += step) {
    write(c, load_pack<W>(x + start + c), load_gate<function, W>(gate + start + c));
  }
}

/// What W elements of a row add to its sum of dy weight f(gate) x.
template <GateFunction function, class T, int W>
__device__ float along_of(const T* weight, const Pack<T, W>& dy, const Pack<float, W>& x,
                          const Pack<T, W>& gate) {
  float w[W], sum = 0;
  load<W>(weight, w);
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const float f = value_of<function>(to_float(gate.value[j])).value;
    sum += to_float(dy.value[j]) * w[j] * f * x.value[j];
  }
  return sum;
}

/// sums[r] = the sum over the columns c of f(start of row r, c), which adds up W of them.
template <int W, class F>
__global__ void __launch_bounds__(kRowThreads) sum_rows(float* sums, int64_t rows, int width, F f) {
  __shared__ float shared[kRowWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int end = r < rows ? width : 0;  // all threads reach the barriers
  const int step = static_cast<int>(blockDim.x) * W;
  float sum = 0;
#pragma unroll 4
  for (int c = static_cast<int>(threadIdx.x) * W; c < end; c += step) sum += f(r * width, c);
  const float total = team_sum(sum, shared);
  if (threadIdx.x == 0 && r < rows) sums[r] = total;
}

template <int W>
struct Squares {
  const float* x;

  __device__ float operator()(int64_t start, int c) const {
    const Pack<float, W> pack = load_pack<W>(x + start + c);
    float sum = 0;
#pragma unroll
    for (const float value : pack.value) sum += value * value;
    return sum;
  }
};

template <GateFunction function, class T, int W>
struct Along {
  const T* dy;
  const float* x;
  const T* gate;
  const T* weight;

  __device__ float operator()(int64_t start, int c) const {
    return along_of<function>(weight + c, load_pack<W>(dy + start + c), load_pack<W>(x + start + c),
                              load_gate<function, W>(gate + start + c));
  }
};

template <int W, class F>
void launch_sum_rows(const Tensor& sums, int64_t width, const F& f, Stream& stream) {
  const int64_t rows = sums.dim(0);
  const dim3 block = team_block(ceil_div(width, W), kForwardHeld);
  sum_rows<W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
      elements<float>(sums), rows, static_cast<int>(width), f);
  WEFT_CALL(cudaGetLastError());
}

template <class T>
struct BackwardRows {
  T* dx;  // may be dy: a thread reads an element of dy before it writes that of dx
  T* dgate;
  T* y;
  const T* dy;
  const float* x;
  const float* rstd;
  const T* gate;
  const T* weight;
  Whole along;  // of dy weight f(gate) x
};

/// Every teams-th row a team; and what a block's rows add to dweight, into its row of `partial`
/// [gridDim.x, width]. The first kHeld packs of a thread's columns keep their sum in registers,
/// later ones, which only a team of a whole block has, in `partial` itself.
template <GateFunction function, class T, int W>
__global__ void __launch_bounds__(kRowThreads, 2)
    backward(BackwardRows<T> at, float* partial, int64_t rows, int width) {
  constexpr int kHeld = kBackwardHeld;
  __shared__ float shared[kRowWarps], column[kRowThreads];
  const int64_t teams = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t team = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int step = static_cast<int>(blockDim.x) * W, first = static_cast<int>(threadIdx.x) * W;
  float* mine = partial + blockIdx.x * static_cast<int64_t>(width);
  float sums[kHeld][W] = {};
  for (int c = first + kHeld * step; c < width; c += step) {
    for (int j = 0; j < W; ++j) mine[c + j] = 0;
  }
  for (int64_t base = 0; base < rows; base += teams) {  // all threads reach the barriers
    const bool inside = base + team < rows;
    const int64_t r = inside ? base + team : 0, start = r * width;
    const int end = inside ? width : 0;
    Pack<T, W> dys[kHeld], gates[kHeld];
    Pack<float, W> xs[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int c = first + i * step;
      if (c >= end) continue;
      dys[i] = load_pack<W>(at.dy + start + c);
      xs[i] = load_pack<W>(at.x + start + c);
      gates[i] = load_gate<function, W>(at.gate + start + c);
    }
    const auto own_along = [&] {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (first + i * step >= end) continue;
        sum += along_of<function>(at.weight + first + i * step, dys[i], xs[i], gates[i]);
      }
      for (int c = first + kHeld * step; c < end; c += step) {
        sum += along_of<function>(at.weight + c, load_pack<W>(at.dy + start + c),
                                  load_pack<W>(at.x + start + c),
                                  load_gate<function, W>(at.gate + start + c));
      }
      return team_sum(sum, shared);
    };
    // The norm removes what points along x.
    const float scale = at.rstd[r];
    const float along = at.along.sums != nullptr ? at.along.sums[r] : own_along();
    const float shrink = along * scale * scale / at.along.width;
    const auto finish = [&](int c, const Pack<T, W>& d, const Pack<float, W>& v,
                            const Pack<T, W>& g, float* dweight) {
      float w[W], dx[W], dgate[W], y[W];
      load<W>(at.weight + c, w);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const auto [value, slope] = value_of<function>(to_float(g.value[j]));
        const float dout = to_float(d.value[j]), unit = v.value[j] * scale;
        y[j] = output_of(unit, w[j], value);
        dgate[j] = dout * unit * w[j] * slope;
        dweight[j] += dout * unit * value;
        dx[j] = scale * (dout * w[j] * value - v.value[j] * shrink);
      }
      store<W>(at.y + start + c, y);
      if constexpr (function != GateFunction::none) store<W>(at.dgate + start + c, dgate);
      store<W>(at.dx + start + c, dx);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step < end) finish(first + i * step, dys[i], xs[i], gates[i], sums[i]);
    }
    for (int c = first + kHeld * step; c < end; c += step) {
      finish(c, load_pack<W>(at.dy + start + c), load_pack<W>(at.x + start + c),
             load_gate<function, W>(at.gate + start + c), mine + c);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float total = column_reduce(sums[i][j], column);
      if (threadIdx.y == 0 && first + i * step < width) mine[first + i * step + j] = total;
    }
  }
}

/// Blocks of the backward: enough to fill a card, partial sums of at most 16 MiB. A function of the
/// shape alone, for the same bits on every card.
int64_t block_count(int64_t rows, int64_t width, int64_t teams) {
  constexpr int64_t kMost = 792, kFloats = int64_t{4} << 20;
  return std::max<int64_t>(1, std::min({ceil_div(rows, teams), kMost, kFloats / width}));
}

/// Calls f with the function, a value of the type of the gate, and the width of an access.
template <class F>
void visit_rows(GateFunction function, DType dtype, bool packs, F&& f) {
  const auto with_function = [&](auto constant) {
    visit_element(dtype, [&](auto zero) {
      with_width<float>(packs, [&](auto width) { f(constant, zero, width); });
    });
  };
  switch (function) {
    case GateFunction::none:
      return with_function(std::integral_constant<GateFunction, GateFunction::none>{});
    case GateFunction::silu:
      return with_function(std::integral_constant<GateFunction, GateFunction::silu>{});
    case GateFunction::sigmoid:
      return with_function(std::integral_constant<GateFunction, GateFunction::sigmoid>{});
  }
}

template <class T>
T* elements_or_null(const Tensor& t) {
  return t ? elements<T>(t) : nullptr;
}

Whole whole_of(const Tensor& sums, int64_t whole, int64_t width) {
  return {elements_or_null<float>(sums), static_cast<float>(sums ? whole : width)};
}

}  // namespace

void gated_norm_forward(const GatedNormArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  const bool packs = rows_in_packs(width, {&args.y, &args.x, &args.gate, &args.weight});
  visit_rows(args.function, args.y.dtype, packs, [&](auto function, auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const dim3 block = team_block(ceil_div(width, W), kForwardHeld);
    forward<decltype(function)::value, T, W>
        <<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
            elements<T>(args.y), elements<float>(args.rstd), elements<float>(args.x),
            elements_or_null<T>(args.gate), elements<T>(args.weight),
            whole_of(args.squares, args.whole, width), rows, static_cast<int>(width),
            static_cast<float>(args.eps));
  });
  WEFT_CALL(cudaGetLastError());
}

void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0 || width == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  const bool packs = rows_in_packs(
      width, {&args.dx, &args.dgate, &args.y, &args.dy, &args.x, &args.gate, &args.weight});
  visit_rows(args.function, args.dy.dtype, packs, [&](auto function, auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    const dim3 block = team_block(ceil_div(width, W), kBackwardHeld);
    const int64_t blocks = block_count(rows, width, block.y);
    float* partial = reinterpret_cast<float*>(
        cuda_stream(stream).workspace(blocks * width * static_cast<int64_t>(sizeof(float))));
    const BackwardRows<T> at{elements<T>(args.dx),
                             elements_or_null<T>(args.dgate),
                             elements<T>(args.y),
                             elements<T>(args.dy),
                             elements<float>(args.x),
                             elements<float>(args.rstd),
                             elements_or_null<T>(args.gate),
                             elements<T>(args.weight),
                             whole_of(args.along, args.whole, width)};
    backward<decltype(function)::value, T, W>
        <<<grid_of(blocks), block, 0, native(stream)>>>(at, partial, rows, static_cast<int>(width));
    WEFT_CALL(cudaGetLastError());
    add_column_sums(args.dweight, {partial, blocks, width, width}, stream);
  });
}

void row_squares(const RowSquaresArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  with_width<float>(rows_in_packs(width, {&args.x}), [&](auto w) {
    constexpr int W = decltype(w)::value;
    launch_sum_rows<W>(args.squares, width, Squares<W>{elements<float>(args.x)}, stream);
  });
}

void gated_norm_along(const GatedNormAlongArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  const bool packs = rows_in_packs(width, {&args.dy, &args.x, &args.gate, &args.weight});
  visit_rows(args.function, args.dy.dtype, packs, [&](auto function, auto zero, auto w) {
    using T = decltype(zero);
    constexpr int W = decltype(w)::value;
    constexpr GateFunction kFunction = decltype(function)::value;
    const Along<kFunction, T, W> along{elements<T>(args.dy), elements<float>(args.x),
                                       elements_or_null<T>(args.gate), elements<T>(args.weight)};
    launch_sum_rows<W>(args.along, width, along, stream);
  });
}

}  // namespace weft::cuda
