#include "models/initial_values.hpp"

#include "src/core/random.hpp"
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

}  // namespace

void set_initial_values(const ParameterStore& store, uint64_t seed, Stream& stream) {
  for (const Parameter* parameter : store.parameters()) {
    const RandomStream random(seed, parameter->name);
    write_on_host(store.value(*parameter), stream, [&](const Tensor& value) {
      visit_float(value.dtype, [&](auto zero) {
        using T = decltype(zero);
        for (int64_t i = 0; i < value.numel(); ++i) {
          value.as<T>()[i] = static_cast<T>(initial_value(*parameter, random, i));
        }
      });
    });
  }
}

}  // namespace weft
