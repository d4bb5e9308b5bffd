// Gradients of the kinds with one decay a token in bf16. One sweep over a segment carries the state
// and makes dq, one in the other direction carries its gradient and makes dk and dv.
#include "src/kernels/cuda/state_segments.cuh"

namespace weft::cuda::state {
namespace {

template <int K, int V, int Warps>
struct QueryShared {
  struct Stage {
    ChunkPlaces places;
    Panel<V> dout, v;
    Panel<K> k, q;
  };
  Stage stages[2];
  Tile<bf16, K, V> state;
  Tile<bf16> dscores;
  float leave[kTile];
  float read[WarpSum<kTile, K, Warps>::kAcross][kTile];  // q . dq of what enters
};

/// Of token t, over the parts that warps have.
template <int Parts>
__device__ float sum_of(const float (&parts)[Parts][kTile], int t) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Parts; ++i) sum += parts[i][t];
  return sum;
}

/// The part of a tile that a matrix has.
template <int Threads, int K, int V>
__device__ void copy_state(const Tile<bf16, K, V>& tile, const View<bf16>& to) {
  if (to.packs) {
    for_packs_of<Threads, K, V>([&](int, int row, int column) {
      if (!to.has(row, column)) return;
      *reinterpret_cast<uint4*>(&to.at(row, column)) =
          *reinterpret_cast<const uint4*>(&tile.at(row, column));
    });
  } else {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < K * V; i += Threads) {
      if (to.has(i / V, i % V)) to.at(i / V, i % V) = tile.at(i / V, i % V);
    }
  }
}

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    query_gradients(const __grid_constant__ Segmented g,
                    const __grid_constant__ SegmentGradientArgs a) {
  constexpr int kOfBlock = Warps * kWarp;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<QueryShared<K, V, Warps>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const bool trained = a.dlog_decay != nullptr;
  const auto fetch = [&](int n) {
    if (n < at.count) {
      auto& stage = shared.stages[n % 2];
      g.load(stage.places, at, n);
      load_panel<kOfBlock>(stage.dout, g.rows(a.dout, at, n));
      load_panel<kOfBlock>(stage.v, g.rows(a.v, at, n));
      load_panel<kOfBlock>(stage.k, g.rows(a.k, at, n));
      if (trained) load_panel<kOfBlock>(stage.q, g.rows(a.q, at, n));
    }
    close_copies();
  };
  fetch(0);
  WarpSum<K, V, Warps> state;
  state.load_from(g.state(at));
  for (int n = 0; n < at.count; ++n) {
    state.round_to(shared.state);
    await_copies<0>();
    __syncthreads();  // the chunk and the state are there, nobody reads the chunk before it any
                      // more
    fetch(n + 1);
    const auto& [places, dout, v, k, q] = shared.stages[n % 2];
    if (threadIdx.x < kTile) shared.leave[threadIdx.x] = places.leave(threadIdx.x);
    if (trained) copy_state<kOfBlock>(shared.state, a.entering.view(g.s, at.bh, at.first + n));
    using Scores = WarpSum<kTile, kTile, Warps>;
    Scores dscores;
    dscores.template add<false, true>(dout, v);
    for_pair_decays<Scores>(places, a.scale, [&](int i, int half, int c, int e, float decay) {
      dscores.at[i][c][2 * half + e] *= decay;
    });
    dscores.round_to(shared.dscores);
    WarpSum<kTile, K, Warps> dq;
    dq.template add<false, true>(dout, shared.state);
    dq.for_rows([&](int i, int half, int r) { dq.scale_row(i, half, a.scale * places.enter(r)); });
    if (trained) {
      dq.sum_rows(&shared.read[0][0], [&](int i, int half) { return dq.dot(i, half, q); });
    }
    __syncthreads();  // the scores are there, nobody reads the state any more
    dq.template add<false, false>(shared.dscores, k);
    dq.store_to(g.rows(a.dq, at, n));
    if (trained && threadIdx.x < g.tokens(at, n)) {
      *a.dlog(at, n, threadIdx.x) = sum_of(shared.read, threadIdx.x);
    }
    state *= places.through();
    state.add_scaled(k, v, [&](int t) { return shared.leave[t]; });
  }
}

template <int K, int V, int Warps>
struct KeyShared {
  using Scores = WarpSum<kTile, kTile, Warps>;
  struct Stage {
    ChunkPlaces places;
    Panel<K> q, k;
    Panel<V> v, dout;
  };
  Stage stages[2];
  Tile<bf16, K, V> costate, state;
  Tile<bf16> scores, dscores;
  float enter[kTile], leave[kTile];
  float rows[Scores::kAcross][kTile], columns[Scores::kDown][kTile];  // sums of the pairs
  float written[WarpSum<kTile, K, Warps>::kAcross][kTile];            // k . dk of what leaves
  float passing[Warps];                                               // <S, D>
};

/// The scores and their gradients, and the sums of the products of both over pairs of different
/// tokens, by rows and by columns.
template <int K, int V, int Warps>
__device__ void load_scores(const SegmentGradientArgs& a, int stage_index,
                            KeyShared<K, V, Warps>& shared) {
  using Scores = WarpSum<kTile, kTile, Warps>;
  const auto& [places, q, k, v, dout] = shared.stages[stage_index];
  Scores scores, products;
  scores.template add<false, true>(q, k);
  products.template add<false, true>(dout, v);
  float rows[Scores::kRows][2] = {}, columns[Scores::kColumns][2] = {};
  for_pair_decays<Scores>(places, a.scale, [&](int i, int half, int c, int e, float decay) {
    float &score = scores.at[i][c][2 * half + e], &product = products.at[i][c][2 * half + e];
    score *= decay;
    const bool own = Scores::row(i, half) == Scores::column(c) + e;
    const float both = own ? 0.0f : score * product;
    rows[i][half] += both;
    columns[c][e] += both;
    product *= decay;
  });
  scores.round_to(shared.scores);
  products.round_to(shared.dscores);
  if (a.dlog_decay == nullptr) return;
  Scores::sum_rows(&shared.rows[0][0], [&](int i, int half) { return rows[i][half]; });
#pragma unroll
  for (int c = 0; c < Scores::kColumns; ++c) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = columns[c][e];
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
      }
      if (threadIdx.x % kWarp < 4) shared.columns[Scores::down()][Scores::column(c) + e] = sum;
    }
  }
}

/// Copies a matrix to a tile beside the computation, each thread what dot_own() has it read.
template <int Threads, int K, int V>
__device__ void load_own(Tile<bf16, K, V>& tile, const View<bf16>& state) {
  for_packs_of<Threads, K, V>([&](int, int row, int column) {
    bf16* to = &tile.at(row, column);
    if (state.packs) {
      const bool there = state.has(row, column);
      copy_or_zero(to, there ? &state.at(row, column) : state.data, there);
    } else {
      for (int j = 0; j < kPack<bf16>; ++j) to[j] = from_float<bf16>(state.value(row, column + j));
    }
  });
}

/// A thread's part of <a, b>.
template <int Threads, int K, int V>
__device__ float dot_own(const Tile<bf16, K, V>& a, const Tile<bf16, K, V>& b) {
  float sum = 0;
  for_packs_of<Threads, K, V>([&](int, int row, int column) {
    float first[kPack<bf16>], second[kPack<bf16>];
    load<kPack<bf16>>(&a.at(row, column), first);
    load<kPack<bf16>>(&b.at(row, column), second);
#pragma unroll
    for (int j = 0; j < kPack<bf16>; ++j) sum = fmaf(first[j], second[j], sum);
  });
  return sum;
}

template <int K, int V, int Warps>
__global__ void __launch_bounds__(Warps* kWarp)
    key_gradients(const __grid_constant__ Segmented g,
                  const __grid_constant__ SegmentGradientArgs a) {
  constexpr int kOfBlock = Warps * kWarp;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<KeyShared<K, V, Warps>*>(memory);
  const Segmented::At at = g.at(static_cast<int>(blockIdx.x));
  const bool trained = a.dlog_decay != nullptr;
  const auto fetch = [&](int n) {
    if (n >= 0) {
      auto& stage = shared.stages[n % 2];
      g.load(stage.places, at, n);
      load_panel<kOfBlock>(stage.q, g.rows(a.q, at, n));
      load_panel<kOfBlock>(stage.k, g.rows(a.k, at, n));
      load_panel<kOfBlock>(stage.v, g.rows(a.v, at, n));
      load_panel<kOfBlock>(stage.dout, g.rows(a.dout, at, n));
    }
    close_copies();
  };
  fetch(at.count - 1);
  WarpSum<K, V, Warps> costate;
  costate.load_from(g.state(at));
  for (int n = at.count - 1; n >= 0; --n) {
    costate.round_to(shared.costate);
    await_copies<0>();
    __syncthreads();  // the chunk and the costate are there, nobody reads the chunk before any more
    if (trained) {
      load_own<kOfBlock>(shared.state, a.entering.view(g.s, at.bh, at.first + n));
    }
    close_copies();
    fetch(n - 1);
    const auto& [places, q, k, v, dout] = shared.stages[n % 2];
    if (threadIdx.x < kTile) {
      shared.enter[threadIdx.x] = a.scale * places.enter(threadIdx.x);
      shared.leave[threadIdx.x] = places.leave(threadIdx.x);
    }
    load_scores(a, n % 2, shared);
    WarpSum<kTile, V, Warps> dv;
    dv.template add<false, false>(k, shared.costate);
    dv.for_rows([&](int i, int half, int t) { dv.scale_row(i, half, places.leave(t)); });
    WarpSum<kTile, K, Warps> dk;
    dk.template add<false, true>(v, shared.costate);
    dk.for_rows([&](int i, int half, int t) { dk.scale_row(i, half, places.leave(t)); });
    if (trained) {
      dk.sum_rows(&shared.written[0][0], [&](int i, int half) { return dk.dot(i, half, k); });
      await_copies<1>();  // its own of the state: not yet those of the next chunk
      const float part = warp_reduce(dot_own<kOfBlock>(shared.state, shared.costate), cuda::Sum{});
      if (threadIdx.x % kWarp == 0) shared.passing[threadIdx.x / kWarp] = part;
    }
    __syncthreads();  // the scores are there, nobody reads the costate any more
    dv.template add<true, false>(shared.scores, dout);
    dv.store_to(g.rows(a.dv, at, n));
    dk.template add<true, false>(shared.dscores, q);
    dk.store_to(g.rows(a.dk, at, n));
    if (trained) {
      const int64_t chunk = at.bh * g.s.chunks + at.first + n;
      if (const int t = threadIdx.x; t < kTile) {
        a.parts.tokens[chunk * kTile + t] = {sum_of(shared.rows, t) - sum_of(shared.columns, t),
                                             sum_of(shared.written, t)};
      } else if (t == kTile) {
        float sum = 0;
        for (const float part : shared.passing) sum += part;
        a.parts.passing[chunk] = sum;
      }
    }
    costate *= places.through();
    costate.add_scaled(q, dout, [&](int t) { return shared.enter[t]; });
  }
  if (a.dh0 != nullptr && at.index == 0) costate.store_to(g.end(a.dh0, at));
}

/// A thread a token: dlog_decay, in whose place is what the token reads, from that and the parts.
__global__ void __launch_bounds__(kThreads)
    decay_gradients(const __grid_constant__ Segmented g,
                    const __grid_constant__ SegmentGradientArgs a) {
  struct Token {
    double pairs, writes, reads;
    int document;  // of the chunk's
  };
  constexpr int kChunks = kThreads / kTile;
  __shared__ Token tokens[kChunks][kTile];
  const int local = static_cast<int>(threadIdx.x) / kTile, t = threadIdx.x % kTile;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kChunks + local;
  const bool has_chunk = i < g.heads * g.s.chunks;
  const ChunkOf chunk = ChunkOf::at(g.s, has_chunk ? static_cast<int>(i) : 0, 0, g.s.chunks);
  const bool has = has_chunk && t < chunk.count;
  float* out = a.dlog_decay + chunk.b * a.decay_batch + (chunk.begin + t) * a.decay_token +
               chunk.h * a.decay_head;
  if (has) {
    const float2 parts = a.parts.tokens[i * kTile + t];
    tokens[local][t] = {parts.x, parts.y, *out, g.places[i].resets(t)};
  }
  __syncthreads();
  if (!has) return;
  const auto& all = tokens[local];
  const int document = all[t].document;
  double sum = static_cast<double>(g.places[i].through()) * a.parts.passing[i];
  for (int u = 0; u < t; ++u) sum += all[u].writes;
  for (int u = t; u < chunk.count; ++u) sum += all[u].reads;
  // Pairs that end at t or later less those that begin there are the pairs that cross t. None
  // crosses the start of a document, nor of the chunk: what the sum leaves there is rounding.
  if (t > 0 && all[t - 1].document == document) {
    for (int u = t; u < chunk.count && all[u].document == document; ++u) sum += all[u].pairs;
  }
  *out = static_cast<float>(sum);
}

}  // namespace

void segment_query_gradients(const Segmented& g, const SegmentGradientArgs& args, Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    launch_warps<kWarps>(query_gradients<k, v, kWarps>, g.heads * g.segments,
                         sizeof(QueryShared<k, v, kWarps>), stream, g, args);
  });
}

void segment_key_gradients(const Segmented& g, const SegmentGradientArgs& args, Stream& stream) {
  constexpr int kWarps = 8;
  with_widths(g.s, [&](auto k, auto v) {
    static_assert(sizeof(KeyShared<k, v, kWarps>) <= 227 * 1024, "of a block on Hopper");
    launch_warps<kWarps>(key_gradients<k, v, kWarps>, g.heads * g.segments,
                         sizeof(KeyShared<k, v, kWarps>), stream, g, args);
  });
  if (args.dlog_decay == nullptr) return;
  launch(decay_gradients, ceil_div(g.heads * g.s.chunks * kTile, kThreads), 0, stream, g, args);
}

}  // namespace weft::cuda::state
