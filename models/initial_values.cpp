#include "models/initial_values.hpp"

#include "models/set_values.hpp"
#include "src/core/random.hpp"

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

void set_initial_values(const std::vector<HeldValues>& parts, uint64_t seed, Stream& stream) {
  for (const HeldValues& part : parts) {
    const RandomStream random(seed, part.parameter->name);
    set_values(
        part, [&](int64_t i) { return initial_value(*part.parameter, random, i); }, stream);
  }
}

}  // namespace weft
