#include "models/initial_values.hpp"

#include <algorithm>
#include <functional>
#include <thread>
#include <vector>

#include "src/core/random.hpp"
#include "src/core/shard.hpp"
#include "src/tensor/bf16.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

double initial_value(const Parameter& parameter, const RandomStream& random, int64_t i) {
  switch (parameter.init) {
    case Parameter::Init::normal:
      return parameter.init_std * random.normal(i);
    case Parameter::Init::zeros:
      return 0;
    case Parameter::Init::ones:
      return 1;
    case Parameter::Init::drawn:
      return parameter.draw(random.uniform(i));
  }
  return 0;
}

/// Calls f(begin, end) on pieces of [0, n), each on a thread of its own: a large model has billions
/// of normals.
void in_parallel(int64_t n, const std::function<void(int64_t, int64_t)>& f) {
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

/// value(i) for every element, in the tensor's type.
template <class Value>
void set_elements(const Tensor& t, const Value& value) {
  in_parallel(t.numel(), [&](int64_t begin, int64_t end) {
    if (t.dtype == DType::bf16) {
      auto* bits = reinterpret_cast<uint16_t*>(t.data);
      for (int64_t i = begin; i < end; ++i) bits[i] = to_bf16(static_cast<float>(value(i)));
      return;
    }
    visit_float(t.dtype, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = begin; i < end; ++i) t.as<T>()[i] = static_cast<T>(value(i));
    });
  });
}

}  // namespace

void set_initial_values(const std::vector<HeldValues>& held, uint64_t seed, Stream& stream) {
  for (const HeldValues& part : held) {
    const Parameter& parameter = *part.parameter;
    const RandomStream random(seed, parameter.name);
    write_on_host(part.values, stream, [&](const Tensor& value) {
      set_elements(value, [&](int64_t i) {
        return initial_value(parameter, random, parameter.global_index(part.begin + i));
      });
    });
  }
}

}  // namespace weft
