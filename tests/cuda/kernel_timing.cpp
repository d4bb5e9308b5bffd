// Time of every CUDA kernel at the shapes of a one-billion-parameter decoder, beside its floor: the
// bytes of cost() at the rate of a copy, or its FLOPs at the rate of a large product, both measured
// in the same run. Medians of 20 after 3 warm-ups. Not a test: it compares with nothing. With the
// argument `states` the state mixers alone, with `attention` softmax attention alone.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>

#include "src/core/cuda/cuda_stream.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/kernels/attention.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"
#include "src/kernels/decay_gates.hpp"
#include "src/kernels/feature_map.hpp"
#include "src/kernels/gated_norm.hpp"
#include "src/kernels/loss.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/rope.hpp"
#include "src/kernels/short_convolution.hpp"
#include "src/kernels/state_mixer.hpp"
#include "src/tensor/arena.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using TimeEvent = Handle<cudaEvent_t, cudaEventDestroy>;

class Bench {
 public:
  Bench() : stream_(cuda::make_stream(0)), arena_("timing", Device::cuda, int64_t{40} << 30) {}

  Stream& stream() { return *stream_; }
  Arena& arena() { return arena_; }

  /// A tensor of normals times `scale`; f32 and bf16. A few thousand fresh ones, repeated.
  Tensor normals(DType dtype, std::initializer_list<int64_t> shape, double scale = 1) {
    const Tensor t = arena_.allocate("normals", dtype, shape);
    const Values32 numbers = pattern(scale);
    std::vector<std::byte> host(t.nbytes());
    for (int64_t i = 0; i < t.numel(); ++i) {
      const float x = numbers[i % numbers.size()];
      const auto bits = std::bit_cast<uint32_t>(x);
      if (dtype == DType::bf16) {
        reinterpret_cast<uint16_t*>(host.data())[i] = static_cast<uint16_t>((bits + 0x8000) >> 16);
      } else {
        reinterpret_cast<float*>(host.data())[i] = x;
      }
    }
    cuda::copy_bytes(t.data, host.data(), t.nbytes(), *stream_);
    stream_->record().wait();
    return t;
  }

  Tensor zeros(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor t = arena_.allocate("zeros", dtype, shape);
    cuda::set_bytes(t.data, 0, t.nbytes(), stream_.get());
    return t;
  }

  template <class T>
  Tensor from(DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& source) {
    const Tensor t = arena_.allocate("given", dtype, shape);
    cuda::copy_bytes(t.data, source.data(), t.nbytes(), *stream_);
    stream_->record().wait();
    return t;
  }

  /// Median milliseconds of `work`, which enqueues on stream().
  double time(const std::function<void()>& work, int runs = 20) {
    for (int i = 0; i < 3; ++i) work();
    std::vector<double> times;
    for (int i = 0; i < runs; ++i) {
      TimeEvent start, stop;
      WEFT_CALL(cudaEventCreate(start.out()));
      WEFT_CALL(cudaEventCreate(stop.out()));
      WEFT_CALL(cudaEventRecord(start.get(), cuda::native(*stream_)));
      work();
      WEFT_CALL(cudaEventRecord(stop.get(), cuda::native(*stream_)));
      WEFT_CALL(cudaEventSynchronize(stop.get()));
      float ms = 0;
      WEFT_CALL(cudaEventElapsedTime(&ms, start.get(), stop.get()));
      times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void rates(double bytes_per_ms, double flops_per_ms) {
    bytes_per_ms_ = bytes_per_ms;
    flops_per_ms_ = flops_per_ms;
  }

  template <class Args>
  void row(const char* what, void (*kernel)(const Args&, Stream&), const Args& args,
           bool tensor_cores = false, int runs = 20) {
    const Cost c = cost(args);
    const double ms = time([&] { kernel(args, *stream_); }, runs);
    const double floor =
        std::max(c.bytes / bytes_per_ms_, tensor_cores ? c.flops / flops_per_ms_ : 0.0);
    std::printf("%-44s %9.4f ms  floor %9.4f ms  share %5.1f %%  %8.2f TFLOP/s\n", what, ms, floor,
                100 * floor / ms, c.flops / ms * 1e-9);
  }

 private:
  using Values32 = std::vector<float>;
  static Values32 pattern(double scale) {
    Values32 out;
    for (const double x : normal_values(1 << 16, "timing"))
      out.push_back(static_cast<float>(scale * x));
    out.resize((1 << 16) - 3);  // an odd length, so that rows differ
    return out;
  }

  std::unique_ptr<Stream> stream_;
  Arena arena_;
  double bytes_per_ms_ = 1, flops_per_ms_ = 1;
};

constexpr int64_t kTokens = 65536, kWidth = 2048, kHidden = 8192, kVocab = 128256;
constexpr DType kHalf = DType::bf16;

void measure_rates(Bench& bench) {
  const Scope scope(bench.arena());
  const int64_t bytes = int64_t{4} << 30;
  const Tensor x = bench.arena().allocate("x", DType::u8, {bytes});
  const Tensor y = bench.arena().allocate("y", DType::u8, {bytes});
  const double copy_ms = bench.time([&] { copy({y, x}, bench.stream()); });
  const Tensor a = bench.normals(kHalf, {8192, 8192}), b = bench.normals(kHalf, {8192, 8192});
  const Tensor c = bench.zeros(kHalf, {8192, 8192});
  const MatmulArgs product{c, a, b, false, true};
  const double ms = bench.time([&] { matmul(product, bench.stream()); });
  bench.rates(2.0 * bytes / copy_ms, cost(product).flops / ms);
  std::printf("copy %.3f TB/s, bf16 product 8192^3 %.1f TFLOP/s\n", 2e-9 * bytes / copy_ms,
              cost(product).flops / ms * 1e-9);
}

void time_products(Bench& bench) {
  const Scope scope(bench.arena());
  const int64_t t = 16384;
  const Tensor x = bench.normals(kHalf, {t, kWidth}), w = bench.normals(kHalf, {kHidden, kWidth});
  const Tensor y = bench.normals(kHalf, {t, kHidden});
  const Tensor dx = bench.zeros(kHalf, {t, kWidth}),
               dw = bench.zeros(DType::f32, {kHidden, kWidth});
  bench.row("matmul y = x w^T, bf16, 16384x8192x2048", matmul, {y, x, w, false, true}, true);
  bench.row("matmul dx = dy w", matmul, {dx, y, w}, true);
  bench.row("matmul dw += dy^T x, f32", matmul, {dw, y, x, true, false, true}, true);
  const Tensor a = bench.normals(DType::f32, {4096, 4096}),
               b = bench.normals(DType::f32, {4096, 4096});
  bench.row("matmul f32 4096^3", matmul,
            {bench.zeros(DType::f32, {4096, 4096}), a, b, false, true});
}

void time_rows(Bench& bench) {
  const Scope scope(bench.arena());
  const Tensor x = bench.normals(kHalf, {kTokens, kWidth}),
               y = bench.normals(kHalf, {kTokens, kWidth});
  const Tensor dx = bench.zeros(kHalf, {kTokens, kWidth}), weight = bench.normals(kHalf, {kWidth});
  const Tensor rstd = bench.zeros(DType::f32, {kTokens}), dw = bench.zeros(DType::f32, {kWidth});
  bench.row("rmsnorm_forward", rmsnorm_forward, {y, rstd, x, weight});
  bench.row("rmsnorm_backward", rmsnorm_backward, {dx, dw, y, x, rstd, weight});
  bench.row("add", add, {dx, x, y});
  bench.row("fill", fill, {dx, 1.0});
  const Tensor head = x.reshape({kTokens / 64, 64, kWidth});
  bench.row("copy, strided halves", copy,
            {y.reshape({kTokens / 64, 64, kWidth}).slice(2, 0, 1024), head.slice(2, 1024, 2048)});
  const auto frequencies = rope_frequencies({}, 128);
  std::vector<int64_t> at(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) at[i] = i;
  const Tensor positions = bench.from(DType::i64, {1, kTokens}, at);
  const Tensor cos = bench.zeros(DType::f32, {1, kTokens, 64}),
               sin = bench.zeros(DType::f32, {1, kTokens, 64});
  bench.row("rope_table", rope_table, {cos, sin, positions, &frequencies});
  bench.row("rope, 16 heads of 128", rope, {x.reshape({1, kTokens, 16, 128}), cos, sin});
  std::vector<int32_t> ids(kTokens);
  const RandomStream random(5, "ids");
  for (int64_t i = 0; i < kTokens; ++i) {  // small ids often, as words of a language are
    ids[i] = static_cast<int32_t>(kVocab * std::pow(random.uniform(i), 6));
  }
  const Tensor tokens = bench.from(DType::i32, {kTokens}, ids);
  const Tensor table = bench.normals(kHalf, {kVocab, kWidth});
  const Tensor dtable = bench.zeros(DType::f32, {kVocab, kWidth});
  bench.row("embedding_forward", embedding_forward, {y, table, tokens, 0, kVocab});
  bench.row("embedding_backward, f32 table", embedding_backward, {dtable, y, tokens});
}

void time_wide(Bench& bench) {
  const Scope scope(bench.arena());
  const std::initializer_list<int64_t> shape = {kTokens, kHidden};
  const Tensor gate = bench.normals(kHalf, shape), up = bench.normals(kHalf, shape);
  const Tensor dy = bench.normals(kHalf, shape), y = bench.zeros(kHalf, shape);
  const Tensor dgate = bench.zeros(kHalf, shape), dup = bench.zeros(kHalf, shape);
  bench.row("swiglu_forward", swiglu_forward, {y, gate, up});
  bench.row("swiglu_backward", swiglu_backward, {dgate, dup, y, dy, gate, up});
}

/// What stands around a state mixer of 16 heads of 128.
void time_around_mixer(Bench& bench) {
  const Scope scope(bench.arena());
  constexpr int64_t kHeads = 16;
  const Tensor x = bench.normals(kHalf, {1, kTokens, kWidth});
  const Tensor y = bench.zeros(kHalf, {1, kTokens, kWidth});
  const Tensor dy = bench.normals(DType::f32, {1, kTokens, kWidth});
  const Tensor dx = bench.zeros(DType::f32, {1, kTokens, kWidth});
  const Tensor before = bench.normals(kHalf, {3, 1, kWidth});
  const Tensor dbefore = bench.zeros(DType::f32, {3, 1, kWidth});
  const Tensor taps = bench.normals(kHalf, {kWidth, 1, 4});
  const Tensor dtaps = bench.zeros(DType::f32, {kWidth, 1, 4});
  std::vector<int64_t> at(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) at[i] = i;
  const Tensor positions = bench.from(DType::i64, {1, kTokens}, at);
  bench.row("short_convolution_forward, 4 taps", short_convolution_forward,
            {y, x, before, taps, positions});
  bench.row("short_convolution_backward, 4 taps", short_convolution_backward,
            {dx, dbefore, dtaps, dy, x, before, taps, positions});
  bench.row("silu_forward", silu_forward, {y, x});
  bench.row("silu_backward", silu_backward, {dx, dy, x});
  bench.row("feature_map_forward, elu", feature_map_forward, {y, FeatureMap::elu});
  bench.row("feature_map_backward, elu", feature_map_backward, {dx, y, FeatureMap::elu});

  const auto heads = [](const Tensor& t) { return t.reshape({kTokens * kHeads, 128}); };
  const Tensor norms = bench.zeros(DType::f32, {kTokens * kHeads});
  bench.row("unit_norm_forward, heads of 128", unit_norm_forward, {heads(y), norms});
  bench.row("unit_norm_backward, heads of 128", unit_norm_backward, {heads(dx), heads(y), norms});
  const Tensor dout = bench.normals(kHalf, {1, kTokens, kWidth});
  const Tensor dgate = bench.zeros(kHalf, {1, kTokens, kWidth});
  const Tensor again = bench.zeros(kHalf, {1, kTokens, kWidth});
  for (const int64_t width : {int64_t{128}, kWidth}) {
    const auto rows = [&](const Tensor& t) { return t.reshape({t.numel() / width, width}); };
    const Tensor weight = bench.normals(kHalf, {width});
    const Tensor dweight = bench.zeros(DType::f32, {width});
    const Tensor rstd = bench.zeros(DType::f32, {kTokens * kWidth / width});
    const std::string of = width == kWidth ? ", whole tokens" : ", heads of 128";
    bench.row(("gated_norm_forward, silu" + of).c_str(), gated_norm_forward,
              {rows(y), rstd, rows(dy), rows(x), weight, GateFunction::silu});
    bench.row(("gated_norm_backward, silu" + of).c_str(), gated_norm_backward,
              {rows(y), rows(dgate), dweight, rows(again), rows(dout), rows(dy), rstd, rows(x),
               weight, GateFunction::silu});
  }
}

/// Decays of every channel, and gates of 16 heads.
void time_gates(Bench& bench) {
  const Scope scope(bench.arena());
  const auto half = [&](int64_t columns) { return bench.normals(kHalf, {kTokens, columns}); };
  const auto wide = [&](int64_t columns) { return bench.normals(DType::f32, {kTokens, columns}); };
  const auto sum = [&](int64_t columns) { return bench.zeros(DType::f32, {columns}); };
  const Tensor bias = bench.normals(kHalf, {kWidth}), x = half(kWidth), dx = half(kWidth);
  const Tensor log_decay = wide(kWidth), dlog_decay = wide(kWidth);
  bench.row("sigmoid_decay_forward, 2048 channels", sigmoid_decay_forward, {log_decay, x, bias});
  bench.row("sigmoid_decay_backward, 2048 channels", sigmoid_decay_backward,
            {dx, sum(kWidth), dlog_decay, x, bias});
  const Tensor a = half(16), b = half(16), da = half(16), db = half(16), decay = wide(16);
  const Tensor beta = wide(16), ddecay = wide(16), dbeta = wide(16);
  const Tensor a_log = bench.normals(kHalf, {16}), dt_bias = bench.normals(kHalf, {16});
  bench.row("delta_gates_forward, 16 heads", delta_gates_forward,
            {decay, beta, a, b, a_log, dt_bias});
  bench.row("delta_gates_backward, 16 heads", delta_gates_backward,
            {da, db, sum(16), sum(16), ddecay, dbeta, decay, a, b, a_log, dt_bias});
}

void time_loss(Bench& bench) {
  const Scope scope(bench.arena());
  const Tensor logits = bench.normals(kHalf, {2048, kVocab}), sum = bench.zeros(DType::f64, {1});
  std::vector<int32_t> labels(2048);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int32_t>(i * 61);
  const Tensor t = bench.from(DType::i32, {2048}, labels);
  const Tensor one = bench.zeros(DType::f32, {kRowStatistics, 2048});
  const Tensor two = bench.zeros(DType::f32, {2, kRowStatistics, 2048});
  bench.row("cross_entropy_shard, loss only", cross_entropy_shard,
            {one, logits, t, 0, kVocab, 1e-4, false});
  bench.row("cross_entropy_shard with gradient", cross_entropy_shard,
            {one, logits, t, 0, kVocab, 1e-4, true});
  bench.row("cross_entropy_combine, one rank", cross_entropy_combine,
            {sum, logits, one.reshape({1, kRowStatistics, 2048}), t, 0, 0, 1e-4, true});
  bench.row("cross_entropy_combine, two ranks", cross_entropy_combine,
            {sum, logits, two, t, 0, 0, 1e-4, true});
}

void time_optimizer(Bench& bench) {
  const Scope scope(bench.arena());
  const int64_t n = int64_t{1} << 28;
  const Tensor p = bench.normals(DType::f32, {n}), g = bench.normals(DType::f32, {n});
  const Tensor m = bench.zeros(DType::f32, {n}), v = bench.zeros(DType::f32, {n});
  const Tensor norm = bench.zeros(DType::f64, {1});
  bench.row("squared_sum, 268 M", squared_sum, {norm, g});
  bench.row("adamw, 268 M", adamw, {p, m, v, g, norm, 1.0, 1e-4});
}

/// Causal attention of one document. In bf16 with `banded` the host knows the mask, which is what
/// cuDNN is asked for; without, own kernels compute it.
void time_attention(Bench& bench, DType dtype, const AttentionSizes& s, bool banded) {
  const Scope scope(bench.arena());
  const int64_t t = s.queries, B = s.batch, H = s.heads, G = s.kv_heads, D = s.head_dim;
  std::vector<int64_t> begin(B * t, 0), end(B * t);
  for (int64_t i = 0; i < B * t; ++i) end[i] = i % t + 1;
  const Tensor q = bench.normals(dtype, {B, t, H, D}), k = bench.normals(dtype, {B, t, G, D});
  const Tensor v = bench.normals(dtype, {B, t, G, D}), dout = bench.normals(dtype, {B, t, H, D});
  const Tensor out = bench.zeros(DType::f32, {B, t, H, D}),
               dq = bench.zeros(DType::f32, {B, t, H, D});
  const Tensor dk = bench.zeros(DType::f32, {B, t, G, D}),
               dv = bench.zeros(DType::f32, {B, t, G, D});
  const Tensor lse = bench.zeros(DType::f32, {B, H, t}), delta = bench.zeros(DType::f32, {B, H, t});
  const Tensor scratch = bench.arena().allocate("scratch", DType::u8,
                                                {attention_scratch_bytes(Device::cuda, dtype, s)});
  AttentionBlock block{q,
                       k,
                       v,
                       bench.from(DType::i64, {B, t}, begin),
                       bench.from(DType::i64, {B, t}, end),
                       0,
                       1 / std::sqrt(double(D)),
                       causal_pairs(0, t, 0, t)};
  if (banded) block.band = BandMask{0, true, 0};
  std::printf("attention %s causal, %s, T %ld, %ld heads, %ld kv heads of %ld%s\n", name(dtype),
              banded ? cuda::cudnn_version().c_str() : "own kernels", static_cast<long>(t),
              static_cast<long>(H), static_cast<long>(G), static_cast<long>(D),
              dtype == DType::f32 ? " (f32 FFMA peak about 60 TFLOP/s)" : "");
  bench.row("  attention_forward", attention_forward, {out, lse, scratch, block}, dtype == kHalf,
            5);
  bench.row("  attention_delta", attention_delta, {delta, out, dout});
  bench.row("  attention_backward", attention_backward,
            {dq, dk, dv, scratch, dout, lse, delta, block}, dtype == kHalf, 5);
}

void time_attention(Bench& bench) {
  constexpr int64_t kShort = 8192;
  for (const int64_t dim : {64, 128}) {
    time_attention(bench, DType::f32, {1, kShort, kShort, kWidth / dim, kWidth / dim, dim}, false);
  }
  for (const bool banded : {false, true}) {
    if (banded && !cuda::has_cudnn()) continue;
    for (const int64_t tokens : {kShort, kTokens}) {
      time_attention(bench, kHalf, {1, tokens, tokens, 32, 8, 64}, banded);
      time_attention(bench, kHalf, {1, tokens, tokens, 16, 16, 128}, banded);
    }
  }
}

/// All passes of a state mixer, 16 heads with states of 128 x 128, no documents.
void time_state_mixer(Bench& bench, StateKind kind, const char* what, DType dtype) {
  const Scope scope(bench.arena());
  constexpr int64_t kHeads = 16, kDim = 128;
  const auto constant = [&](std::initializer_list<int64_t> shape, double value) {
    const Tensor t = bench.arena().allocate("constant", DType::f32, shape);
    fill({t, value}, bench.stream());
    return t;
  };
  const auto rows = [&](double scale) {
    return bench.normals(dtype, {1, kTokens, kHeads, kDim}, scale);
  };
  const auto result = [&] { return bench.zeros(DType::f32, {1, kTokens, kHeads, kDim}); };
  const auto chunks = [&] {
    return bench.zeros(DType::f32, {1, kHeads, state_chunks(kTokens), kDim, kDim});
  };
  const bool vector = kind == StateKind::vector, delta = kind == StateKind::delta;
  const auto gates = [&](double value) {
    if (kind == StateKind::fixed) return constant({kHeads}, value);
    if (vector) return constant({1, kTokens, kHeads, kDim}, value);
    return constant({1, kTokens, kHeads}, value);
  };
  std::vector<int64_t> at(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) at[i] = i;
  StateTokens tokens{kind, rows(1 / std::sqrt(double(kDim))),       rows(1), {},
                     {},   bench.from(DType::i64, {1, kTokens}, at)};
  if (kind != StateKind::none) tokens.log_decay = gates(-0.02);
  if (delta) tokens.beta = gates(0.5);
  const Tensor q = rows(1), dout = rows(1), out = result(), dk = result(), dv = result();
  const Tensor states = delta ? Tensor() : chunks(), costates = delta ? Tensor() : chunks();
  const Tensor entering = chunks(), state = bench.zeros(DType::f32, {1, kHeads, kDim, kDim});
  const Tensor leaving = bench.zeros(DType::f32, {1, kHeads, kDim, kDim});
  Tensor transition = bench.zeros(DType::f32, {1, kHeads});
  if (vector) transition = bench.zeros(DType::f32, {1, kHeads, kDim});
  if (delta) transition = bench.zeros(DType::f32, {1, kHeads, kDim, kDim});
  StateGradients gradients{result(), dk, dv, {}, {}};
  if (kind != StateKind::none && kind != StateKind::fixed) gradients.dlog_decay = gates(0);
  if (delta) gradients.dbeta = gates(0);
  const Tensor scratch = bench.arena().allocate(
      "scratch", DType::u8,
      {state_scratch_bytes(Device::cuda, kind, dtype, StateShape::of(tokens))});
  const double scale = 1 / std::sqrt(double(kDim));
  const bool tensor_cores = dtype == kHalf;
  std::printf("state mixer %s, %s, T %ld, 16 heads, K = V = 128; scratch %.0f MiB\n", what,
              name(dtype), static_cast<long>(kTokens),
              static_cast<double>(scratch.nbytes()) / (1 << 20));
  bench.row("  state_summarize", state_summarize, {transition, state, states, scratch, tokens},
            tensor_cores, 5);
  if (!delta) {
    bench.row("  state_local", state_local, {out, scratch, q, scale, tokens}, tensor_cores, 5);
  }
  bench.row("  state_apply", state_apply, {out, leaving, state, states, scratch, q, scale, tokens},
            tensor_cores, 5);
  bench.row("  state_cosummarize", state_cosummarize,
            {transition, state, costates, scratch, q, dout, scale, tokens}, tensor_cores, 5);
  bench.row("  state_backward_local", state_backward_local,
            {gradients, entering, state, scratch, q, dout, scale, tokens}, tensor_cores, 5);
  bench.row("  state_backward_apply", state_backward_apply,
            {gradients, leaving, state, entering, costates, scratch, q, dout, scale, tokens},
            tensor_cores, 5);
}

void time_state_mixers(Bench& bench) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    time_state_mixer(bench, StateKind::none, "none", dtype);
    time_state_mixer(bench, StateKind::fixed, "fixed", dtype);
    time_state_mixer(bench, StateKind::scalar, "scalar", dtype);
    time_state_mixer(bench, StateKind::vector, "vector", dtype);
    time_state_mixer(bench, StateKind::delta, "delta", dtype);
  }
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  if (weft::cuda::device_count() == 0) {
    std::puts("no GPU");
    return 0;
  }
  weft::Bench bench;
  weft::measure_rates(bench);
  const std::string_view only = argc < 2 ? "" : argv[1];
  if (only.empty()) {
    weft::time_products(bench);
    weft::time_rows(bench);
    weft::time_wide(bench);
    weft::time_around_mixer(bench);
    weft::time_gates(bench);
    weft::time_loss(bench);
    weft::time_optimizer(bench);
  }
  if (only != "states") weft::time_attention(bench);
  if (only != "attention") weft::time_state_mixers(bench);
}
