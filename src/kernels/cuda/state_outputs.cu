#include "src/kernels/cuda/state_outputs.cuh"

#include "src/kernels/cuda/state_pairs.cuh"

namespace weft::cuda::state {
namespace {

template <class T>
struct TokenShared {
  TokenDecays decays;
  Tile<T> a, b, scores;
};

/// out = scores v. All threads have written the scores; `b` is free behind a barrier.
template <class T>
__device__ void spread_scores(const Shard& s, const OutputArgs<T>& a, const ChunkOf& chunk,
                              const Tile<T>& scores, Tile<T>& b) {
  const View<const T> v = a.v.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    __syncthreads();
    load_tile(b, v, 0, v0);
    tiles_ready();
    TileSum<T> sum;
    add_product<false, false>(sum, scores, b);
    store_to(out, v0, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    local_tokens(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<TokenShared<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  shared.decays.load(s, chunk);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = a.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  TileSum<T> sum;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, q, 0, k0);
    load_tile(shared.b, k, 0, k0);
    tiles_ready();
    add_product<false, true>(sum, shared.a, shared.b);
  }
  for_each(sum, [&](int r, int j, float value) {
    const float score = j <= r ? a.scale * value * shared.decays.pair(r, j) : 0.0f;
    shared.scores.at(r, j) = from_float<T>(score);
  });
  spread_scores(s, a, chunk, shared.scores, shared.b);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    local_lanes(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<LaneTiles<T>*>(memory);
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(blockIdx.x), 0, s.chunks);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = a.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  TileSum<T> before;
  InsideScores inside;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.q, q, 0, k0);
    load_tile(shared.k, k, 0, k0);
    shared.decays.load(s, chunk, k0);
    tiles_ready();
    shared.decay_to_starts();
    tiles_ready();
    shared.add_scores_before(before);
    inside.add(shared);
  }
  __syncthreads();
  store_scores(before, inside, a.scale, shared.q);
  spread_scores(s, a, chunk, shared.q, shared.k);
}

template <class T, class Decays>
struct EnteringShared {
  Decays decays;
  Tile<T> q, state;
};

/// A block a chunk and 64 columns.
template <class T, class Decays>
__global__ void __launch_bounds__(kThreads, 2)
    read_entering(const __grid_constant__ Shard s, const __grid_constant__ OutputArgs<T> a,
                  ChunkMatrices<const T> states, CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<EnteringShared<T, Decays>*>(memory);
  const int tiles = tiles_of(s.value_dim);
  const int v0 = static_cast<int>(blockIdx.x) % tiles * kTile;
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x) / tiles, range.first, range.count);
  const View<const T> q = a.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> state = states.view(s, chunk.head(s), chunk.index - range.first);
  if constexpr (!Decays::kLanes) shared.decays.load(s, chunk);
  TileSum<T> sum;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    if constexpr (Decays::kLanes) shared.decays.load(s, chunk, k0);
    load_tile(shared.q, q, 0, k0,
              [&](int t, int d) { return a.scale * shared.decays.enter(t, d); });
    load_tile(shared.state, state, k0, v0);
    tiles_ready();
    add_product<false, false>(sum, shared.q, shared.state);
  }
  const View<float> out = a.out.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  add_to(out, v0, sum);
}

}  // namespace

template <class T>
void local_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args, Stream& stream) {
  if (s.lanes > 1) {
    launch(local_lanes<T>, heads * s.chunks, sizeof(LaneTiles<T>), stream, s, args);
  } else {
    launch(local_tokens<T>, heads * s.chunks, sizeof(TokenShared<T>), stream, s, args);
  }
}

template <class T>
void entering_outputs(const Shard& s, int64_t heads, const OutputArgs<T>& args,
                      ChunkMatrices<const T> states, CarryRange range, Stream& stream) {
  const int64_t blocks = heads * range.count * tiles_of(s.value_dim);
  if (s.lanes > 1) {
    launch(read_entering<T, LaneDecays>, blocks, sizeof(EnteringShared<T, LaneDecays>), stream, s,
           args, states, range);
  } else {
    launch(read_entering<T, TokenDecays>, blocks, sizeof(EnteringShared<T, TokenDecays>), stream, s,
           args, states, range);
  }
}

template void local_outputs(const Shard&, int64_t, const OutputArgs<float>&, Stream&);
template void local_outputs(const Shard&, int64_t, const OutputArgs<bf16>&, Stream&);
template void entering_outputs(const Shard&, int64_t, const OutputArgs<float>&,
                               ChunkMatrices<const float>, CarryRange, Stream&);
template void entering_outputs(const Shard&, int64_t, const OutputArgs<bf16>&,
                               ChunkMatrices<const bf16>, CarryRange, Stream&);

}  // namespace weft::cuda::state
