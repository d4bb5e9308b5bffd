// The passes of the state mixers of every kind, and the combination of states that scans make.
#include <cmath>

#include "launch/kernel_cases.hpp"
#include "src/kernels/cuda/state_scratch.hpp"
#include "src/kernels/state_combine.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft {
namespace {

using enum Element;

/// A shard of tokens that a state enters and that a gradient of the leaving state reaches. Little
/// is forgotten, so that what comes from far off counts.
class StateShard {
 public:
  StateShard(StateKind kind, Workbench& bench)
      : w(bench),
        kind_(kind),
        B(w.sizes().batch),
        T(w.sizes().tokens),
        H(w.sizes().heads),
        K(w.sizes().head_dim),
        V(w.sizes().value_dim),
        tokens_{.kind = kind,
                .k = w.input(data, {B, T, H, K},
                             [this](double normal) { return normal / std::sqrt(double(K)); }),
                .v = w.input(data, {B, T, H, V}),
                .log_decay = {},
                .beta = {},
                .positions = w.positions(T)},
        q_(w.input(data, {B, T, H, K})),
        dout_(w.input(data, {B, T, H, V})),
        h0_(w.input(wide, {B, H, K, V})),
        dhT_(w.input(wide, {B, H, K, V})) {
    const auto decay = [](double normal) { return -1e-3 - 0.01 * std::abs(std::tanh(normal)); };
    if (kind == StateKind::fixed) tokens_.log_decay = w.input(wide, {H}, decay);
    if (kind == StateKind::vector) tokens_.log_decay = w.input(wide, {B, T, H, K}, decay);
    if (kind == StateKind::scalar || delta()) tokens_.log_decay = w.input(wide, {B, T, H}, decay);
    if (delta()) {
      tokens_.beta =
          w.input(wide, {B, T, H}, [](double normal) { return 0.1 / (1 + std::exp(-normal)); });
    }
    scratch_ =
        w.scratch(state_scratch_bytes(w.device(), kind, w.stored(data), StateShape::of(tokens_)));
  }

  KernelUse summarize() const {
    const StateSummaryArgs args{.transition = transition(output()),
                                .state = w.output("state", wide, {B, H, K, V}),
                                .chunk_states = chunk_outputs("chunk_states"),
                                .scratch = scratch_,
                                .tokens = tokens_};
    return use_of(state_summarize, args, shape());
  }

  KernelUse local() const {
    return use_of(state_local,
                  {.out = w.output("out", wide, {B, T, H, V}),
                   .scratch = scratch_,
                   .q = q_,
                   .scale = scale(),
                   .tokens = tokens_},
                  shape());
  }

  KernelUse apply() const {
    const Tensor chunk_states = handed(chunk_states_wanted());
    Tensor out;
    if (delta()) {
      out = w.output("out", wide, {B, T, H, V});
    } else {
      out = w.work(wide, {B, T, H, V});
      state_summarize(
          {transition(work()), w.work(wide, {B, H, K, V}), chunk_states, scratch_, tokens_},
          w.stream());
      state_local({out, scratch_, q_, scale(), tokens_}, w.stream());
      w.updates("out", out);
    }
    return use_of(state_apply,
                  {.out = out,
                   .hT = w.output("hT", wide, {B, H, K, V}),
                   .h0 = h0_,
                   .chunk_states = chunk_states,
                   .scratch = scratch_,
                   .q = q_,
                   .scale = scale(),
                   .tokens = tokens_},
                  shape());
  }

  KernelUse cosummarize() const {
    return use_of(state_cosummarize,
                  {.transition = transition(output()),
                   .state = w.output("state", wide, {B, H, K, V}),
                   .chunk_costates = chunk_outputs("chunk_costates"),
                   .scratch = scratch_,
                   .q = q_,
                   .dout = dout_,
                   .scale = scale(),
                   .tokens = tokens_},
                  shape());
  }

  KernelUse backward_local() const {
    // Of delta the gradients are written later, in segments all but dq.
    StateGradients written = gradients(delta() || whole_in_segments() ? work() : output());
    if (whole_in_segments()) written.dq = w.output("dq", wide, {B, T, H, K});
    return use_of(state_backward_local,
                  {.gradients = written,
                   .entering = entering_output(),
                   .h0 = h0_,
                   .scratch = scratch_,
                   .q = q_,
                   .dout = dout_,
                   .scale = scale(),
                   .tokens = tokens_},
                  shape());
  }

  KernelUse backward_apply() const {
    const Tensor chunk_costates = handed(chunk_states_wanted());
    const Tensor entering = handed(entering_wanted());
    const StateGradients given = gradients(delta() ? output() : work());
    if (!delta()) {
      state_cosummarize({Tensor(), w.work(wide, {B, H, K, V}), chunk_costates, scratch_, q_, dout_,
                         scale(), tokens_},
                        w.stream());
    }
    state_backward_local({given, entering, h0_, scratch_, q_, dout_, scale(), tokens_}, w.stream());
    if (!delta()) {
      w.updates("dk", given.dk);
      w.updates("dv", given.dv);
      if (given.dlog_decay) w.updates("dlog_decay", given.dlog_decay, Tolerance::cancelling);
    }
    return use_of(state_backward_apply,
                  {.gradients = given,
                   .dh0 = w.output("dh0", wide, {B, H, K, V}),
                   .dhT = dhT_,
                   .entering = entering,
                   .chunk_costates = chunk_costates,
                   .scratch = scratch_,
                   .q = q_,
                   .dout = dout_,
                   .scale = scale(),
                   .tokens = tokens_},
                  shape());
  }

 private:
  /// Makes a tensor of the accumulator type: what the call writes, or what it need not write.
  using Make = std::function<Tensor(const char* name, Workbench::Shape shape, Tolerance tolerance)>;
  Make output() const {
    return [this](const char* name, Workbench::Shape shape, Tolerance tolerance) {
      return w.output(name, wide, shape, tolerance);
    };
  }
  Make work() const {
    return [this](const char*, Workbench::Shape shape, Tolerance) { return w.work(wide, shape); };
  }

  bool delta() const { return kind_ == StateKind::delta; }
  bool in_segments() const {
    return w.device() == Device::cuda && cuda::state::in_segments(kind_, w.stored(data), K, V);
  }
  bool whole_in_segments() const {
    return w.device() == Device::cuda &&
           cuda::state::whole_in_segments(kind_, w.stored(data), K, V);
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(K)); }
  std::string shape() const { return shape_text({B, T, H, K, V}); }

  Tensor transition(const Make& make) const {
    constexpr auto kName = "transition";
    if (kind_ == StateKind::vector) return make(kName, {B, H, K}, Tolerance::plain);
    return delta() ? make(kName, {B, H, K, K}, Tolerance::plain)
                   : make(kName, {B, H}, Tolerance::plain);
  }

  StateGradients gradients(const Make& make) const {
    StateGradients g{.dq = make("dq", {B, T, H, K}, Tolerance::plain),
                     .dk = make("dk", {B, T, H, K}, Tolerance::plain),
                     .dv = make("dv", {B, T, H, V}, Tolerance::plain),
                     .dlog_decay = {},
                     .dbeta = {}};
    if (kind_ == StateKind::vector) {
      g.dlog_decay = make("dlog_decay", {B, T, H, K}, Tolerance::cancelling);
    } else if (kind_ == StateKind::scalar || delta()) {
      g.dlog_decay = make("dlog_decay", {B, T, H}, Tolerance::cancelling);
    }
    if (delta()) g.dbeta = make("dbeta", {B, T, H}, Tolerance::plain);
    return g;
  }

  std::optional<HandedStates> chunk_states_wanted() const {
    return chunk_states_of(w.device(), kind_, w.stored(data), StateShape::of(tokens_));
  }
  std::optional<HandedStates> entering_wanted() const {
    return entering_states_of(w.device(), kind_, w.stored(data), StateShape::of(tokens_));
  }
  Tensor handed(const std::optional<HandedStates>& states) const {
    if (!states) return {};
    return w.work(states->dtype == DType::bf16 ? bf16 : wide, {B, H, states->count, K, V});
  }
  /// Compared where they are the chunks' on the CPU too, not segments'.
  Tensor chunk_outputs(const char* name) const {
    const auto states = chunk_states_wanted();
    if (!states || in_segments()) return handed(states);
    return w.output(name, wide, {B, H, states->count, K, V});
  }
  /// Compared but for what is between two passes.
  Tensor entering_output() const {
    const auto states = entering_wanted();
    if (!states || whole_in_segments()) return handed(states);
    return w.output("entering", wide, {B, H, states->count, K, V});
  }

  Workbench& w;
  StateKind kind_;
  int64_t B, T, H, K, V;
  StateTokens tokens_;
  Tensor q_, dout_, h0_, dhT_, scratch_;
};

/// A state of every head, as large as a layer's. The transition's dims tell its kind.
KernelUse combine(Workbench& w, int transition_dims) {
  const int64_t R = w.sizes().batch * w.sizes().heads, K = w.sizes().head_dim;
  const int64_t V = w.sizes().value_dim;
  const auto log = [](double normal) { return -std::abs(normal); };
  const auto small = [K](double normal) { return normal / std::sqrt(static_cast<double>(K)); };
  return use_of(state_combine,
                {.out = w.output("out", wide, {R, K, V}),
                 .transition = transition_dims == 1   ? w.input(wide, {R}, log)
                               : transition_dims == 2 ? w.input(wide, {R, K}, log)
                                                      : w.input(wide, {R, K, K}, small),
                 .entering = w.input(wide, {R, K, V}),
                 .local = w.input(wide, {R, K, V})},
                shape_text({R, K, V}));
}

}  // namespace

std::vector<KernelCase> state_cases() {
  using Pass = KernelUse (StateShard::*)() const;
  constexpr std::pair<const char*, Pass> kPasses[] = {
      {"state_summarize", &StateShard::summarize},
      {"state_local", &StateShard::local},
      {"state_apply", &StateShard::apply},
      {"state_cosummarize", &StateShard::cosummarize},
      {"state_backward_local", &StateShard::backward_local},
      {"state_backward_apply", &StateShard::backward_apply}};
  constexpr std::pair<const char*, StateKind> kKinds[] = {{"none", StateKind::none},
                                                          {"fixed", StateKind::fixed},
                                                          {"scalar", StateKind::scalar},
                                                          {"vector", StateKind::vector},
                                                          {"delta", StateKind::delta}};
  std::vector<KernelCase> cases;
  for (const auto& [kind_name, kind] : kKinds) {
    for (const auto& [pass_name, pass] : kPasses) {
      // Of delta no output comes from the token's own chunk alone.
      if (kind == StateKind::delta && pass == &StateShard::local) continue;
      cases.push_back({pass_name, kind_name, [kind = kind, pass = pass](Workbench& w) {
                         return (StateShard(kind, w).*pass)();
                       }});
      if (pass != &StateShard::local) continue;
      cases.back().idle = [kind = kind](Device device, DType dtype) {
        const int64_t width = timed_sizes(device).head_dim;
        return device == Device::cuda && cuda::state::whole_in_segments(kind, dtype, width, width);
      };
    }
  }
  for (const auto& [name, dims] :
       {std::pair{"a decay a state", 1}, {"a decay a row", 2}, {"dense", 3}}) {
    cases.push_back(
        {"state_combine", name, [dims = dims](Workbench& w) { return combine(w, dims); }});
  }
  return cases;
}

}  // namespace weft
