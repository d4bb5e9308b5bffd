#include "parallel/sequence/scan_line.hpp"

#include "src/kernels/pointwise.hpp"
#include "src/kernels/state_combine.hpp"

namespace weft {
namespace {

/// [B, H, ...] as [B H, ...]; absent stays absent.
Tensor by_states(const Tensor& t) {
  switch (t.ndim) {
    case 0:
      return {};
    case 2:
      return t.reshape({t.dim(0) * t.dim(1)});
    case 3:
      return t.reshape({t.dim(0) * t.dim(1), t.dim(2)});
    case 4:
      return t.reshape({t.dim(0) * t.dim(1), t.dim(2), t.dim(3)});
    default:
      break;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no state, no transition: ", t.text()));
}

Communicator& lane_of(ScanDirection direction, StepContext& ctx) {
  return ctx.mesh.along(Axis::sequence,
                        direction == ScanDirection::prefix ? Lane::forward : Lane::backward);
}

}  // namespace

ScanLine::ScanLine(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                   const Tag& tag, StepContext& ctx)
    : direction_(direction),
      tag_(tag),
      ctx_(ctx),
      ranks_(lane_of(direction, ctx)),
      stream_(ranks_.beside(ctx.compute)),
      own_{by_states(element.transition), by_states(element.state)},
      entering_(by_states(entering)),
      caller_entering_(entering) {
  WEFT_CHECK(element.state.ndim == 4 && same_shape(element.state, entering) &&
                 element.state.dtype == entering.dtype,
             element.state.text(), " and ", entering.text());
  stream_.wait(ctx.compute.record());
}

Tensor ScanLine::allocate(const char* name, std::initializer_list<int64_t> shape) const {
  return ctx_.scratch.allocate(name, own_.state.dtype, shape, &stream_);
}

Tensor ScanLine::allocate_state(const char* name) const {
  const Tensor& t = own_.state;
  return allocate(name, {t.dim(0), t.dim(1), t.dim(2)});
}

Tensor ScanLine::allocate_transition(const char* name) const {
  const Tensor& t = own_.transition;
  switch (t.ndim) {
    case 1:
      return allocate(name, {t.dim(0)});
    case 2:
      return allocate(name, {t.dim(0), t.dim(1)});
    case 3:
      return allocate(name, {t.dim(0), t.dim(1), t.dim(2)});
    default:
      return {};
  }
}

void ScanLine::exchange(std::vector<Message> messages) {
  for (Message& message : messages) message.peer = at(message.peer);
  const bool waits = !messages.empty();
  last_ = ranks_.exchange(std::move(messages), tag_, stream_);
  if (waits) stream_.wait(last_);
}

void ScanLine::combine(const Tensor& out, const Tensor& transition, const Tensor& entering,
                       const Tensor& local) const {
  state_combine({.out = out,
                 .transition = transition,
                 .entering = entering,
                 .local = local,
                 .transposed = direction_ == ScanDirection::suffix},
                stream_);
}

void ScanLine::compose_transitions(const Tensor& out, const Tensor& later,
                                   const Tensor& earlier) const {
  if (out.ndim == 3) {
    // A suffix applies transposes, (A B)^T = B^T A^T: both directions multiply in rank order.
    const bool prefix = direction_ == ScanDirection::prefix;
    state_combine(
        {.out = out, .transition = prefix ? later : earlier, .entering = prefix ? earlier : later},
        stream_);
  } else if (out) {
    add({.y = out, .a = later, .b = earlier}, stream_);
  }
}

PendingScan ScanLine::pending() const {
  if (position() == 0) fill({.y = entering_, .value = 0}, stream_);
  stream_.wait(last_);
  return {caller_entering_, stream_.record(), ctx_.compute};
}

namespace {

std::vector<Message> messages_of(Message::Way way, int position, const StateMap& map) {
  std::vector<Message> messages{{way, position, map.state}};
  if (map.transition) messages.push_back({way, position, map.transition});
  return messages;
}

}  // namespace

void append_send(std::vector<Message>& messages, int position, const StateMap& map) {
  const auto added = messages_of(Message::Way::send, position, map);
  messages.insert(messages.end(), added.begin(), added.end());
}

void append_receive(std::vector<Message>& messages, int position, const StateMap& map) {
  const auto added = messages_of(Message::Way::receive, position, map);
  messages.insert(messages.end(), added.begin(), added.end());
}

}  // namespace weft
