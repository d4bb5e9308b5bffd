#include "src/kernels/loss.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {

Cost cost(const CrossEntropyShardArgs& a) {
  const double passes = a.gradient ? 2 : 1;
  return {4.0 * a.logits.numel(), passes * bytes({&a.logits}) + bytes({&a.labels, &a.statistics})};
}

void cross_entropy_shard(const CrossEntropyShardArgs& args, Stream& stream) {
  WEFT_CHECK(args.logits.ndim == 2 && args.labels.has_shape({args.logits.dim(0)}),
             args.logits.text(), " ", args.labels.text());
  WEFT_CHECK(args.statistics.has_shape({kRowStatistics, args.logits.dim(0)}) &&
                 args.statistics.dtype == accumulator_of(args.logits.dtype),
             args.statistics.text());
  WEFT_CHECK(args.vocab_begin >= 0 && args.vocab_begin + args.logits.dim(1) <= args.vocab,
             args.logits.text(), " from ", args.vocab_begin, " of ", args.vocab);
  check_contiguous({&args.statistics});
  WEFT_DISPATCH(cross_entropy_shard, args, stream);
}

Cost cost(const CrossEntropyCombineArgs& a) {
  const bool again = a.gradient && a.statistics.dim(0) > 1;
  return {again ? 1.0 * a.logits.numel() : 0.0,
          (again ? 2 : 0) * bytes({&a.logits}) + bytes({&a.labels, &a.statistics})};
}

void cross_entropy_combine(const CrossEntropyCombineArgs& args, Stream& stream) {
  WEFT_CHECK(args.logits.ndim == 2 && args.labels.has_shape({args.logits.dim(0)}),
             args.logits.text(), " ", args.labels.text());
  WEFT_CHECK(
      args.statistics.ndim == 3 && args.rank >= 0 && args.rank < args.statistics.dim(0) &&
          args.statistics.has_shape({args.statistics.dim(0), kRowStatistics, args.logits.dim(0)}) &&
          args.statistics.dtype == accumulator_of(args.logits.dtype),
      args.statistics.text());
  WEFT_CHECK(!args.loss_sum || (args.loss_sum.has_shape({1}) && args.loss_sum.dtype == DType::f64),
             args.loss_sum.text());
  check_contiguous({&args.statistics});
  WEFT_DISPATCH(cross_entropy_combine, args, stream);
}

}  // namespace weft
