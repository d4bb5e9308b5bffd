// From an args struct to the twin that runs it.
#pragma once

#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

/// Runs weft::cpu::`kernel`(args) in the order of `stream`. On the meta device nothing runs; every
/// stream is told the call's cost.
#define WEFT_DISPATCH(kernel, args, stream)                                             \
  do {                                                                                  \
    (stream).trace(#kernel, cost(args));                                                \
    if ((stream).device() == ::weft::Device::cpu) {                                     \
      (stream).enqueue([args] { ::weft::cpu::kernel(args); });                          \
    } else {                                                                            \
      WEFT_CHECK((stream).device() == ::weft::Device::meta, #kernel " has no twin on ", \
                 name((stream).device()));                                              \
    }                                                                                   \
  } while (0)
