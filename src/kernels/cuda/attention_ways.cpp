// Which way a block of attention is computed. In bf16, where the host knows the mask, as pieces
// that cuDNN has plans for, but for what own kernels do faster or with the same bits again; in bf16
// otherwise by own kernels on tensor cores, of which Hopper has faster ones; in f32, and where rows
// lie oddly, by own kernels in f32. A piece without a plan is left to own kernels, so that no
// result depends on what a library takes.
#include "src/kernels/cuda/attention_ways.hpp"

#include "src/kernels/attention_pieces.hpp"
#include "src/kernels/cuda/attention_scratch.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"

namespace weft::cuda {
namespace {

bool in_pieces(const AttentionBlock& block) {
  return block.q.dtype == DType::bf16 && block.band.has_value();
}

AttentionBlock cut(const AttentionBlock& block, const AttentionPiece& p) {
  AttentionBlock part = block;
  part.q = block.q.slice(1, p.q_begin, p.q_end);
  part.k = block.k.slice(1, p.k_begin, p.k_end);
  part.v = block.v.slice(1, p.k_begin, p.k_end);
  part.key_begin = block.key_begin.slice(1, p.q_begin, p.q_end);
  part.key_end = block.key_end.slice(1, p.q_begin, p.q_end);
  part.first_key = block.first_key + p.k_begin;
  return part;
}

AttentionForwardArgs cut(const AttentionForwardArgs& args, const AttentionPiece& p) {
  return {.out = args.out.slice(1, p.q_begin, p.q_end),
          .lse = args.lse.slice(2, p.q_begin, p.q_end),
          .scratch = args.scratch,
          .block = cut(args.block, p)};
}

AttentionBackwardArgs cut(const AttentionBackwardArgs& args, const AttentionPiece& p) {
  return {.dq = args.dq.slice(1, p.q_begin, p.q_end),
          .dk = args.dk.slice(1, p.k_begin, p.k_end),
          .dv = args.dv.slice(1, p.k_begin, p.k_end),
          .scratch = args.scratch,
          .dout = args.dout.slice(1, p.q_begin, p.q_end),
          .lse = args.lse.slice(2, p.q_begin, p.q_end),
          .delta = args.delta.slice(2, p.q_begin, p.q_end),
          .block = cut(args.block, p)};
}

/// The scratch of a piece as tensors.
class PieceScratch {
 public:
  PieceScratch(const Tensor& memory, const AttentionBlock& block)
      : q_(block.q),
        k_(block.k),
        scratch_(memory.data, {q_.dim(0), q_.dim(1), k_.dim(1), q_.dim(2), k_.dim(2), q_.dim(3)}) {}

  Tensor workspace() const {
    return view(scratch_.workspace, DType::u8, {scratch_.workspace_bytes});
  }
  Tensor out() const { return like(q_, scratch_.out); }
  Tensor lse() const { return view(scratch_.lse, DType::f32, {q_.dim(0), q_.dim(2), q_.dim(1)}); }
  Tensor dq() const { return like(q_, scratch_.dq); }
  Tensor dk() const { return like(k_, scratch_.dk); }
  Tensor dv() const { return like(k_, scratch_.dv); }
  Tensor lengths() const { return view(scratch_.lengths, DType::i32, {2 * q_.dim(0)}); }

 private:
  static Tensor view(void* data, DType dtype, std::initializer_list<int64_t> dims) {
    return Tensor::view(data, dtype, Device::cuda, {dims.begin(), dims.size()});
  }
  static Tensor like(const Tensor& t, void* data) {
    return view(data, t.dtype, {t.dim(0), t.dim(1), t.dim(2), t.dim(3)});
  }

  Tensor q_, k_;
  AttentionScratch scratch_;
};

CudnnOperands operands_of(const AttentionBlock& block, const AttentionPiece& piece) {
  return {.q = block.q,
          .k = block.k,
          .v = block.v,
          .scale = block.scale,
          .mask = piece.mask,
          .window = piece.window};
}

/// False where cuDNN has no plan: then nothing is done.
bool forward_by_cudnn(const AttentionForwardArgs& args, const AttentionPiece& piece,
                      Stream& stream) {
  const PieceScratch part(args.scratch, args.block);
  const Tensor out = part.out(), lse = part.lse();
  const std::string refusal =
      cudnn_attention_forward(operands_of(args.block, piece), out, lse, part.workspace(), stream);
  if (!refusal.empty()) return false;
  cuda::attention_merge({.out = args.out, .lse = args.lse, .part_out = out, .part_lse = lse},
                        stream);
  return true;
}

bool backward_by_cudnn(const AttentionBackwardArgs& args, const AttentionPiece& piece,
                       Stream& stream) {
  const PieceScratch part(args.scratch, args.block);
  const CudnnGradients gradients{.dq = part.dq(),
                                 .dk = part.dk(),
                                 .dv = part.dv(),
                                 .out = part.out(),
                                 .dout = args.dout,
                                 .lse = part.lse(),
                                 .lengths = part.lengths()};
  attention_stand_in({.out = gradients.out,
                      .packed_lse = gradients.lse,
                      .lengths = gradients.lengths,
                      .dout = args.dout,
                      .lse = args.lse,
                      .delta = args.delta,
                      .keys = args.block.k.dim(1)},
                     stream);
  const std::string refusal =
      cudnn_attention_backward(operands_of(args.block, piece), gradients, part.workspace(), stream);
  if (!refusal.empty()) return false;
  add_heads(args.dq, gradients.dq, stream);
  add_heads(args.dk, gradients.dk, stream);
  add_heads(args.dv, gradients.dv, stream);
  return true;
}

void forward_by_own(const AttentionForwardArgs& args, Stream& stream) {
  if (!attention_fits_tensor_cores(args.block, {&args.out})) {
    return attention_forward_on_tiles(args, stream);
  }
  if (has_warpgroups()) return attention_forward_on_warpgroups(args, stream);
  attention_forward_on_tensor_cores(args, stream);
}

void backward_by_own(const AttentionBackwardArgs& args, Stream& stream) {
  if (!attention_fits_tensor_cores(args.block, {&args.dout, &args.dq, &args.dk, &args.dv})) {
    return attention_backward_on_tiles(args, stream);
  }
  if (has_warpgroups()) return attention_backward_on_warpgroups(args, stream);
  attention_backward_on_tensor_cores(args, stream);
}

std::vector<AttentionPiece> pieces_of(const AttentionBlock& block) {
  if (block.q.numel() == 0 || block.k.numel() == 0) return {};
  return weft::pieces_of(*block.band, block.q.dim(1), block.first_key, block.k.dim(1));
}

}  // namespace

void attention_forward_in_pieces(const AttentionForwardArgs& args, Stream& stream) {
  for (const AttentionPiece& piece : pieces_of(args.block)) {
    const AttentionForwardArgs part = cut(args, piece);
    if (!forward_by_cudnn(part, piece, stream)) forward_by_own(part, stream);
  }
}

void attention_backward_in_pieces(const AttentionBackwardArgs& args, Stream& stream) {
  for (const AttentionPiece& piece : pieces_of(args.block)) {
    const AttentionBackwardArgs part = cut(args, piece);
    if (!backward_by_cudnn(part, piece, stream)) backward_by_own(part, stream);
  }
}

void attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  if (args.block.q.numel() == 0 || args.block.k.numel() == 0) return;
  // On Hopper own kernels are faster than cuDNN's with the merge behind it.
  const bool faster = has_warpgroups() && attention_fits_tensor_cores(args.block, {&args.out});
  if (!in_pieces(args.block) || faster) return forward_by_own(args, stream);
  attention_forward_in_pieces(args, stream);
}

void attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  if (args.block.q.numel() == 0 || args.block.k.numel() == 0) return;
  if (!in_pieces(args.block) || args.block.deterministic) return backward_by_own(args, stream);
  attention_backward_in_pieces(args, stream);
}

}  // namespace weft::cuda
