// Cases of state mixers made by another program: what goes in, and what must come out.
#pragma once

#include <string>
#include <vector>

#include "launch/safetensors.hpp"
#include "tests/golden_cases.hpp"
#include "tests/state_mixer_testing.hpp"

namespace weft {

/// The files, by name.
inline std::vector<std::string> mixer_golden_cases() {
  return golden_cases("mixer-", /*folders=*/false);
}

/// "mixer_vector" of "mixer-vector.safetensors".
std::string test_name(const std::string& file);

naive::StateMixerInputs mixer_inputs(const SafetensorsFile& file);

/// Expects every output and gradient of the file. They are stored in f32, which alone is 3e-8;
/// docs/numerics.md has the rest.
void expect_agreement(const SafetensorsFile& file, const naive::StateMixerResult& r, DType dtype);

}  // namespace weft
