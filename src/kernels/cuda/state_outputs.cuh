// Outputs of the diagonal kinds: what comes from the token's own chunk, and what from the state.
#pragma once

#include "src/kernels/cuda/state_carry.cuh"

namespace weft::cuda::state {

template <class T>
struct OutputArgs {
  Rows<const T> q, k, v;
  Rows<float> out;
  float scale;
};

/// out = scores v inside every chunk.
template <class T>
void local_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args, Stream& stream);

/// out += (decay from the chunk's start o scale q) S for the chunks of the range, S entering each.
template <class T>
void entering_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args,
                      ChunkMatrices<const T> states, CarryRange range, Stream& stream);

}  // namespace weft::cuda::state
