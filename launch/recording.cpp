#include "launch/recording.hpp"

#include <algorithm>

#include "launch/samples.hpp"
#include "src/core/random.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

/// Elements as f64, in row-major order, as they are after what is enqueued on `stream`. Only
/// contiguous tensors are observed.
std::vector<double> to_doubles(const Tensor& t, Stream& stream) {
  const HostCopy host(t, stream);
  std::vector<double> out(t.numel());
  const int64_t dims[] = {t.numel()};
  const Tensor doubles = Tensor::view(out.data(), DType::f64, Device::cpu, dims);
  cpu::convert({.y = doubles, .x = host.tensor()});
  return out;
}

Tensor flat_view(std::vector<double>& v) {
  const int64_t dims[] = {std::ssize(v)};
  return Tensor::view(v.data(), DType::f64, Device::cpu, dims);
}

/// The element-wise sum over all ranks.
void sum_over(Backend& all, std::vector<double>& v) {
  const Cuts cuts = Cuts::even(std::ssize(v), all.size());
  std::vector<double> scratch(cuts.size(all.rank()));
  all.reduce_scatter(flat_view(v), cuts, flat_view(scratch));
  all.all_gather(flat_view(v), cuts);
}

/// Puts the rows that probes see at their global places.
class ActivationRecorder {
 public:
  /// `compute`: what the step runs on.
  ActivationRecorder(int64_t samples, int64_t tokens, Stream& compute)
      : samples_(samples), tokens_(tokens), compute_(compute) {}

  /// The rank's micro-batches of the step, and the index of their first sample.
  void set_batches(const std::vector<Batch>& batches, int64_t first_sample) {
    batches_ = &batches;
    next_sample_ = first_sample;
    micro_batch_ = -1;
  }

  void observe(std::string_view name, const Tensor& value) {
    if (name == "positions") {  // Model::begin: a new micro-batch
      first_sample_ = next_sample_;
      ++micro_batch_;
      next_sample_ += std::ssize((*batches_)[micro_batch_].segments);
      rows_seen_.clear();
      return;
    }
    place(std::string(name), value);
  }

  std::vector<Recording::Entry> take() { return std::move(entries_); }

 private:
  /// value: the next rows [rows, width] of this micro-batch; slices of tokens come one by one.
  void place(const std::string& name, const Tensor& value) {
    const Batch& batch = (*batches_)[micro_batch_];
    const int64_t T = batch.end - batch.begin;
    // [rows, width], or [B, T, ...]
    const int64_t rows = value.ndim > 2 ? value.dim(0) * value.dim(1) : value.dim(0);
    int64_t width = 1;
    for (int d = value.ndim > 2 ? 2 : 1; d < value.ndim; ++d) width *= value.dim(d);
    std::vector<double>& whole = entry(name, width);
    const std::vector<double> part = to_doubles(value, compute_);
    int64_t& seen = rows_seen_[name];
    for (int64_t r = 0; r < rows; ++r, ++seen) {
      const int64_t sample = first_sample_ + seen / T, token = batch.begin + seen % T;
      WEFT_CHECK(sample < next_sample_, name, " was observed more than once");
      std::copy_n(part.begin() + r * width, width,
                  whole.begin() + (sample * tokens_ + token) * width);
    }
  }

  std::vector<double>& entry(const std::string& name, int64_t width) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& e) { return e.name == name; });
    if (found != entries_.end()) return found->values;
    entries_.push_back({name, std::vector<double>(samples_ * tokens_ * width)});
    return entries_.back().values;
  }

  int64_t samples_, tokens_;
  Stream& compute_;
  const std::vector<Batch>* batches_ = nullptr;
  int micro_batch_ = -1;
  int64_t first_sample_ = 0, next_sample_ = 0;
  std::map<std::string, int64_t> rows_seen_;
  std::vector<Recording::Entry> entries_;
};

std::vector<Recording::Entry> parameter_entries(Trainer& trainer, bool gradients) {
  const ParameterStore& store = trainer.parameters();
  std::vector<Recording::Entry> entries;
  for (const Parameter* p : store.parameters()) {
    const Tensor tensor = gradients ? store.gradient(*p) : store.value(*p);
    entries.push_back({p->name, to_doubles(tensor, trainer.compute())});
  }
  return entries;
}

/// One rank of a recorded run.
class RecordedRank {
 public:
  RecordedRank(const Config& config, World& world, const SampleSource& source,
               const RecordingHooks& hooks)
      : config_(config),
        hooks_(hooks),
        plan_(plan_step(config, world.rank()).memory),
        trainer_(config, world, plan_, hooks.stand_ins),
        all_(world.everyone("recording")),
        samples_(Cuts::even(config.train.global_batch_size, trainer_.mesh().size(Axis::data))),
        loader_(make_batch_loader(config, source, coordinate_of(config.mesh, world.rank()))),
        activations_(config.train.global_batch_size, config.data.seq_length, trainer_.compute()) {
    trainer_.set_before_update([this] {
      if (hooks_.gradients) hooks_.gradients(trainer_);
      recording_.gradients.push_back(parameter_entries(trainer_, true));
    });
  }

  Recording run(int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) one_step(step);
    return std::move(recording_);
  }

 private:
  void one_step(int64_t step) {
    std::vector<Batch> batches = loader_.load(step);
    if (hooks_.batches) hooks_.batches(batches);
    activations_.set_batches(batches, samples_.begin(trainer_.mesh().at(Axis::data)));
    trainer_.set_probe([&](std::string_view name, const Tensor& value) {
      if (hooks_.probe) hooks_.probe(name, value);
      if (step == 0) activations_.observe(name, value);
    });
    if (step == 0) recording_.parameters.push_back(parameter_entries(trainer_, false));
    const StepReport report = trainer_.step(step, batches, loader_.global_labels(step));
    const bool planned = !hooks_.stand_ins.attention && !hooks_.stand_ins.scan;
    if (planned) plan_.check(step, trainer_.peaks());  // a stand-in plans for itself
    recording_.losses.push_back(report.loss);
    recording_.parameters.push_back(parameter_entries(trainer_, false));
    check_replicas(step, recording_.parameters.back());
    for (Recording::Entry& entry : recording_.gradients.back()) sum_over(*all_, entry.values);
    if (step == 0) merge_activations();
  }

  /// A rank without samples has seen no activation: it takes part with zeros of the same names.
  void merge_activations() {
    std::vector<Recording::Entry> mine = activations_.take();
    std::vector<double> have(all_->size());
    have[all_->rank()] = static_cast<double>(mine.size());
    sum_over(*all_, have);
    const int teller = static_cast<int>(std::max_element(have.begin(), have.end()) - have.begin());
    std::string names = all_->rank() == teller ? list(mine) : "";
    names = broadcast(names, teller);
    for (size_t begin = 0; begin < names.size();) {
      const size_t tab = names.find('\t', begin), end = names.find('\n', begin);
      const std::string name = names.substr(begin, tab - begin);
      const Recording::Entry* found = Recording::find(mine, name);
      Recording::Entry entry{
          name, found ? found->values : std::vector<double>(std::stoll(names.substr(tab + 1)))};
      sum_over(*all_, entry.values);
      recording_.activations.push_back(std::move(entry));
      begin = end + 1;
    }
  }

  static std::string list(const std::vector<Recording::Entry>& entries) {
    std::string text;
    for (const auto& [name, values] : entries) text += concat(name, '\t', values.size(), '\n');
    return text;
  }

  std::string broadcast(std::string text, int root) const {
    int64_t size = std::ssize(text);
    const int64_t one[] = {1};
    all_->broadcast(Tensor::view(&size, DType::i64, Device::cpu, one), root);
    text.resize(size);
    const int64_t dims[] = {size};
    all_->broadcast(Tensor::view(text.data(), DType::u8, Device::cpu, dims), root);
    return text;
  }

  /// All ranks hold all parameters; they must hold the same bits.
  void check_replicas(int64_t step, const std::vector<Recording::Entry>& parameters) const {
    for (const auto& [name, values] : parameters) {
      std::string bytes(reinterpret_cast<const char*>(values.data()),
                        values.size() * sizeof(double));
      // 32 bits of a hash are exact in f64.
      std::vector<double> hashes(all_->size());
      hashes[all_->rank()] = static_cast<double>(RandomStream(0, bytes).bits(0) >> 32);
      sum_over(*all_, hashes);
      for (const double hash : hashes) {
        WEFT_REQUIRE(hash == hashes[0], ExitCode::comparison, "step ", step, ": '", name,
                     "' is not the same on all ranks");
      }
    }
  }

  const Config config_;
  const RecordingHooks& hooks_;
  MemoryPlan plan_;
  Trainer trainer_;
  std::unique_ptr<Backend> all_;
  Cuts samples_;
  BatchLoader loader_;
  ActivationRecorder activations_;
  Recording recording_;
};

}  // namespace

const Recording::Entry* Recording::find(const std::vector<Entry>& entries,
                                        const std::string& name) {
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

Recording record_run(const Config& config, World& world, const SampleSource& source, int64_t steps,
                     const RecordingHooks& hooks) {
  return RecordedRank(config, world, source, hooks).run(steps);
}

}  // namespace weft
