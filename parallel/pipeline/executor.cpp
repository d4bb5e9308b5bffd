#include "parallel/pipeline/executor.hpp"

#include <algorithm>
#include <map>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// The other end of a channel.
int peer_of(const Communicator& channel) {
  return 1 - channel.rank();
}

/// The receiving end of a channel.
class Arrivals {
 public:
  struct Due {
    Tag tag;
    int64_t rows;
  };

  /// `buffer` holds the largest message of `due`, which come in that order.
  Arrivals(Communicator& channel, const Tensor& buffer, std::vector<Due> due)
      : channel_(channel), buffer_(buffer), due_(std::move(due)) {}

  /// Posts the receive of the next message, if there is one.
  void post(Stream& compute) {
    if (next_ == due_.size()) return;
    arrived_ =
        channel_.exchange({receive_from(peer_of(channel_), message())}, due_[next_].tag, compute);
  }

  /// Copies the next message to `to` and frees the buffer for the one after it.
  void take(const Tensor& to, const Tag& tag, Stream& compute) {
    WEFT_CHECK(next_ < due_.size() && due_[next_].tag == tag, text(tag), " is not due");
    compute.wait(arrived_);
    copy({.y = to, .x = message()}, compute);
    ++next_;
    post(compute);
  }

 private:
  Tensor message() const { return buffer_.slice(0, 0, due_[next_].rows); }

  Communicator& channel_;
  Tensor buffer_;
  std::vector<Due> due_;
  size_t next_ = 0;
  Event arrived_;
};

/// The sending end of a channel of gradients.
class Departures {
 public:
  Departures(Communicator& channel, const Tensor& buffer) : channel_(channel), buffer_(buffer) {}

  void send(const Tensor& d, const Tag& tag, Stream& compute) {
    compute.wait(sent_);
    const Tensor message = buffer_.slice(0, 0, d.dim(0));
    copy({.y = message, .x = d}, compute);
    sent_ = channel_.exchange({send_to(peer_of(channel_), message)}, tag, compute);
  }
  void wait(Stream& compute) const { compute.wait(sent_); }

 private:
  Communicator& channel_;
  Tensor buffer_;
  Event sent_;
};

/// One step of one stage.
class StageRun {
 public:
  StageRun(const PipelineSchedule& schedule, PipelineChannels& channels, StageWork& work,
           StepContext& ctx)
      : schedule_(schedule),
        channels_(channels),
        stage_(channels.stage()),
        work_(work),
        ctx_(ctx),
        outputs_(schedule.shape.chunks * schedule.shape.micro_batches) {
    for (int i = 0; i < schedule.shape.micro_batches; ++i) {
      most_rows_ = std::max(most_rows_, work.rows(i));
    }
    open_channels();
  }

  void run() {
    for (auto& [place, arrivals] : arrivals_) arrivals.post(ctx_.compute);
    for (const PipelineAction& action : schedule_.actions[stage_]) {
      switch (action.kind) {
        case ActionKind::forward:
          forward(action);
          break;
        case ActionKind::backward:
        case ActionKind::backward_input:
          backward(action);
          break;
        case ActionKind::backward_weight:
          work_.backward_weight(action.chunk, action.micro_batch);
          break;
      }
    }
    for (const auto& [place, departures] : departures_) departures.wait(ctx_.compute);
  }

 private:
  struct Output {
    Tensor tensor;
    Event sent;
  };
  using Way = std::pair<int, Tag::Pass>;  // the stage at the other end, and what passes

  static Tag::Pass pass_of(const PipelineAction& action) {
    return action.kind == ActionKind::forward ? Tag::Pass::forward : Tag::Pass::backward;
  }

  Tensor allocate(const char* name, int64_t rows) {
    return ctx_.scratch.allocate(name, ctx_.dtype, {rows, work_.width()});
  }

  /// Of what the action takes from the pieces before it (going forward) or after it.
  Tag tag_of_source(const PipelineAction& action) const {
    const int piece = schedule_.piece({stage_, action.chunk});
    return tag(action, action.kind == ActionKind::forward ? piece : piece + 1);
  }
  /// Of what the action hands over.
  Tag tag_of_target(const PipelineAction& action) const {
    const int piece = schedule_.piece({stage_, action.chunk});
    return tag(action, action.kind == ActionKind::forward ? piece + 1 : piece);
  }
  Tag tag(const PipelineAction& action, int entered) const {
    return {work_.layer(entered), Tag::Purpose::activation, pass_of(action), action.micro_batch};
  }

  /// Buffers and orders of the channels that the list of actions uses.
  void open_channels() {
    std::map<Way, std::vector<Arrivals::Due>> due;
    for (const PipelineAction& action : schedule_.actions[stage_]) {
      const auto source = schedule_.source(stage_, action),
                 target = schedule_.target(stage_, action);
      if (source && source->stage != stage_) {
        due[{source->stage, pass_of(action)}].push_back(
            {tag_of_source(action), work_.rows(action.micro_batch)});
      }
      const Way out{target ? target->stage : stage_, pass_of(action)};
      if (out.first == stage_ || out.second == Tag::Pass::forward || departures_.contains(out)) {
        continue;
      }
      departures_.try_emplace(out, channels_.to(out.first, out.second),
                              allocate("departing gradient", most_rows_));
    }
    for (auto& [way, messages] : due) {
      const char* name = way.second == Tag::Pass::forward ? "arriving output" : "arriving gradient";
      arrivals_.try_emplace(way, channels_.from(way.first, way.second), allocate(name, most_rows_),
                            std::move(messages));
    }
  }

  void forward(const PipelineAction& action) {
    const int micro_batch = action.micro_batch;
    const Tensor input = work_.begin(action.chunk, micro_batch);
    if (const auto source = schedule_.source(stage_, action)) {
      if (source->stage == stage_) {
        copy({.y = input, .x = output(source->chunk, micro_batch).tensor}, ctx_.compute);
      } else {
        arrivals_.at({source->stage, Tag::Pass::forward})
            .take(input, tag_of_source(action), ctx_.compute);
      }
    }
    Output& own = output(action.chunk, micro_batch);
    own.tensor = work_.forward(action.chunk, micro_batch);
    const auto target = schedule_.target(stage_, action);
    if (!target || target->stage == stage_) return;
    Communicator& channel = channels_.to(target->stage, Tag::Pass::forward);
    own.sent = channel.exchange({send_to(peer_of(channel), own.tensor)}, tag_of_target(action),
                                ctx_.compute);
  }

  void backward(const PipelineAction& action) {
    const int micro_batch = action.micro_batch;
    const Output& own = output(action.chunk, micro_batch);
    ctx_.compute.wait(own.sent);
    const Scope scope(ctx_.scratch);
    const Tensor d = allocate("dstream", work_.rows(micro_batch));
    if (const auto source = schedule_.source(stage_, action)) {
      if (source->stage == stage_) {
        copy({.y = d, .x = own.tensor}, ctx_.compute);
      } else {
        arrivals_.at({source->stage, Tag::Pass::backward})
            .take(d, tag_of_source(action), ctx_.compute);
      }
    }
    work_.backward(action.kind, action.chunk, micro_batch, d);
    const auto target = schedule_.target(stage_, action);
    if (!target) return;
    if (target->stage == stage_) {
      copy({.y = output(target->chunk, micro_batch).tensor, .x = d}, ctx_.compute);
    } else {
      departures_.at({target->stage, Tag::Pass::backward})
          .send(d, tag_of_target(action), ctx_.compute);
    }
  }

  Output& output(int chunk, int micro_batch) {
    return outputs_[chunk * schedule_.shape.micro_batches + micro_batch];
  }

  const PipelineSchedule& schedule_;
  PipelineChannels& channels_;
  const int stage_;
  StageWork& work_;
  StepContext& ctx_;
  int64_t most_rows_ = 0;
  std::vector<Output> outputs_;  // [chunk, micro-batch]
  std::map<Way, Arrivals> arrivals_;
  std::map<Way, Departures> departures_;
};

}  // namespace

void PipelineExecutor::run(StageWork& work, StepContext& ctx) {
  const Scope scope(ctx.scratch);
  StageRun(schedule_, channels_, work, ctx).run();
}

}  // namespace weft
