// The passes of the diagonal kinds. What chunks write to the state is computed for all of them at
// once, the state is carried over it in order, and what the chunks read from it is computed for all
// at once again, a piece of the shard at a time where the states have to wait in scratch.
#include "src/kernels/state_mixer.hpp"

#include "src/kernels/cuda/state_delta.hpp"
#include "src/kernels/cuda/state_gradients.cuh"
#include "src/kernels/cuda/state_in_segments.hpp"
#include "src/kernels/cuda/state_outputs.cuh"
#include "src/kernels/cuda/state_scratch.hpp"

namespace weft::cuda {
namespace state {
namespace {

/// One call: its shard, what the chunks add to the state, and its scratch with their logs.
template <class T>
struct Call {
  Call(const StateTokens& tokens, const ChunkProducts<T>& chunks_add, const Tensor& memory,
       Stream& on)
      : s(Shard::of(tokens)),
        heads(tokens.k.dim(0) * tokens.k.dim(2)),
        products(chunks_add),
        scratch(memory.data, tokens.kind, tokens.k.dtype, StateShape::of(tokens)),
        logs{scratch.logs},
        stream(on) {
    chunk_logs(s, heads, logs, stream);
  }

  ChunkMatrices<float> all(const Tensor& states, int first = 0) const {
    if (!states) return {};
    return ChunkMatrices<float>::of(elements<float>(states), s, s.chunks, first);
  }
  ChunkMatrices<const float> all_const(const Tensor& states, int first = 0) const {
    if (!states) return {};
    return ChunkMatrices<const float>::of(elements<float>(states), s, s.chunks, first);
  }
  template <class E>
  ChunkMatrices<E> kept() const {
    return ChunkMatrices<E>::of(reinterpret_cast<E*>(scratch.states), s, scratch.piece);
  }

  /// What the chunks add, where carry_over() reads it.
  void write(const Tensor& added) const {
    if (scratch.decays != nullptr) return;  // it is made on the way
    write_chunks(s, heads, products, all(added), CarryRange{0, s.chunks, false}, stream);
  }
  /// Carries the state over a piece of the shard.
  template <class E>
  void carry_over(const CarryRange& range, const Tensor& added, ChunkMatrices<E> before,
                  const float* start, float* end) const {
    if (scratch.decays != nullptr) {
      chain_decays(s, heads, products, range, scratch.decays, stream);
      chain_states(s, heads, logs, products, scratch.decays, range, before, start, end, stream);
    } else {
      carry(s, heads, logs, range, all_const(added, range.first), before, start, end, stream);
    }
  }

  /// f(range, start, end) for the pieces of the shard in the order of the carry: the state goes
  /// from one to the next.
  template <class F>
  void for_pieces(bool backwards, const float* start, float* end, F&& f) const {
    const int piece = static_cast<int>(scratch.piece);
    const int pieces = std::max(1, (s.chunks + piece - 1) / piece);
    for (int i = 0; i < pieces; ++i) {
      const int first = (backwards ? pieces - 1 - i : i) * piece;
      const CarryRange range{first, std::min(piece, s.chunks - first), backwards};
      f(range, start, i + 1 < pieces ? scratch.state : end);
      start = scratch.state;
    }
  }

  /// Carries the state over all chunks, with those before (backwards: behind) each of them in
  /// `before` [B, H, chunks, K, V]; absent: not wanted.
  void carry_all(bool backwards, const Tensor& added, const Tensor& before, const float* start,
                 float* end) const {
    for_pieces(backwards, start, end, [&](const CarryRange& range, const float* from, float* to) {
      carry_over(range, added, all(before, range.first), from, to);
    });
  }

  /// The same with the states of a piece in kept(), and f(range) for each.
  template <class F>
  void carry_pieces(bool backwards, const Tensor& added, const Tensor& start, const Tensor& end,
                    F&& f) const {
    for_pieces(backwards, optional_f32(start), optional_f32(end),
               [&](const CarryRange& range, const float* from, float* to) {
                 carry_over(range, added, kept<T>(), from, to);
                 f(range);
               });
  }

  Shard s;
  int64_t heads;
  ChunkProducts<T> products;
  Scratch scratch;
  ChunkLogs logs;
  Stream& stream;
};

template <class T>
void summarize(const StateSummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, added_by_keys<T>(args.tokens), args.scratch, stream);
  c.write(args.chunk_states);
  c.carry_all(false, args.chunk_states, {}, nullptr, elements<float>(args.state));
  transition(c.s, c.heads, c.logs, elements<float>(args.transition), stream);
}

template <class T>
void cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, added_by_queries<T>(args.q, args.dout, args.scale), args.scratch,
                  stream);
  c.write(args.chunk_costates);
  c.carry_all(true, args.chunk_costates, {}, nullptr, elements<float>(args.state));
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
  const Call<T> c(args.tokens, added_by_keys<T>(args.tokens), args.scratch, stream);
  const OutputArgs<T> outputs = outputs_of<T>(args.q, args.out, args.scale, args.tokens);
  c.carry_pieces(false, args.chunk_states, args.h0, args.hT, [&](const CarryRange& range) {
    entering_outputs(c.s, c.heads, outputs, c.template kept<const T>(), range, stream);
  });
}

template <class T>
void backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, added_by_keys<T>(args.tokens), args.scratch, stream);
  c.write(args.entering);
  c.carry_all(false, args.entering, args.entering, optional_f32(args.h0), nullptr);
  local_gradients(c.s, c.heads,
                  GradientArgs<T>::of(args.gradients, args.q, args.dout, args.scale, args.tokens),
                  c.all_const(args.entering), stream);
}

template <class T>
void backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  const Call<T> c(args.tokens, added_by_queries<T>(args.q, args.dout, args.scale), args.scratch,
                  stream);
  const auto gradients =
      GradientArgs<T>::of(args.gradients, args.q, args.dout, args.scale, args.tokens);
  c.carry_pieces(true, args.chunk_costates, args.dhT, args.dh0, [&](const CarryRange& range) {
    leaving_gradients(c.s, c.heads, gradients, c.all_const(args.entering),
                      c.template kept<const T>(), range, stream);
  });
}

/// delta(), segments(), or f with a value of the data's type; nothing where there are no heads.
template <class Delta, class InSegments, class F>
void visit(const StateTokens& tokens, Delta&& delta, InSegments&& segments, F&& f) {
  const StateShape shape = StateShape::of(tokens);
  if (shape.batch * shape.heads == 0) return;
  if (tokens.kind == StateKind::delta) return delta();
  const DType dtype = tokens.k.dtype;
  if (in_segments(tokens.kind, dtype, shape.key_dim, shape.value_dim)) return segments();
  visit_element(dtype, f);
}

}  // namespace
}  // namespace state

void state_summarize(const StateSummaryArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::summarize(args, stream); },
      [&] { state::segments::summarize(args, stream); },
      [&](auto zero) { state::summarize<decltype(zero)>(args, stream); });
}

void state_local(const StateLocalArgs& args, Stream& stream) {
  const auto alone = [&] {
    if (args.tokens.kind == StateKind::vector) state::local<bf16>(args, stream);
  };
  state::visit(
      args.tokens, [&] {}, alone, [&](auto zero) { state::local<decltype(zero)>(args, stream); });
}

void state_apply(const StateApplyArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::apply(args, stream); },
      [&] { state::segments::apply(args, stream); },
      [&](auto zero) { state::apply<decltype(zero)>(args, stream); });
}

void state_cosummarize(const StateCosummaryArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::cosummarize(args, stream); },
      [&] { state::segments::cosummarize(args, stream); },
      [&](auto zero) { state::cosummarize<decltype(zero)>(args, stream); });
}

void state_backward_local(const StateBackwardLocalArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::backward_local(args, stream); },
      [&] { state::segments::backward_local(args, stream); },
      [&](auto zero) { state::backward_local<decltype(zero)>(args, stream); });
}

void state_backward_apply(const StateBackwardApplyArgs& args, Stream& stream) {
  state::visit(
      args.tokens, [&] { state::delta::backward_apply(args, stream); },
      [&] { state::segments::backward_apply(args, stream); },
      [&](auto zero) { state::backward_apply<decltype(zero)>(args, stream); });
}

}  // namespace weft::cuda
