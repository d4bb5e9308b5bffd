#include <algorithm>

#include "src/kernels/pointwise.hpp"

namespace weft::cpu {

void embedding_forward(const EmbeddingArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int32_t* tokens = args.tokens.as<int32_t>();
    const int64_t width = args.y.dim(1);
    for (int64_t r = 0; r < args.y.dim(0); ++r) {
      WEFT_REQUIRE(tokens[r] >= 0 && tokens[r] < args.vocab, ExitCode::data, "token id ", tokens[r],
                   " is outside the vocabulary of ", args.vocab);
      T* y = args.y.as<T>() + r * args.y.stride[0];
      const int64_t row = tokens[r] - args.vocab_begin;
      if (row >= 0 && row < args.table.dim(0)) {
        std::copy_n(args.table.as<T>() + row * args.table.stride[0], width, y);
      } else {
        std::fill_n(y, width, T(0));
      }
    }
  });
}

void embedding_backward(const EmbeddingGradArgs& args) {
  visit_float(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int32_t* tokens = args.tokens.as<int32_t>();
    for (int64_t r = 0; r < args.dy.dim(0); ++r) {
      const int64_t row = tokens[r] - args.vocab_begin;
      if (row < 0 || row >= args.dtable.dim(0)) continue;
      T* sum = args.dtable.as<T>() + row * args.dtable.stride[0];
      const T* dy = args.dy.as<T>() + r * args.dy.stride[0];
      for (int64_t c = 0; c < args.dy.dim(1); ++c) sum[c] += dy[c];
    }
  });
}

}  // namespace weft::cpu
