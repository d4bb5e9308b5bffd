// Counter-based random numbers: a pure function of (key, counter), the same on any mesh.
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace weft {

/// Ten Philox rounds of a 128-bit counter under a 64-bit key.
inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter,
                                      std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// One stream of numbers, named by (seed, name): value i does not depend on any other value.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name) : seed_(seed) {
    for (const char c : name) {  // FNV-1a
      name_ = (name_ ^ static_cast<unsigned char>(c)) * 0x100000001B3;
    }
  }

  /// 64 uniform bits.
  uint64_t bits(uint64_t index) const {
    const auto words = block(index);
    return uint64_t{words[1]} << 32 | words[0];
  }

  /// Uniform in [0, 1), 53 bits.
  double uniform(uint64_t index) const { return to_unit(bits(index)); }

  /// Uniform integer in [0, n), n >= 1; the bias is below n / 2^64.
  uint64_t below(uint64_t index, uint64_t n) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(bits(index)) * n >> 64);
  }

  /// Standard normal, by Box and Muller.
  double normal(uint64_t index) const {
    const auto words = block(index);
    const double radius = 1.0 - to_unit(uint64_t{words[1]} << 32 | words[0]);  // in (0, 1]
    const double angle = to_unit(uint64_t{words[3]} << 32 | words[2]);
    return std::sqrt(-2.0 * std::log(radius)) * std::cos(2.0 * std::numbers::pi * angle);
  }

 private:
  static double to_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

  std::array<uint32_t, 4> block(uint64_t index) const {
    return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                   static_cast<uint32_t>(name_), static_cast<uint32_t>(name_ >> 32)},
                  {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
  }

  uint64_t seed_;
  uint64_t name_ = 0xCBF29CE484222325;
};

}  // namespace weft
