// The passes of the diagonal kinds. What chunks write to the state is computed for all of them at
// once, the state is carried over it in order, and what the chunks read from it is computed for all
// at once again, a piece of the shard at a time where the states have to wait in scratch.
#include "src/kernels/state_mixer.hpp"

#include "src/kernels/cuda/state_delta.hpp"
#include "src/kernels/cuda/state_gradients.cuh"
#include "src/kernels/cuda/state_outputs.cuh"
#include "src/kernels/cuda/state_scratch.hpp"

namespace weft::cuda {
namespace state {
namespace {

float* optional_f32(const Tensor& t) {
  return t ? elements<float>(t) : nullptr;
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
    chunk_logs(s, heads, logs, stream);
  }

  ChunkMatrices<float> all(const Tensor& states) const {
    return ChunkMatrices<float>::of(elements<float>(states), s, s.chunks);
  }
  ChunkMatrices<const float> all_const(const Tensor& states, int first = 0) const {
    return ChunkMatrices<const float>::of(elements<float>(states), s, s.chunks, first);
  }
  template <class E>
  ChunkMatrices<E> kept() const {
    return ChunkMatrices<E>::of(reinterpret_cast<E*>(scratch.states), s, scratch.piece);
  }
  CarryRange whole(bool backwards) const { return {0, s.chunks, backwards}; }

  /// Carries the state over `added` and calls f(range) for pieces of the shard, with the states
  /// that were carried to (backwards: back to) each of its chunks in kept().
  template <class F>
  void carry_pieces(bool backwards, const Tensor& added, const Tensor& start, const Tensor& end,
                    F&& f) const {
    const int piece = static_cast<int>(scratch.piece);
    const int pieces = std::max(1, (s.chunks + piece - 1) / piece);
    const float* from = optional_f32(start);
    for (int i = 0; i < pieces; ++i) {
      const int first = (backwards ? pieces - 1 - i : i) * piece;
      const CarryRange range{first, std::min(piece, s.chunks - first), backwards};
      float* to = i + 1 < pieces ? scratch.state : optional_f32(end);
      carry(s, heads, logs, range, all_const(added, first), kept<T>(), from, to, stream);
      f(range);
      from = scratch.state;
    }
  }

  Shard s;
  int64_t heads;
  Scratch scratch;
  ChunkLogs logs;
  Stream& stream;
};

template <class T>
void summarize(const StateSummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  write_chunks(
      c.s, c.heads,
      ChunkProductsArgs<T>{Rows<const T>::of(args.tokens.k), Rows<const T>::of(args.tokens.v), 1.0f,
                           true, c.all(args.chunk_states), 0, c.s.chunks},
      stream);
  carry(c.s, c.heads, c.logs, c.whole(false), c.all_const(args.chunk_states),
        ChunkMatrices<float>{}, nullptr, elements<float>(args.state), stream);
  transition(c.s, c.heads, c.logs, elements<float>(args.transition), stream);
}

template <class T>
void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  write_chunks(c.s, c.heads,
               ChunkProductsArgs<T>{Rows<const T>::of(args.q), Rows<const T>::of(args.dout),
                                    static_cast<float>(args.scale), false,
                                    c.all(args.chunk_costates), 0, c.s.chunks},
               stream);
  carry(c.s, c.heads, c.logs, c.whole(true), c.all_const(args.chunk_costates),
        ChunkMatrices<float>{}, nullptr, elements<float>(args.state), stream);
  if (args.transition) {
    transition(c.s, c.heads, c.logs, elements<float>(args.transition), stream);
  }
}

template <class T>
OutputArgs<T> outputs_of(const Tensor& q, const Tensor& out, double scale,
                         const StateTokens& tokens) {
  return {Rows<const T>::of(q), Rows<const T>::of(tokens.k), Rows<const T>::of(tokens.v),
          Rows<float>::of(out), static_cast<float>(scale)};
}

template <class T>
void local(const StateLocalArgs& args, Stream& stream) {
  local_outputs(Shard::of(args.tokens), args.tokens.k.dim(0) * args.tokens.k.dim(2),
                outputs_of<T>(args.q, args.out, args.scale, args.tokens), stream);
}

template <class T>
void apply(const StateApplyArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const OutputArgs<T> outputs = outputs_of<T>(args.q, args.out, args.scale, args.tokens);
  c.carry_pieces(false, args.chunk_states, args.h0, args.hT, [&](const CarryRange& range) {
    entering_outputs(c.s, c.heads, outputs, c.template kept<const T>(), range, stream);
  });
}

template <class T>
void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  write_chunks(
      c.s, c.heads,
      ChunkProductsArgs<T>{Rows<const T>::of(args.tokens.k), Rows<const T>::of(args.tokens.v), 1.0f,
                           true, c.all(args.entering), 0, c.s.chunks},
      stream);
  carry(c.s, c.heads, c.logs, c.whole(false), c.all_const(args.entering), c.all(args.entering),
        optional_f32(args.h0), nullptr, stream);
  local_gradients(c.s, c.heads,
                  GradientArgs<T>::of(args.gradients, args.q, args.dout, args.scale, args.tokens),
                  c.all_const(args.entering), stream);
}

template <class T>
void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, args.scratch, stream);
  const auto gradients =
      GradientArgs<T>::of(args.gradients, args.q, args.dout, args.scale, args.tokens);
  c.carry_pieces(true, args.chunk_costates, args.dhT, args.dh0, [&](const CarryRange& range) {
    leaving_gradients(c.s, c.heads, gradients, c.all_const(args.entering),
                      c.template kept<const T>(), range, stream);
  });
}

/// delta(), or f with a value of the data's type; nothing where there are no heads.
template <class Delta, class F>
void visit(const StateTokens& tokens, Delta&& delta, F&& f) {
  if (tokens.k.dim(0) * tokens.k.dim(2) == 0) return;
  tokens.kind == StateKind::delta ? delta() : visit_element(tokens.k.dtype, f);
}

}  // namespace
}  // namespace state

void state_summarize(const StateSummaryArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::summarize(args, stream); },
      [&](auto zero) { state::summarize<decltype(zero)>(args, stream); });
}

void state_local(const StateLocalArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] {}, [&](auto zero) { state::local<decltype(zero)>(args, stream); });
}

void state_apply(const StateApplyArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::apply(args, stream); },
      [&](auto zero) { state::apply<decltype(zero)>(args, stream); });
}

void state_cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::cosummarize(args, stream); },
      [&](auto zero) { state::cosummarize<decltype(zero)>(args, stream); });
}

void state_backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::backward_local(args, stream); },
      [&](auto zero) { state::backward_local<decltype(zero)>(args, stream); });
}

void state_backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::backward_apply(args, stream); },
      [&](auto zero) { state::backward_apply<decltype(zero)>(args, stream); });
}

}  // namespace weft::cuda
