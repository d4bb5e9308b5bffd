#include "launch/recording.hpp"

#include <algorithm>

#include "launch/byte_check.hpp"
#include "launch/job.hpp"
#include "launch/report_error.hpp"
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

/// Puts what probes see at its global place.
class ActivationRecorder {
 public:
  /// `compute`: what the step runs on.
  ActivationRecorder(int64_t samples, int64_t tokens, Stream& compute)
      : samples_(samples), tokens_(tokens), compute_(compute) {}

  /// The rank's micro-batches of the step, and the index of their first sample.
  void set_batches(const std::vector<Batch>& batches, int64_t first_sample) {
    batches_ = &batches;
    first_sample_.clear();
    for (const Batch& batch : batches) {
      first_sample_.push_back(first_sample);
      first_sample += std::ssize(batch.segments);
    }
  }

  void observe(const Observation& seen) {
    if (seen.name == "positions") return;  // the data's, not computed
    const Batch& batch = (*batches_)[seen.micro_batch];
    const Tensor& value = seen.value;
    const int64_t T = batch.end - batch.begin;
    // [rows, width], or [B, T, ...]
    const int64_t rows = value.ndim > 2 ? value.dim(0) * value.dim(1) : value.dim(0);
    const int64_t width = rows == 0 ? 0 : value.numel() / rows;
    std::vector<double>& whole = entry(seen.name, seen.columns);
    const std::vector<double> part = to_doubles(value, compute_);
    int64_t& elements = elements_seen_[{seen.name, seen.micro_batch}];
    elements += value.numel();
    WEFT_CHECK(elements <= std::ssize(batch.segments) * T * seen.columns, seen.name,
               " was observed more than once");
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = seen.row + r;
      const int64_t sample = first_sample_[seen.micro_batch] + row / T;
      const int64_t token = batch.begin + row % T;
      std::copy_n(part.begin() + r * width, width,
                  whole.begin() + (sample * tokens_ + token) * seen.columns + seen.column);
    }
  }

  std::vector<Recording::Entry> take() { return std::move(entries_); }

 private:
  std::vector<double>& entry(const std::string& name, int64_t columns) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& e) { return e.name == name; });
    if (found != entries_.end()) return found->values;
    entries_.push_back({name, std::vector<double>(samples_ * tokens_ * columns)});
    return entries_.back().values;
  }

  int64_t samples_, tokens_;
  Stream& compute_;
  const std::vector<Batch>* batches_ = nullptr;
  std::vector<int64_t> first_sample_;  // by micro-batch
  std::map<std::pair<std::string, int>, int64_t> elements_seen_;
  std::vector<Recording::Entry> entries_;
};

/// Zeros for all parameters of the trainer's model, with `piece` of what it owns put in place.
std::vector<Recording::Entry> owned_entries(Trainer& trainer, Tensor OwnedPiece::*piece) {
  Model whole(trainer.model().config(), {}, /*loss_slice=*/1);
  std::vector<Recording::Entry> entries;
  std::map<std::string, size_t> places;
  for (const Parameter* p : whole.parameters()) {
    places[p->name] = entries.size();
    entries.push_back({p->name, std::vector<double>(p->global_numel())});
  }
  for (const OwnedPiece& owned : trainer.owned()) {
    std::vector<double>& values = entries[places.at(owned.parameter->name)].values;
    const std::vector<double> part = to_doubles(owned.*piece, trainer.compute());
    for (int64_t i = owned.begin; i < owned.end; ++i) {
      values[owned.parameter->global_index(i)] = part[i - owned.begin];
    }
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
        plan_(plan_step(config, world.rank())),
        trainer_(config, world, plan_.memory, hooks.stand_ins),
        all_(world.everyone("recording")),
        samples_(Cuts::even(config.train.global_batch_size, trainer_.mesh().size(Axis::data))),
        loader_(make_batch_loader(config, source, coordinate_of(config.mesh, world.rank()))),
        activations_(config.train.global_batch_size, config.data.seq_length, trainer_.compute()) {
    trainer_.set_before_update([this] {
      if (hooks_.gradients) hooks_.gradients(trainer_);
      recording_.gradients.push_back(whole(owned_gradients(trainer_)));
    });
  }

  Recording run(int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) one_step(step);
    return std::move(recording_);
  }

 private:
  void one_step(int64_t step) {
    whereabouts().step = step;
    fail_on_demand(all_->rank(), step);
    std::vector<Batch> batches = loader_.load(step);
    if (hooks_.batches) hooks_.batches(batches);
    activations_.set_batches(batches, samples_.begin(trainer_.mesh().at(Axis::data)));
    trainer_.set_probe([&](const Observation& seen) {
      if (hooks_.probe) hooks_.probe(trainer_, seen);
      if (step == 0) activations_.observe(seen);
    });
    if (step == 0) recording_.parameters.push_back(whole(owned_values(trainer_)));
    const StepReport report = trainer_.step(step, batches, loader_.global_labels(step));
    const bool planned = !hooks_.stand_ins.attention && !hooks_.stand_ins.scan;
    if (planned) plan_.memory.check(step, trainer_.peaks());  // a stand-in plans for itself
    if (hooks_.check_bytes) {
      check_sent_bytes(step, plan_.bytes, trainer_.predicted().entries(),
                       trainer_.counted().entries());
      trainer_.clear_ledgers();
    }
    recording_.losses.push_back(report.loss);
    recording_.parameters.push_back(whole(owned_values(trainer_)));
    check_holders(step);
    if (step == 0) merge_activations();
  }

  /// The sum over all ranks.
  std::vector<Recording::Entry> whole(std::vector<Recording::Entry> mine) const {
    for (Recording::Entry& entry : mine) sum_over(*all_, entry.values);
    return mine;
  }

  /// A rank sees what its stage computes, and nothing without samples: it takes part with zeros
  /// under the names of the others.
  void merge_activations() {
    std::vector<Recording::Entry> mine = activations_.take();
    for (int teller = 0; teller < all_->size(); ++teller) {
      const std::string names = broadcast(all_->rank() == teller ? list(mine) : "", teller);
      for (size_t begin = 0; begin < names.size();) {
        const size_t tab = names.find('\t', begin), end = names.find('\n', begin);
        add_name(names.substr(begin, tab - begin), std::stoll(names.substr(tab + 1)));
        begin = end + 1;
      }
    }
    for (Recording::Entry& entry : recording_.activations) {
      const Recording::Entry* found = Recording::find(mine, entry.name);
      if (found != nullptr) entry.values = found->values;
      sum_over(*all_, entry.values);
    }
  }

  void add_name(const std::string& name, int64_t size) {
    if (Recording::find(recording_.activations, name) != nullptr) return;
    recording_.activations.push_back({name, std::vector<double>(size)});
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

  /// Ranks that hold the same piece of a parameter must hold the same bits.
  void check_holders(int64_t step) {
    const std::vector<HeldValues> parts = trainer_.held();
    for (const auto& [name, values] : recording_.parameters.front()) {
      // Of every rank: the piece's first element, counted from 1, and 32 bits of a hash, which are
      // exact in f64.
      std::vector<double> pieces(all_->size()), hashes(all_->size());
      for (const HeldValues& part : parts) {
        const Parameter* p = part.parameter;
        if (p->name != name || part.begin == part.end) continue;
        const std::vector<double> held = to_doubles(part.values, trainer_.compute());
        std::string bytes(reinterpret_cast<const char*>(held.data()), held.size() * sizeof(double));
        pieces[all_->rank()] = static_cast<double>(1 + p->global_index(part.begin));
        hashes[all_->rank()] = static_cast<double>(RandomStream(0, bytes).bits(0) >> 32);
      }
      sum_over(*all_, pieces);
      sum_over(*all_, hashes);
      std::map<double, double> first;
      for (int rank = 0; rank < all_->size(); ++rank) {
        if (pieces[rank] == 0) continue;
        const double hash = first.try_emplace(pieces[rank], hashes[rank]).first->second;
        WEFT_REQUIRE(hash == hashes[rank], ExitCode::comparison, "step ", step, ": '", name,
                     "' is not the same on all ranks");
      }
    }
  }

  const Config config_;
  const RecordingHooks& hooks_;
  StepPlan plan_;
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

std::vector<Recording::Entry> owned_values(Trainer& trainer) {
  return owned_entries(trainer, &OwnedPiece::value);
}

std::vector<Recording::Entry> owned_gradients(Trainer& trainer) {
  return owned_entries(trainer, &OwnedPiece::gradient);
}

Recording record_run(const Config& config, World& world, const SampleSource& source, int64_t steps,
                     const RecordingHooks& hooks) {
  return RecordedRank(config, world, source, hooks).run(steps);
}

}  // namespace weft
