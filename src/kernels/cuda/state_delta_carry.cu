#include "src/kernels/cuda/state_delta.cuh"

namespace weft::cuda::state {
namespace {

constexpr int kColumns = 32;  // of the state that a block carries, with all its rows

/// `KeyTiles` tiles of 64 rows of the state; `Stages` chunks whose keys are on their way or here.
template <class T, int KeyTiles, int Stages>
struct CarryShared {
  struct Keys {
    Tile<T, kTile, KeyTiles * kTile> reads, writes;
  };
  Keys keys[Stages];
  Tile<T, kTile, kColumns> state[KeyTiles];
  Tile<T, kTile, kColumns> rows;
};

template <class T>
struct CarryArgs {
  ChunkLogs logs;
  DeltaPiece<T> piece;
  DeltaColumns matrices[2];
};

/// Starts to copy the keys of a chunk.
template <class T, class Keys>
__device__ void fetch(const DeltaPiece<T>& piece, int64_t bh, int n, Keys& keys) {
  constexpr int kElements = kPack<T>;
  const int packs = piece.reads.width / kElements;
  const View<T> reads = piece.reads.view(bh, n), writes = piece.writes.view(bh, n);
  for (int i = threadIdx.x; i < kTile * packs; i += kThreads) {
    const int row = i / packs, column = i % packs * kElements;
    copy_beside(&keys.reads.at(row, column), &reads.at(row, column));
    copy_beside(&keys.writes.at(row, column), &writes.at(row, column));
  }
  close_copies();
}

/// A block a head and kColumns columns of one of its matrices.
template <class T, int KeyTiles, int Stages>
__global__ void __launch_bounds__(kThreads)
    carry(const __grid_constant__ Shard s, const __grid_constant__ CarryArgs<T> a) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<CarryShared<T, KeyTiles, Stages>*>(memory);
  using Part = TileSum<T, kColumns>;
  const auto tiles_in = [](int width) { return (width + kColumns - 1) / kColumns; };
  const int first_tiles = tiles_in(a.matrices[0].width);
  const int tiles = first_tiles + tiles_in(a.matrices[1].width);
  const int64_t bh = static_cast<int>(blockIdx.x) / tiles;
  int tile = static_cast<int>(blockIdx.x) % tiles;
  const DeltaColumns& m = a.matrices[tile < first_tiles ? 0 : 1];
  if (tile >= first_tiles) tile -= first_tiles;
  const int v0 = tile * kColumns;
  const CarryRange& range = a.piece.range;
  const auto chunk_at = [&](int i) { return range.backwards ? range.count - 1 - i : i; };

  /// f(key, value, number) of the state, for those that are there.
  Part state[KeyTiles];
  const auto for_state = [&](auto&& f) {
#pragma unroll
    for (int kt = 0; kt < KeyTiles; ++kt) {
      for_each(state[kt], [&](int k, int v, float& number) {
        if (kt * kTile + k < s.key_dim && v0 + v < m.width) f(kt * kTile + k, v0 + v, number);
      });
    }
  };
  const int64_t size = static_cast<int64_t>(s.key_dim) * m.width;
  for_state([&](int k, int v, float& number) {
    if (m.start != nullptr) {
      number = m.start[bh * size + static_cast<int64_t>(k) * m.width + v];
    } else {
      number = m.identity && k == v ? 1.0f : 0.0f;
    }
  });
  const auto matrix_of = [&]<class E>(const ChunkMatrices<E>& matrices, int n) {
    return View<E>{matrices.data + bh * matrices.head + n * size, m.width, s.key_dim, m.width,
                   matrices.packs};
  };
  // What a chunk adds, read while the one before it is computed.
  Part next_rows, next_added[KeyTiles];
  float next_through = 0;
  const auto read_ahead = [&](int n) {
    next_through = expf(static_cast<float>(a.logs.at(s, bh, range.first + n, 0)));
    if (m.with_rows) read_from(a.piece.rows.view(bh, n), v0, next_rows);
    if (m.added.data == nullptr) return;
    const View<const float> added = matrix_of(m.added, n);
#pragma unroll
    for (int kt = 0; kt < KeyTiles; ++kt) {
      read_from(from_row(added, kt * kTile), v0, next_added[kt]);
    }
  };
  if (range.count > 0) read_ahead(chunk_at(0));
  if (Stages > 1 && range.count > 0) fetch(a.piece, bh, chunk_at(0), shared.keys[0]);
  for (int i = 0; i < range.count; ++i) {
    const int n = chunk_at(i);
    auto& keys = shared.keys[i % Stages];
    if (Stages == 1) {
      __syncthreads();  // the last chunk's keys are read
      fetch(a.piece, bh, n, keys);
    }
    Part rows = next_rows, added[KeyTiles];
    const float through = next_through;
#pragma unroll
    for (int kt = 0; kt < KeyTiles; ++kt) {
      added[kt] = next_added[kt];
      for_each(state[kt], [&](int k, int v, float number) {
        shared.state[kt].at(k, v) = from_float<T>(number);
      });
    }
    if (m.before.data != nullptr) {
      const View<float> before = matrix_of(m.before, n);
#pragma unroll
      for (int kt = 0; kt < KeyTiles; ++kt) {
        store_to(from_row(before, kt * kTile), v0, state[kt]);
      }
    }
    await_copies<0>();
    __syncthreads();
    if (Stages > 1 && i + 1 < range.count) {  // nobody reads the other keys any more
      fetch(a.piece, bh, chunk_at(i + 1), shared.keys[(i + 1) % Stages]);
    }
    if (i + 1 < range.count) read_ahead(chunk_at(i + 1));
#pragma unroll
    for (int kt = 0; kt < KeyTiles; ++kt) {
      if (kt * kTile >= s.key_dim) continue;  // nothing was fetched
      rows.template add<false, false>(keys.reads.data + kt * kTile, keys.reads.kStep,
                                      shared.state[kt].data, shared.state[kt].kStep);
    }
    if (m.keep_rows) store_to(a.piece.rows.view(bh, n), v0, rows);
    for_each(rows, [&](int r, int v, float x) { shared.rows.at(r, v) = from_float<T>(x); });
    __syncthreads();
#pragma unroll
    for (int kt = 0; kt < KeyTiles; ++kt) {
      if (kt * kTile >= s.key_dim) continue;
#pragma unroll
      for (int r = 0; r < Part::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Part::kColumns; ++c) {
          state[kt].at[r][c] = fmaf(through, state[kt].at[r][c], added[kt].at[r][c]);
        }
      }
      state[kt].template add<true, false>(keys.writes.data + kt * kTile, keys.writes.kStep,
                                          shared.rows.data, shared.rows.kStep);
    }
  }
  if (m.end == nullptr) return;
  for_state([&](int k, int v, float number) {
    const int64_t at = m.transposed ? static_cast<int64_t>(v) * m.width + k
                                    : static_cast<int64_t>(k) * m.width + v;
    m.end[bh * size + at] = number;
  });
}

}  // namespace

template <class T>
void carry_delta(const Shard& s, int64_t heads, ChunkLogs logs, const DeltaPiece<T>& piece,
                 const DeltaColumns& state, const DeltaColumns& transition, Stream& stream) {
  const int64_t blocks =
      heads * (ceil_div(state.width, kColumns) + ceil_div(transition.width, kColumns));
  const auto run = [&](auto key_tiles, auto stages) {
    constexpr int kTiles = decltype(key_tiles)::value, kStages = decltype(stages)::value;
    launch(carry<T, kTiles, kStages>, blocks, sizeof(CarryShared<T, kTiles, kStages>), stream, s,
           CarryArgs<T>{logs, piece, {state, transition}});
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 4> kFour;
  WEFT_CHECK(s.key_dim <= kDeltaKeys, s.key_dim, " keys");
  if (s.key_dim <= kTile) {
    run(kOne, kTwo);
  } else if (s.key_dim <= 2 * kTile) {
    run(kTwo, kTwo);
  } else {  // of 256 keys in f32 there is room for one chunk
    run(kFour, std::integral_constant < int, sizeof(T) == sizeof(float) ? 1 : 2 > {});
  }
}

template void carry_delta(const Shard&, int64_t, ChunkLogs, const DeltaPiece<float>&,
                          const DeltaColumns&, const DeltaColumns&, Stream&);
template void carry_delta(const Shard&, int64_t, ChunkLogs, const DeltaPiece<bf16>&,
                          const DeltaColumns&, const DeltaColumns&, Stream&);

}  // namespace weft::cuda::state
