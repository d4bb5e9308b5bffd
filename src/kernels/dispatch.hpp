// From an args struct to the twin that runs it.
#pragma once

#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

/// Runs weft::cpu::`kernel`(args) in the order of `stream`, or enqueues weft::cuda::`kernel` on a
/// CUDA stream. On the meta device nothing runs. A stream that traces is told of the call.
#define WEFT_DISPATCH(kernel, args, stream)                                             \
  do {                                                                                  \
    if ((stream).traces()) (stream).trace({#kernel, cost(args), products(args)});       \
    if ((stream).device() == ::weft::Device::cpu) {                                     \
      (stream).enqueue([args] { ::weft::cpu::kernel(args); });                          \
    } else if ((stream).device() == ::weft::Device::cuda) {                             \
      ::weft::cuda::kernel(args, stream);                                               \
    }                                                                                   \
  } while (0)
