#include "src/kernels/cuda/state_carry.cuh"

namespace weft::cuda::state {

Shard Shard::of(const StateTokens& tokens) {
  const Tensor &k = tokens.k, &log = tokens.log_decay, &beta = tokens.beta, &at = tokens.positions;
  constexpr int64_t kMost = INT32_MAX - kTile;  // tiles end past the last token
  WEFT_CHECK(k.dim(1) <= kMost && k.dim(3) <= kMost && tokens.v.dim(3) <= kMost, k.text());
  Shard s{};
  s.positions = elements<int64_t>(at);
  s.position_batch = at.stride[0], s.position_token = at.stride[1];
  if (log) s.log_decay = elements<float>(log);
  if (tokens.kind == StateKind::fixed) {
    s.decay_head = log.stride[0];
  } else if (log) {
    s.decay_batch = log.stride[0], s.decay_token = log.stride[1], s.decay_head = log.stride[2];
  }
  if (beta) {
    s.beta = elements<float>(beta);
    s.beta_batch = beta.stride[0], s.beta_token = beta.stride[1], s.beta_head = beta.stride[2];
  }
  s.heads = static_cast<int>(k.dim(2));
  s.tokens = static_cast<int>(k.dim(1));
  s.chunks = static_cast<int>(state_chunks(k.dim(1)));
  s.key_dim = static_cast<int>(k.dim(3));
  s.value_dim = static_cast<int>(tokens.v.dim(3));
  s.lanes = tokens.kind == StateKind::vector ? s.key_dim : 1;
  return s;
}

namespace {

/// A thread a chunk and lane; neighbours are lanes, then heads, as in memory.
__global__ void __launch_bounds__(kThreads)
    sum_chunk_logs(const __grid_constant__ Shard s, int64_t heads, ChunkLogs logs) {
  const int64_t i = thread_index();
  if (i >= heads * s.chunks * s.lanes) return;
  const int lane = static_cast<int>(i % s.lanes), h = static_cast<int>(i / s.lanes % s.heads);
  const int chunk = static_cast<int>(i / s.lanes / s.heads % s.chunks);
  const int b = static_cast<int>(i / s.lanes / s.heads / s.chunks);
  const int begin = chunk * kTile, end = min(begin + kTile, s.tokens);
  double sum = 0;
#pragma unroll 8
  for (int t = begin; t < end; ++t) {
    const double step = s.step(b, h, t, lane);
    sum += step == -kReset ? -INFINITY : step;
  }
  const int64_t bh = static_cast<int64_t>(b) * s.heads + h;
  logs.data[(bh * s.chunks + chunk) * s.lanes + lane] = sum;
}

/// A warp a lane.
__global__ void __launch_bounds__(kThreads)
    sum_logs(const __grid_constant__ Shard s, int64_t heads, ChunkLogs logs, float* out) {
  const int64_t i = thread_index() / kWarp;
  if (i >= heads * s.lanes) return;
  const int64_t bh = i / s.lanes;
  const int lane = static_cast<int>(i % s.lanes);
  double sum = 0;
  for (int n = threadIdx.x % kWarp; n < s.chunks; n += kWarp) sum += logs.at(s, bh, n, lane);
  sum = warp_reduce(sum, cuda::Sum{});
  if (threadIdx.x % kWarp == 0) out[i] = static_cast<float>(sum);
}

/// A thread an element of the state. Chunks are read kAhead at a time, so that their latencies
/// overlap.
template <class T>
__global__ void __launch_bounds__(kThreads)
    carry_states(const __grid_constant__ Shard s, int64_t heads, ChunkLogs logs, CarryRange range,
                 ChunkMatrices<const float> added, ChunkMatrices<T> before, const float* start,
                 float* end) {
  constexpr int kAhead = 8;
  const int64_t matrix = static_cast<int64_t>(s.key_dim) * s.value_dim, i = thread_index();
  if (i >= heads * matrix) return;
  const int64_t bh = i / matrix, e = i % matrix;
  const int lane = s.lanes == 1 ? 0 : static_cast<int>(e / s.value_dim);
  float state = start == nullptr ? 0.0f : start[i];
  for (int from = 0; from < range.count; from += kAhead) {
    float add[kAhead], decay[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (from + a >= range.count) continue;
      const int n = range.backwards ? range.count - 1 - from - a : from + a;
      add[a] = added.data[bh * added.head + n * matrix + e];
      decay[a] = expf(static_cast<float>(logs.at(s, bh, range.first + n, lane)));
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (from + a >= range.count) continue;
      const int n = range.backwards ? range.count - 1 - from - a : from + a;
      if (before.data != nullptr) {
        before.data[bh * before.head + n * matrix + e] = from_float<T>(state);
      }
      state = fmaf(decay[a], state, add[a]);
    }
  }
  if (end != nullptr) end[i] = state;
}

template <class T, class Decays>
struct WriteShared {
  Decays decays;
  Tile<T> x;
  RowTiles<T, 2> y;
};

/// A block a chunk and 64 rows of its matrix.
template <class T, class Decays>
__global__ void __launch_bounds__(kThreads)
    write_chunk(const __grid_constant__ Shard s, const __grid_constant__ ChunkProducts<T> a,
                ChunkMatrices<float> to, CarryRange range) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<WriteShared<T, Decays>*>(memory);
  const int tiles = tiles_of(s.key_dim), k0 = static_cast<int>(blockIdx.x) % tiles * kTile;
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x) / tiles, range.first, range.count);
  const View<const T> y = a.y.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  shared.y.load(y);
  shared.decays.load(s, chunk, k0);
  __syncthreads();
  load_tile(shared.x, a.x.view(chunk.b, chunk.h, chunk.begin, chunk.count), 0, k0,
            [&](int t, int d) {
              return a.alpha * (a.leaving ? shared.decays.leave(t, d) : shared.decays.enter(t, d));
            });
  tiles_ready();
  const View<float> out = from_row(to.view(s, chunk.head(s), chunk.index - range.first), k0);
  for (int i = 0; i < tiles_of(s.value_dim); ++i) {
    TileSum<T> sum;
    add_product<true, false>(sum, shared.x, shared.y.get(y, i));
    store_to(out, i * kTile, sum);
  }
}

}  // namespace

void chunk_logs(const Shard& s, int64_t heads, ChunkLogs logs, Stream& stream) {
  launch(sum_chunk_logs, ceil_div(heads * s.chunks * s.lanes, kThreads), 0, stream, s, heads, logs);
}

void transition(const Shard& s, int64_t heads, ChunkLogs logs, float* out, Stream& stream) {
  launch(sum_logs, ceil_div(heads * s.lanes * kWarp, kThreads), 0, stream, s, heads, logs, out);
}

template <class T>
void carry(const Shard& s, int64_t heads, ChunkLogs logs, CarryRange range,
           ChunkMatrices<const float> added, ChunkMatrices<T> before, const float* start,
           float* end, Stream& stream) {
  const int64_t elements = heads * s.key_dim * s.value_dim;
  launch(carry_states<T>, ceil_div(elements, kThreads), 0, stream, s, heads, logs, range, added,
         before, start, end);
}

template <class T>
void write_chunks(const Shard& s, int64_t heads, const ChunkProducts<T>& products,
                  ChunkMatrices<float> out, CarryRange range, Stream& stream) {
  const int64_t blocks = heads * range.count * tiles_of(s.key_dim);
  if (s.lanes > 1) {
    launch(write_chunk<T, LaneDecays>, blocks, sizeof(WriteShared<T, LaneDecays>), stream, s,
           products, out, range);
  } else {
    launch(write_chunk<T, TokenDecays>, blocks, sizeof(WriteShared<T, TokenDecays>), stream, s,
           products, out, range);
  }
}

template void carry(const Shard&, int64_t, ChunkLogs, CarryRange, ChunkMatrices<const float>,
                    ChunkMatrices<float>, const float*, float*, Stream&);
template void carry(const Shard&, int64_t, ChunkLogs, CarryRange, ChunkMatrices<const float>,
                    ChunkMatrices<bf16>, const float*, float*, Stream&);
template void write_chunks(const Shard&, int64_t, const ChunkProducts<float>&, ChunkMatrices<float>,
                           CarryRange, Stream&);
template void write_chunks(const Shard&, int64_t, const ChunkProducts<bf16>&, ChunkMatrices<float>,
                           CarryRange, Stream&);

}  // namespace weft::cuda::state
