#include "models/initial_values.hpp"

#include "src/core/random.hpp"

namespace weft {

void set_initial_values(const ParameterStore& store, uint64_t seed) {
  for (const Parameter* parameter : store.parameters()) {
    const Tensor value = store.value(*parameter);
    const RandomStream random(seed, parameter->name);
    visit_float(value.dtype, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < value.numel(); ++i) {
        value.as<T>()[i] = parameter->init == Parameter::Init::ones
                               ? T(1)
                               : static_cast<T>(parameter->init_std * random.normal(i));
      }
    });
  }
}

}  // namespace weft
