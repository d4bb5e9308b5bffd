// What a run starts from, to the bit.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <string>
#include <vector>

#include "launch/safetensors.hpp"
#include "launch/trainer.hpp"
#include "src/tensor/bf16.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {

/// Whole parameters by name.
using WholeValues = std::map<std::string, std::vector<float>>;

inline WholeValues values_of_file(const std::string& folder) {
  const SafetensorsFile file(folder + "/model.safetensors");
  WholeValues values;
  for (const std::string& name : file.names()) {
    int64_t numel = 1;
    for (const int64_t d : file.entry(name).shape) numel *= d;
    values[name].resize(numel);
    file.read<float>(name, values[name]);
  }
  return values;
}

/// All parts in f32 are `wanted`, all in bf16 the nearest bf16. Returns how many elements they
/// have.
inline int64_t expect_values(const std::vector<HeldValues>& parts, const WholeValues& wanted,
                             Stream& stream) {
  int64_t elements = 0;
  for (const HeldValues& part : parts) {
    const HostCopy copy(part.values, stream);
    const Tensor& host = copy.tensor();
    const std::vector<float>& whole = wanted.at(part.parameter->name);
    int64_t wrong = 0;
    for (int64_t i = 0; i < host.numel(); ++i) {
      const float value = whole.at(part.parameter->global_index(part.begin + i));
      const bool same =
          host.dtype == DType::bf16
              ? reinterpret_cast<const uint16_t*>(host.data)[i] == to_bf16(value)
              : std::bit_cast<uint32_t>(host.as<float>()[i]) == std::bit_cast<uint32_t>(value);
      wrong += !same;
    }
    EXPECT_EQ(wrong, 0) << part.parameter->name << " in " << name(host.dtype);
    elements += host.numel();
  }
  return elements;
}

}  // namespace weft
