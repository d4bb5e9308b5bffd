// The passes of the delta kind, each a piece of the shard at a time: what the chunks need is
// prepared for all of them at once, the state is carried over them in order, and what they read of
// it is computed for all at once again.
#include "src/kernels/cuda/state_delta.hpp"

#include "src/kernels/cuda/state_delta.cuh"
#include "src/kernels/cuda/state_scratch.hpp"

namespace weft::cuda::state {
namespace {

template <class T>
struct OutputShared {
  TokenDecays decays;
  Tile<T> a, b, scores;
};

/// A block a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    read_outputs(const __grid_constant__ Shard s, const __grid_constant__ DeltaInputs<T> in,
                 Rows<float> to, const __grid_constant__ DeltaPiece<T> piece,
                 ChunkMatrices<const float> states) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<OutputShared<T>*>(memory);
  const ChunkOf chunk =
      ChunkOf::at(s, static_cast<int>(blockIdx.x), piece.range.first, piece.range.count);
  const int n = chunk.index - piece.range.first;
  const int64_t head = chunk.head(s);
  const View<const T> q = in.q.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  const View<const T> k = in.k.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  shared.decays.load(s, chunk);
  TileSum<T> scores;
  for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
    __syncthreads();
    load_tile(shared.a, q, 0, k0);
    load_tile(shared.b, k, 0, k0);
    tiles_ready();
    add_product<false, true>(scores, shared.a, shared.b);
  }
  for_each(scores, [&](int r, int j, float value) {
    shared.scores.at(r, j) =
        from_float<T>(j <= r ? in.scale * shared.decays.pair(r, j) * value : 0.0f);
  });
  const View<const float> state = states.view(s, head, n);
  const View<float> rows = piece.rows.view(head, n);
  const View<float> out = to.view(chunk.b, chunk.h, chunk.begin, chunk.count);
  for (int v0 = 0; v0 < s.value_dim; v0 += kTile) {
    TileSum<T> sum;
    for (int k0 = 0; k0 < s.key_dim; k0 += kTile) {
      __syncthreads();
      load_tile(shared.a, q, 0, k0, [&](int t, int) { return in.scale * shared.decays.enter(t); });
      load_tile(shared.b, state, k0, v0);
      tiles_ready();
      add_product<false, false>(sum, shared.a, shared.b);
    }
    __syncthreads();
    load_tile(shared.a, rows, 0, v0);
    tiles_ready();
    add_product<false, false>(sum, shared.scores, shared.a);
    store_to(out, v0, sum);
  }
}

/// One call: its shard, and its scratch with the logs of the chunks.
template <class T>
struct Call {
  Call(const StateTokens& tokens, const Tensor& memory, Stream& on)
      : s(Shard::of(tokens)),
        heads(tokens.k.dim(0) * tokens.k.dim(2)),
        scratch(memory.data, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
        logs{scratch.logs},
        stream(on) {
    WEFT_CHECK(s.key_dim <= kDeltaKeys, "the CUDA kernels of the delta kind take keys up to ",
               kDeltaKeys, " wide, not ", s.key_dim);
    chunk_logs(s, heads, logs, stream);
  }

  DeltaInputs<T> inputs(const StateTokens& tokens, const Tensor& q, const Tensor& dout,
                        double scale) const {
    const auto rows = [](const Tensor& t) { return t ? Rows<const T>::of(t) : Rows<const T>{}; };
    return {rows(q), rows(tokens.k), rows(tokens.v), rows(dout), static_cast<float>(scale)};
  }
  DeltaPiece<T> piece(int first, bool backwards) const {
    const int count = std::min(static_cast<int>(scratch.piece), s.chunks - first);
    return {PieceRows<T>::of(scratch.reads, scratch.piece, s.key_dim),
            PieceRows<T>::of(scratch.writes, scratch.piece, s.key_dim),
            PieceRows<float>::of(scratch.rows, scratch.piece, s.value_dim),
            PieceRows<T>::of(scratch.solution, scratch.piece, kTile),
            PieceRows<T>::of(scratch.written, scratch.piece, s.value_dim),
            {first, count, backwards}};
  }
  /// The chunks' matrices in scratch.
  template <class E>
  ChunkMatrices<E> kept() const {
    return ChunkMatrices<E>::of(reinterpret_cast<E*>(scratch.states), s, scratch.piece);
  }

  /// Calls f(piece, state, transition) for the pieces of the shard in their order, with the columns
  /// to carry: the state from `start` to `end`, and with `transition` that one from the identity.
  template <class F>
  void for_pieces(bool backwards, const Tensor& start, const Tensor& end, const Tensor& transition,
                  F&& f) const {
    const int chunks = static_cast<int>(scratch.piece);
    const int pieces = std::max(1, (s.chunks + chunks - 1) / chunks);
    for (int i = 0; i < pieces; ++i) {
      const bool first = i == 0, last = i + 1 == pieces;
      const auto columns = [&](int width, const Tensor& from, float* between, const Tensor& to) {
        DeltaColumns c;
        c.width = width;
        c.start = !first ? between : from ? elements<float>(from) : nullptr;
        c.end = !last ? between : to ? elements<float>(to) : nullptr;
        return c;
      };
      DeltaColumns state = columns(s.value_dim, start, scratch.state, end), a;
      state.with_rows = true;
      if (transition) {
        a = columns(s.key_dim, {}, scratch.transition, transition);
        a.identity = true;
        a.transposed = backwards && last;
      }
      f(piece((backwards ? pieces - 1 - i : i) * chunks, backwards), state, a);
    }
  }

  Shard s;
  int64_t heads;
  Scratch scratch;
  ChunkLogs logs;
  Stream& stream;
};

/// (enter o scale q)^T dout of a piece's chunks, to scratch.
template <class T>
void write_received(const Call<T>& c, const DeltaInputs<T>& in, const DeltaPiece<T>& piece) {
  write_chunks(c.s, c.heads, ChunkProducts<T>{in.q, in.dout, in.scale, false},
               c.template kept<float>(), piece.range, c.stream);
}

template <class T>
void summarize(const StateSummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const DeltaInputs<T> in = c.inputs(args.tokens, {}, {}, 1);
  c.for_pieces(false, {}, args.state, args.transition,
               [&](const DeltaPiece<T>& piece, const DeltaColumns& state, const DeltaColumns& a) {
                 prepare_delta(c.s, c.heads, in, piece, stream);
                 carry_delta(c.s, c.heads, c.logs, piece, state, a, stream);
               });
}

template <class T>
void apply(const StateApplyArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const DeltaInputs<T> in = c.inputs(args.tokens, args.q, {}, args.scale);
  c.for_pieces(false, args.h0, args.hT, {},
               [&](const DeltaPiece<T>& piece, DeltaColumns state, const DeltaColumns& a) {
                 prepare_delta(c.s, c.heads, in, piece, stream);
                 state.keep_rows = true;
                 state.before = c.template kept<float>();
                 carry_delta(c.s, c.heads, c.logs, piece, state, a, stream);
                 launch(read_outputs<T>, c.heads * piece.range.count, sizeof(OutputShared<T>),
                        stream, c.s, in, Rows<float>::of(args.out), piece,
                        c.template kept<const float>());
               });
}

template <class T>
void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const DeltaInputs<T> in = c.inputs(args.tokens, args.q, args.dout, args.scale);
  c.for_pieces(true, {}, args.state, args.transition,
               [&](const DeltaPiece<T>& piece, DeltaColumns state, const DeltaColumns& a) {
                 prepare_delta_backward(c.s, c.heads, in, piece, stream);
                 write_received(c, in, piece);
                 state.added = c.template kept<const float>();
                 carry_delta(c.s, c.heads, c.logs, piece, state, a, stream);
               });
}

template <class T>
void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const DeltaInputs<T> in = c.inputs(args.tokens, {}, {}, 1);
  c.for_pieces(false, args.h0, {}, {},
               [&](const DeltaPiece<T>& piece, DeltaColumns state, const DeltaColumns& a) {
                 prepare_delta(c.s, c.heads, in, piece, stream);
                 state.before = ChunkMatrices<float>::of(elements<float>(args.entering), c.s,
                                                         c.s.chunks, piece.range.first);
                 carry_delta(c.s, c.heads, c.logs, piece, state, a, stream);
               });
}

template <class T>
void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const DeltaInputs<T> in = c.inputs(args.tokens, args.q, args.dout, args.scale);
  const Tensor& dbeta = args.gradients.dbeta;
  const DeltaGradientArgs<T> gradients{
      GradientArgs<T>::of(args.gradients, args.q, args.dout, args.scale, args.tokens),
      elements<float>(dbeta),
      dbeta.stride[0],
      dbeta.stride[1],
      dbeta.stride[2],
      ChunkMatrices<const float>::of(elements<float>(args.entering), c.s, c.s.chunks),
      c.template kept<const float>()};
  c.for_pieces(true, args.dhT, args.dh0, {},
               [&](const DeltaPiece<T>& piece, DeltaColumns state, const DeltaColumns& a) {
                 prepare_delta_backward(c.s, c.heads, in, piece, stream);
                 write_received(c, in, piece);
                 state.keep_rows = true;
                 state.added = c.template kept<const float>();
                 state.before = c.template kept<float>();
                 carry_delta(c.s, c.heads, c.logs, piece, state, a, stream);
                 delta_gradients(c.s, c.heads, gradients, piece, stream);
               });
}

}  // namespace

namespace delta {

void summarize(const StateSummaryArgs& args, Stream& stream) {
  visit_element(args.tokens.k.dtype,
                [&](auto zero) { state::summarize<decltype(zero)>(args, stream); });
}
void apply(const StateApplyArgs& args, Stream& stream) {
  visit_element(args.tokens.k.dtype,
                [&](auto zero) { state::apply<decltype(zero)>(args, stream); });
}
void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  visit_element(args.tokens.k.dtype,
                [&](auto zero) { state::cosummarize<decltype(zero)>(args, stream); });
}
void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  visit_element(args.tokens.k.dtype,
                [&](auto zero) { state::backward_local<decltype(zero)>(args, stream); });
}
void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  visit_element(args.tokens.k.dtype,
                [&](auto zero) { state::backward_apply<decltype(zero)>(args, stream); });
}

}  // namespace delta
}  // namespace weft::cuda::state
