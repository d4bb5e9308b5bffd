#include "launch/parameter_checksum.hpp"

#include <algorithm>

#include "src/core/random.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

/// The finaliser of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators",
/// OOPSLA 2014): a bijection, of which every bit depends on every bit.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

/// Of elements that lie one behind the other in the whole, from `index` on. `key`: of the name.
template <class Bits>
uint64_t sum_of_hashes(const Bits* bits, int64_t count, uint64_t index, uint64_t key) {
  constexpr uint64_t kStep = 0x9E3779B97F4A7C15;  // odd: no two indices meet
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += mix((key + (index + i) * kStep) ^ bits[i]);
  return sum;
}

uint64_t sum_of_hashes(const Tensor& host, uint64_t index, uint64_t key) {
  const auto sum_as = [&](auto zero) {
    const auto* bits = reinterpret_cast<const decltype(zero)*>(host.data);
    return sum_of_hashes(bits, host.numel(), index, key);
  };
  switch (size_of(host.dtype)) {
    case 8:
      return sum_as(uint64_t{});
    case 4:
      return sum_as(uint32_t{});
    default:
      return sum_as(uint16_t{});
  }
}

/// How many elements of the rank's piece, from element i on, lie one behind the other in the whole.
int64_t run_at(const Parameter& parameter, int64_t i) {
  if (parameter.cut_dim < 1) return parameter.numel() - i;
  const std::vector<int64_t> shape = parameter.local_shape();
  int64_t row = 1;
  for (size_t dim = parameter.cut_dim; dim < shape.size(); ++dim) row *= shape[dim];
  return row - i % row;
}

}  // namespace

uint64_t parameter_checksum(std::span<const OwnedPiece> pieces, Stream& stream) {
  constexpr int64_t kMost = int64_t{4} << 20;  // elements on the host at a time
  uint64_t sum = 0;
  for (const auto& [parameter, begin, end, value, gradient, master] : pieces) {
    const Tensor& elements = master ? master : value;
    const uint64_t key = RandomStream(0, parameter->name).bits(0);
    for (int64_t from = begin; from < end; from += kMost) {
      const int64_t to = std::min(end, from + kMost);
      const HostCopy copy(elements.slice(0, from - begin, to - begin), stream);
      for (int64_t i = from; i < to;) {
        const int64_t next = std::min(to, i + run_at(*parameter, i));
        sum += sum_of_hashes(copy.tensor().slice(0, i - from, next - from),
                             parameter->global_index(i), key);
        i = next;
      }
    }
  }
  return sum;
}

}  // namespace weft
