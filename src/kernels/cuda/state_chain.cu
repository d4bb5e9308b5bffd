// The state of kinds with one decay a token, carried over the chunks straight from the keys and
// values: what a chunk adds is computed on the way and never leaves the registers.
#include "src/kernels/cuda/state_carry.cuh"

namespace weft::cuda::state {
namespace {

constexpr int kColumns = 32;  // of the state that a block carries, with 64 rows
constexpr int kStages = 4;    // chunks whose tokens are on their way or here

template <class T>
struct ChainShared {
  struct Stage {
    Tile<T> x;
    Tile<T, kTile, kColumns> y;
  };
  Stage stages[kStages];
};

template <class T, class E>
struct ChainArgs {
  Rows<const T> x, y;
  ChunkLogs logs;
  const float* decays;  // of token_decays
  CarryRange range;
  ChunkMatrices<E> before;
  const float* start;
  float* end;
};

/// A warp a chunk.
__global__ void __launch_bounds__(kThreads)
    token_decays(const __grid_constant__ Shard s, int64_t heads, CarryRange range, float alpha,
                 bool leaving, float* out) {
  const int64_t i = thread_index() / kWarp;
  if (i >= heads * range.count) return;
  const ChunkOf chunk = ChunkOf::at(s, static_cast<int>(i), range.first, range.count);
  TokenDecays::for_tokens(s, chunk, [&](int t, double place, double end) {
    out[i * kTile + t] = alpha * (leaving ? decay_between(end, place) : decay_between(place, 0));
  });
}

/// A block a head and tile of 64 x kColumns of its state.
template <class T, class E>
__global__ void __launch_bounds__(kThreads)
    chain(const __grid_constant__ Shard s, const __grid_constant__ ChainArgs<T, E> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ChainShared<T>*>(memory);
  using Part = TileSum<T, kColumns>;
  const int columns = (s.value_dim + kColumns - 1) / kColumns;
  const int tiles = tiles_of(s.key_dim) * columns;
  const int bh = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const int k0 = tile / columns * kTile, v0 = tile % columns * kColumns;
  const CarryRange& range = a.range;
  const auto chunk_at = [&](int i) { return range.backwards ? range.count - 1 - i : i; };
  const auto fetch = [&](int i) {
    if (i < range.count) {
      auto& stage = shared.stages[i % kStages];
      const int begin = (range.first + chunk_at(i)) * kTile, count = min(kTile, s.tokens - begin);
      load_tile(stage.x, a.x.view(bh / s.heads, bh % s.heads, begin, count), 0, k0);
      load_tile(stage.y, a.y.view(bh / s.heads, bh % s.heads, begin, count), 0, v0);
    }
    close_copies();
  };
  // The decays of the tokens whose packs of y the thread loads, and of the chunk: read while the
  // chunk before it is computed.
  constexpr int kPacks = kTile * kColumns / kPack<T> / kThreads;
  float decay[kPacks];
  double log = 0;
  const auto read_ahead = [&](int i) {
    const int n = chunk_at(i);
    for_packs<T, kTile, kColumns>([&](int p, int row, int) {
      decay[p] = a.decays[(static_cast<int64_t>(bh) * range.count + n) * kTile + row];
    });
    log = a.logs.at(s, bh, range.first + n, 0);
  };

  const int64_t size = static_cast<int64_t>(s.key_dim) * s.value_dim;
  Part state;
  if (a.start != nullptr) {
    const View<const float> start{a.start + bh * size, s.value_dim, s.key_dim, s.value_dim, false};
    for_places<Part>(
        [&](int i, int c, int k, int v) { state.at[i][c] = start.value(k0 + k, v0 + v); });
  }
#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) fetch(i);
  if (range.count > 0) read_ahead(0);
  for (int i = 0; i < range.count; ++i) {
    auto& stage = shared.stages[i % kStages];
    await_copies<kStages - 2>();
    for_packs<T, kTile, kColumns>([&](int p, int row, int column) {  // its own: they are here
      float v[kPack<T>];
      load<kPack<T>>(&stage.y.at(row, column), v);
#pragma unroll
      for (float& x : v) x *= decay[p];
      store<kPack<T>>(&stage.y.at(row, column), v);
    });
    const float through = expf(static_cast<float>(log));
    __syncthreads();  // and nobody reads the chunk before it any more
    fetch(i + kStages - 1);
    if (i + 1 < range.count) read_ahead(i + 1);
    if (a.before.data != nullptr) {
      store_to(from_row(a.before.view(s, bh, chunk_at(i)), k0), v0, state);
    }
    Part added;
    add_product<true, false>(added, stage.x, stage.y);
    for_places<Part>([&](int r, int c, int, int) {
      state.at[r][c] = fmaf(through, state.at[r][c], added.at[r][c]);
    });
  }
  if (a.end == nullptr) return;
  const View<float> end{a.end + bh * size, s.value_dim, s.key_dim, s.value_dim, false};
  store_to(from_row(end, k0), v0, state);
}

}  // namespace

template <class T>
void chain_decays(const Shard& s, int64_t heads, const ChunkProducts<T>& products, CarryRange range,
                  float* decays, Stream& stream) {
  launch(token_decays, ceil_div(heads * range.count * kWarp, kThreads), 0, stream, s, heads, range,
         products.alpha, products.leaving, decays);
}

template <class T, class E>
void chain_states(const Shard& s, int64_t heads, ChunkLogs logs, const ChunkProducts<T>& products,
                  const float* decays, CarryRange range, ChunkMatrices<E> before,
                  const float* start, float* end, Stream& stream) {
  launch(chain<T, E>, heads * tiles_of(s.key_dim) * ceil_div(s.value_dim, kColumns),
         sizeof(ChainShared<T>), stream, s,
         ChainArgs<T, E>{products.x, products.y, logs, decays, range, before, start, end});
}

template void chain_decays(const Shard&, int64_t, const ChunkProducts<float>&, CarryRange, float*,
                           Stream&);
template void chain_decays(const Shard&, int64_t, const ChunkProducts<bf16>&, CarryRange, float*,
                           Stream&);
template void chain_states(const Shard&, int64_t, ChunkLogs, const ChunkProducts<float>&,
                           const float*, CarryRange, ChunkMatrices<float>, const float*, float*,
                           Stream&);
template void chain_states(const Shard&, int64_t, ChunkLogs, const ChunkProducts<bf16>&,
                           const float*, CarryRange, ChunkMatrices<float>, const float*, float*,
                           Stream&);
template void chain_states(const Shard&, int64_t, ChunkLogs, const ChunkProducts<bf16>&,
                           const float*, CarryRange, ChunkMatrices<bf16>, const float*, float*,
                           Stream&);

}  // namespace weft::cuda::state
