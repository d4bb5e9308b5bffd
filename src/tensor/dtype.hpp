// Element types, and the bridge from a run-time DType to a C++ type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "src/core/check.hpp"

namespace weft {

enum class DType : uint8_t { f64, f32, bf16, i64, i32, u8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

/// The type of states, log-sum-exps, accumulators and reductions: the wider of f32 and `dtype`.
constexpr DType accumulator_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, int64_t>) return DType::i64;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, uint8_t>) return DType::u8;
}

/// Calls `f` with a value of the C++ type of a floating dtype the CPU computes in.
///   visit_float(x.dtype, [&](auto zero) { using T = decltype(zero); ... });
template <class F>
auto visit_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f32:
      return f(float{});
    default:
      break;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no CPU arithmetic in ", name(dtype)));
}

}  // namespace weft
