// What the CUDA twin of bf16 attention keeps in scratch. Part of every build, so that each can say
// what a call on a GPU will need.
#pragma once

#include "src/kernels/attention.hpp"

namespace weft::cuda {

/// Arrays of one call; null without memory. Forward and backward use the same bytes.
struct AttentionScratch {
  AttentionScratch(std::byte* memory, const AttentionSizes& sizes);

  std::byte* workspace = nullptr;  // cuDNN's, or what own kernels need to know of the queries
  int64_t workspace_bytes = 0;
  std::byte* out = nullptr;    // bf16 [B, Tq, H, D]: of this block alone; its stand-in going back
  float* lse = nullptr;        // [B, H, Tq]
  std::byte* dq = nullptr;     // bf16 [B, Tq, H, D]
  std::byte* dk = nullptr;     // bf16 [B, Tk, G, D]
  std::byte* dv = nullptr;     // bf16 [B, Tk, G, D]
  int32_t* lengths = nullptr;  // [2 B]
  int64_t bytes = 0;
};

}  // namespace weft::cuda
