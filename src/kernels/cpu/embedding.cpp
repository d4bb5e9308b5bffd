#include <algorithm>

#include "src/kernels/pointwise.hpp"

namespace weft::cpu {
namespace {

int64_t checked(int32_t token, const Tensor& table) {
  WEFT_REQUIRE(token >= 0 && token < table.dim(0), ExitCode::data, "token id ", token,
               " is outside the vocabulary of ", table.dim(0));
  return token;
}

}  // namespace

void embedding_forward(const EmbeddingArgs& args) {
  visit_float(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int32_t* tokens = args.tokens.as<int32_t>();
    for (int64_t r = 0; r < args.y.dim(0); ++r) {
      const T* row = args.table.as<T>() + checked(tokens[r], args.table) * args.table.stride[0];
      std::copy_n(row, args.y.dim(1), args.y.as<T>() + r * args.y.stride[0]);
    }
  });
}

void embedding_backward(const EmbeddingGradArgs& args) {
  visit_float(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int32_t* tokens = args.tokens.as<int32_t>();
    for (int64_t r = 0; r < args.dy.dim(0); ++r) {
      T* row = args.dtable.as<T>() + checked(tokens[r], args.dtable) * args.dtable.stride[0];
      const T* dy = args.dy.as<T>() + r * args.dy.stride[0];
      for (int64_t c = 0; c < args.dy.dim(1); ++c) row[c] += dy[c];
    }
  });
}

}  // namespace weft::cpu
