// Values from the host into tensors, and into what a rank holds of a parameter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "parallel/data/parameter_traffic.hpp"
#include "src/tensor/bf16.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {

/// Calls f(begin, end) on pieces of [0, n), each on a thread of its own: a large model has billions
/// of values.
template <class F>
void in_parallel(int64_t n, const F& f) {
  constexpr int64_t kPiece = 1 << 20;
  const int64_t threads =
      std::clamp<int64_t>(n / kPiece, 1, std::max(1u, std::thread::hardware_concurrency()));
  const Cuts cuts = Cuts::even(n, static_cast<int>(threads));
  std::vector<std::jthread> others;
  for (int i = 1; i < cuts.pieces(); ++i) {
    others.emplace_back([&f, begin = cuts.begin(i), end = cuts.end(i)] { f(begin, end); });
  }
  f(cuts.begin(0), cuts.end(0));
}

/// Element i of a contiguous floating host tensor becomes value(i), a float or double; in bf16 it
/// is rounded to f32 and then to bf16. Threads call `value`.
template <class Value>
void write_values(const Tensor& host, const Value& value) {
  in_parallel(host.numel(), [&](int64_t begin, int64_t end) {
    if (host.dtype == DType::bf16) {
      auto* bits = reinterpret_cast<uint16_t*>(host.data);
      for (int64_t i = begin; i < end; ++i) bits[i] = to_bf16(static_cast<float>(value(i)));
      return;
    }
    visit_float(host.dtype, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = begin; i < end; ++i) host.as<T>()[i] = static_cast<T>(value(i));
    });
  });
}

/// Element i of the whole parameter becomes value(i), wherever the part has it: as write_values()
/// rounds, so that an f32 master of a bf16 weight rounds to the same. `stream` carries the part to
/// a GPU.
template <class Value>
void set_values(const HeldValues& part, const Value& value, Stream& stream) {
  write_on_host(part.values, stream, [&](const Tensor& host) {
    write_values(host,
                 [&](int64_t i) { return value(part.parameter->global_index(part.begin + i)); });
  });
}

}  // namespace weft
