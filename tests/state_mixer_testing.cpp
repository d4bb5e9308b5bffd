#include "tests/state_mixer_testing.hpp"

namespace weft {
namespace {

using Inputs = naive::StateMixerInputs;

double to_f32(double x) {
  return static_cast<float>(x);
}

int64_t numel(const std::vector<int64_t>& shape) {
  int64_t n = shape.empty() ? 0 : 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

void normalise_keys(Inputs& in) {
  for (size_t row = 0; row < in.k.size(); row += in.key_dim) {
    double squares = 0;
    for (int64_t d = 0; d < in.key_dim; ++d) squares += in.k[row + d] * in.k[row + d];
    for (int64_t d = 0; d < in.key_dim; ++d) {
      in.k[row + d] = to_f32(in.k[row + d] / std::sqrt(squares));
    }
  }
}

std::vector<double> mixed_log_decays(int64_t count, bool resets) {
  const RandomStream random(7, "log_decay");
  std::vector<double> out(count);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t sort = random.below(2 * i, 40);
    out[i] =
        to_f32(std::log(1.0 - 0.5 * static_cast<double>(random.below(2 * i + 1, 1000)) / 1000));
    if (sort == 0) out[i] = to_f32(std::log(1e-3));
    if (sort == 1 && resets) out[i] = -kInfinity;
  }
  return out;
}

/// The tensors of one shard. Rows are [B, T, H, D].
class Shard {
 public:
  Shard(const Inputs& in, const MixerOptions& options)
      : in_(in),
        dtype_(options.dtype),
        chunks_(state_chunks(in.tokens)),
        key_rows_{in.batch, in.tokens, in.heads, in.key_dim},
        value_rows_{in.batch, in.tokens, in.heads, in.value_dim},
        state_{in.batch, in.heads, in.key_dim, in.value_dim},
        scratch_(DType::u8, {state_scratch_bytes(in.kind, dtype_, in.key_dim, in.value_dim)}) {
    inputs_ = rows(options.packed);
    gradients_ = rows(options.packed);
    assign(inputs_.q, in.q);
    assign(inputs_.k, in.k);
    assign(inputs_.v, in.v);
    tokens_ = {in.kind, inputs_.k, inputs_.v, {}, {}, {}};
    if (in.kind != StateKind::none) {
      tokens_.log_decay = keep(from_values(dtype_, log_decay_shape(in), in.log_decay));
    }
    if (in.kind == StateKind::delta) {
      tokens_.beta = keep(from_values(dtype_, {in.batch, in.tokens, in.heads}, in.beta));
    }
    tokens_.positions = keep(
        from_values(DType::i64, {in.batch, in.tokens}, {in.positions.begin(), in.positions.end()}));
    dout_ = keep(from_values(dtype_, value_rows_, in.dout));
    if (options.boundaries) {
      h0_ = keep(from_values(dtype_, state_, in.h0));
      dhT_ = keep(from_values(dtype_, state_, in.dhT));
      hT_ = keep(Owned(dtype_, state_));
      dh0_ = keep(Owned(dtype_, state_));
    }
  }

  MixerRun run() {
    MixerRun run;
    forward(run);
    backward(run);
    return run;
  }

 private:
  struct Rows {
    Tensor q, k, v;
  };

  Tensor keep(Owned tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  Rows rows(bool packed) {
    if (!packed) {
      return {keep(Owned(dtype_, key_rows_)), keep(Owned(dtype_, key_rows_)),
              keep(Owned(dtype_, value_rows_))};
    }
    const int64_t k = in_.key_dim, width = 2 * k + in_.value_dim + 1;
    const Tensor all = keep(Owned(dtype_, {in_.batch, in_.tokens, in_.heads, width}));
    return {all.slice(3, 0, k), all.slice(3, k, 2 * k), all.slice(3, 2 * k, width - 1)};
  }

  Tensor transition() {
    if (in_.kind == StateKind::vector)
      return keep(Owned(dtype_, {in_.batch, in_.heads, in_.key_dim}));
    if (in_.kind != StateKind::delta) return keep(Owned(dtype_, {in_.batch, in_.heads}));
    return keep(Owned(dtype_, {in_.batch, in_.heads, in_.key_dim, in_.key_dim}));
  }

  Tensor chunk_states(bool wanted) {
    if (!wanted) return {};
    return keep(Owned(dtype_, {in_.batch, in_.heads, chunks_, in_.key_dim, in_.value_dim}));
  }

  static std::vector<double> values_of(const Tensor& t) {
    return t ? values(t) : std::vector<double>();
  }

  void forward(MixerRun& run) {
    const Tensor out = keep(Owned(dtype_, value_rows_));
    const StateSummaryArgs summary{transition(), keep(Owned(dtype_, state_)),
                                   chunk_states(in_.kind != StateKind::delta), scratch_, tokens_};
    state_summarize(summary, cpu_stream());
    state_local({out, scratch_, inputs_.q, in_.scale, tokens_}, cpu_stream());
    state_apply({out, hT_, h0_, summary.chunk_states, scratch_, inputs_.q, in_.scale, tokens_},
                cpu_stream());
    run.transition = values(summary.transition);
    run.state = values(summary.state);
    run.result.out = values(out);
    run.result.hT = values_of(hT_);
  }

  void backward(MixerRun& run) {
    StateGradients gradients{gradients_.q, gradients_.k, gradients_.v, {}, {}};
    if (in_.kind != StateKind::none && in_.kind != StateKind::fixed) {
      gradients.dlog_decay = keep(Owned(dtype_, log_decay_shape(in_)));
    }
    if (tokens_.beta) gradients.dbeta = keep(Owned(dtype_, {in_.batch, in_.tokens, in_.heads}));
    const StateCosummaryArgs summary{h0_ ? transition() : Tensor(),
                                     keep(Owned(dtype_, state_)),
                                     chunk_states(in_.kind != StateKind::delta),
                                     scratch_,
                                     inputs_.q,
                                     dout_,
                                     in_.scale,
                                     tokens_};
    state_cosummarize(summary, cpu_stream());
    const Tensor entering = chunk_states(true);
    state_backward_local({gradients, entering, h0_, scratch_, inputs_.q, dout_, in_.scale, tokens_},
                         cpu_stream());
    state_backward_apply({gradients, dh0_, dhT_, entering, summary.chunk_costates, scratch_,
                          inputs_.q, dout_, in_.scale, tokens_},
                         cpu_stream());
    run.cotransition = values_of(summary.transition);
    run.costate = values(summary.state);
    run.result.dq = values(gradients.dq);
    run.result.dk = values(gradients.dk);
    run.result.dv = values(gradients.dv);
    run.result.dlog_decay = values_of(gradients.dlog_decay);
    run.result.dbeta = values_of(gradients.dbeta);
    run.result.dh0 = values_of(dh0_);
  }

  const Inputs& in_;
  DType dtype_;
  int64_t chunks_;
  std::vector<int64_t> key_rows_, value_rows_, state_;
  std::vector<Owned> kept_;
  Owned scratch_;
  Rows inputs_, gradients_;
  StateTokens tokens_;
  Tensor dout_, h0_, hT_, dhT_, dh0_;
};

/// Items [begin, end) of dim 1 of [batch, tokens, any].
template <class T>
std::vector<T> cut_rows(const std::vector<T>& rows, const Inputs& in, int64_t begin, int64_t end) {
  if (in.tokens == 0) return {};
  const int64_t width = std::ssize(rows) / (in.batch * in.tokens);
  std::vector<T> out;
  for (int64_t b = 0; b < in.batch; ++b) {
    const auto first = rows.begin() + b * in.tokens * width;
    out.insert(out.end(), first + begin * width, first + end * width);
  }
  return out;
}

}  // namespace

const char* name(StateKind kind) {
  constexpr const char* kNames[] = {"none", "fixed", "scalar", "vector", "delta"};
  return kNames[static_cast<int>(kind)];
}

std::vector<int64_t> log_decay_shape(const Inputs& in) {
  switch (in.kind) {
    case StateKind::none:
      return {};
    case StateKind::fixed:
      return {in.heads};
    case StateKind::scalar:
    case StateKind::delta:
      return {in.batch, in.tokens, in.heads};
    case StateKind::vector:
      return {in.batch, in.tokens, in.heads, in.key_dim};
  }
  return {};
}

Inputs mixer_problem(StateKind kind, const MixerSizes& sizes) {
  const auto& [batch, tokens, heads, key_dim, value_dim] = sizes;
  Inputs in;
  in.kind = kind;
  in.batch = batch, in.tokens = tokens, in.heads = heads;
  in.key_dim = key_dim, in.value_dim = value_dim;
  in.scale = 0.25;
  const int64_t rows = batch * tokens * heads;
  in.q = normal_values(rows * key_dim, "q");
  in.k = normal_values(rows * key_dim, "k");
  in.v = normal_values(rows * value_dim, "v");
  in.dout = normal_values(rows * value_dim, "dout");
  in.h0 = normal_values(batch * heads * key_dim * value_dim, "h0");
  in.dhT = normal_values(batch * heads * key_dim * value_dim, "dhT");
  normalise_keys(in);
  in.log_decay = mixed_log_decays(numel(log_decay_shape(in)), kind != StateKind::fixed);
  if (kind == StateKind::delta) {
    for (const double x : normal_values(rows, "beta")) {
      in.beta.push_back(to_f32(1 / (1 + std::exp(-x))));
    }
  }
  in.positions.assign(batch * tokens, 1);
  return in;
}

void set_decay(Inputs& in, double log_decay) {
  std::fill(in.log_decay.begin(), in.log_decay.end(), to_f32(log_decay));
}

void make_lasting(Inputs& in) {
  for (double& log : in.log_decay) log = to_f32(std::max(log, -0.7) / 25 - 1e-3);
  for (double& beta : in.beta) beta = to_f32(beta / 10);
}

void set_documents(Inputs& in, const std::vector<int64_t>& starts) {
  for (int64_t b = 0; b < in.batch; ++b) {
    for (const int64_t start : starts) {
      if (start + b < in.tokens) in.positions[b * in.tokens + start + b] = 0;
    }
  }
}

Inputs cut(const Inputs& in, int64_t begin, int64_t end) {
  Inputs part = in;
  part.tokens = end - begin;
  for (auto rows : {&Inputs::q, &Inputs::k, &Inputs::v, &Inputs::dout, &Inputs::beta}) {
    part.*rows = cut_rows(in.*rows, in, begin, end);
  }
  if (in.kind != StateKind::fixed) part.log_decay = cut_rows(in.log_decay, in, begin, end);
  part.positions = cut_rows(in.positions, in, begin, end);
  return part;
}

MixerRun run_mixer(const Inputs& in, const MixerOptions& options) {
  return Shard(in, options).run();
}

std::vector<double> apply_transition(const Inputs& in, const std::vector<double>& transition,
                                     const std::vector<double>& x, int64_t columns,
                                     bool transposed) {
  std::vector<double> y(x.size(), 0.0);
  const int64_t K = in.key_dim;
  for (int64_t head = 0; head < in.batch * in.heads; ++head) {
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        double& out = y[(head * K + i) * columns + j];
        if (in.kind != StateKind::delta) {
          const double log = transition[in.kind == StateKind::vector ? head * K + i : head];
          out = std::exp(log) * x[(head * K + i) * columns + j];
          continue;
        }
        for (int64_t l = 0; l < K; ++l) {
          const double a = transition[head * K * K + (transposed ? l * K + i : i * K + l)];
          out += a * x[(head * K + l) * columns + j];
        }
      }
    }
  }
  return y;
}

}  // namespace weft
