// The copy between views: dims without gaps are merged, what is left goes by units as large as
// every stride and address allows.
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDims = Tensor::kMaxDims;

/// Dims from the innermost on; strides in units.
struct Layout {
  int ndim = 0;
  int64_t size[kDims] = {};
  int64_t y_stride[kDims] = {};
  int64_t x_stride[kDims] = {};
};

/// Sizes and strides in elements, dims of one element dropped and neighbours merged.
Layout merged(const CopyArgs& args) {
  Layout out;
  for (int d = args.y.ndim - 1; d >= 0; --d) {
    const int64_t size = args.y.shape[d];
    if (size == 1) continue;
    const int last = out.ndim - 1;
    if (last >= 0 && args.y.stride[d] == out.size[last] * out.y_stride[last] &&
        args.x.stride[d] == out.size[last] * out.x_stride[last]) {
      out.size[last] *= size;
      continue;
    }
    out.size[out.ndim] = size;
    out.y_stride[out.ndim] = args.y.stride[d];
    out.x_stride[out.ndim] = args.x.stride[d];
    ++out.ndim;
  }
  return out;
}

/// Bytes of the largest unit that divides the inner run, every other stride and both addresses.
int64_t unit_of(const Layout& layout, const CopyArgs& args) {
  const int64_t element = size_of(args.y.dtype);
  if (layout.ndim == 0 || layout.y_stride[0] != 1 || layout.x_stride[0] != 1) return element;
  const auto divides = [&](int64_t unit) {
    bool all = reinterpret_cast<uintptr_t>(args.y.data) % unit == 0 &&
               reinterpret_cast<uintptr_t>(args.x.data) % unit == 0 &&
               layout.size[0] * element % unit == 0;
    for (int d = 1; d < layout.ndim; ++d) {
      all = all && layout.y_stride[d] * element % unit == 0 &&
            layout.x_stride[d] * element % unit == 0;
    }
    return all;
  };
  for (int64_t unit = 16; unit > element; unit /= 2) {
    if (divides(unit)) return unit;
  }
  return element;
}

/// One thread, one unit. `Index` is 32 bits where that is enough: divisions are most of the work.
template <class Unit, class Index>
__global__ void __launch_bounds__(kThreads)
    copy_units(Unit* y, const Unit* x, Layout layout, int64_t units) {
  const int64_t i = thread_index();
  if (i >= units) return;
  Index rest = static_cast<Index>(i);
  int64_t to = 0, from = 0;
#pragma unroll
  for (int d = 0; d < kDims; ++d) {
    if (d >= layout.ndim) break;
    const Index size = static_cast<Index>(layout.size[d]);
    const Index at = rest % size;
    rest /= size;
    to += static_cast<int64_t>(at) * layout.y_stride[d];
    from += static_cast<int64_t>(at) * layout.x_stride[d];
  }
  y[to] = x[from];
}

template <class Unit>
void launch(const CopyArgs& args, Layout layout, Stream& stream) {
  const int64_t element = size_of(args.y.dtype), unit = sizeof(Unit);
  if (unit > element) {
    layout.size[0] /= unit / element;
    for (int d = 1; d < layout.ndim; ++d) {
      layout.y_stride[d] /= unit / element;
      layout.x_stride[d] /= unit / element;
    }
  }
  int64_t units = 1;
  for (int d = 0; d < layout.ndim; ++d) units *= layout.size[d];
  const unsigned blocks = grid_of(ceil_div(units, kThreads));
  Unit* y = reinterpret_cast<Unit*>(args.y.data);
  const Unit* x = reinterpret_cast<const Unit*>(args.x.data);
  if (units <= UINT32_MAX) {
    copy_units<Unit, uint32_t><<<blocks, kThreads, 0, native(stream)>>>(y, x, layout, units);
  } else {
    copy_units<Unit, uint64_t><<<blocks, kThreads, 0, native(stream)>>>(y, x, layout, units);
  }
  WEFT_CALL(cudaGetLastError());
}

}  // namespace

void copy(const CopyArgs& args, Stream& stream) {
  WEFT_CHECK(args.y.device == Device::cuda && args.x.device == Device::cuda, args.y.text());
  if (args.y.numel() == 0) return;
  const Layout layout = merged(args);
  if (layout.ndim == 0 ||
      (layout.ndim == 1 && layout.y_stride[0] == 1 && layout.x_stride[0] == 1)) {
    copy_bytes(args.y.data, args.x.data, args.y.nbytes(), stream);
    return;
  }
  switch (unit_of(layout, args)) {
    case 16:
      return launch<uint4>(args, layout, stream);
    case 8:
      return launch<uint64_t>(args, layout, stream);
    case 4:
      return launch<uint32_t>(args, layout, stream);
    case 2:
      return launch<uint16_t>(args, layout, stream);
    default:
      return launch<uint8_t>(args, layout, stream);
  }
}

}  // namespace weft::cuda
