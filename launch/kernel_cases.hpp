// The table of kernels that `weft bench kernels` measures: every kernel of src/kernels, some in
// several forms. A new kernel is a case here; a test compares the table with the dispatch layer.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launch/kernel_workbench.hpp"

namespace weft {

struct KernelCase {
  const char* kernel;  // as the dispatch layer calls it
  std::string form;    // what tells it from other cases of the same kernel; empty: nothing
  /// Makes the inputs at the workbench's sizes, runs what has to run before, and gives the call.
  std::function<KernelUse(Workbench&)> make;
  /// Whether a device leaves the call's work to another kernel; empty: none does.
  std::function<bool(Device, DType)> idle = {};
};

/// All of them, in the order of the families below.
const std::vector<KernelCase>& kernel_cases();

std::vector<KernelCase> product_cases();       // matmul
std::vector<KernelCase> token_cases();         // norms, SwiGLU, embedding, copies, rotary embedding
std::vector<KernelCase> attention_cases();     // blocks, and rows of scores
std::vector<KernelCase> around_mixer_cases();  // feature maps, gated norm, short convolution, gates
std::vector<KernelCase> state_cases();         // the passes of every kind, and their combination
std::vector<KernelCase> loss_cases();          // cross-entropy and the optimizer

}  // namespace weft
