// Collectives made of exchanges. Sums start with the own piece and add those of the ranks before
// it, walking down the ring of ranks: one fixed order for a given group, whatever the transport.
#include <algorithm>
#include <atomic>
#include <numeric>

#include "parallel/comm/backend.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

std::atomic<double> deadline_seconds{300.0};

Tensor piece(const Tensor& buffer, const Cuts& cuts, int p) {
  return buffer.slice(0, cuts.begin(p), cuts.end(p));
}

void add_into(const Tensor& sum, const Tensor& term, Stream* device_stream) {
  if (sum.device == Device::meta) return;  // a simulation's: a shape
  const AddArgs args{.y = sum, .a = sum, .b = term};
  if (device_stream != nullptr) {
    add(args, *device_stream);
  } else {
    cpu::add(args);
  }
}

}  // namespace

void set_wait_deadline(double seconds) {
  deadline_seconds = seconds;
}
double wait_deadline() {
  return deadline_seconds;
}

const char* name(Operation operation) {
  switch (operation) {
    case Operation::exchange:
      return "exchange";
    case Operation::all_gather:
      return "all_gather";
    case Operation::reduce_scatter:
      return "reduce_scatter";
    case Operation::all_reduce:
      return "all_reduce";
    case Operation::broadcast:
      return "broadcast";
    case Operation::barrier:
      return "barrier";
  }
  return "?";
}

std::string Fingerprint::text() const {
  return concat("call ", sequence, ": ", name(operation), " of ", name(dtype), " for ",
                weft::text(tag), counts == 0 ? "" : concat(" (counts #", counts % 10000, ")"));
}

std::unique_ptr<Backend> World::everyone(const std::string& label) {
  std::vector<int> members(size());
  std::iota(members.begin(), members.end(), 0);
  return host_group(members, label);
}

std::unique_ptr<Stream> World::make_compute_stream() const {
  switch (device()) {
    case Device::cpu:
      return make_inline_stream();
    case Device::cuda:
      return cuda::make_stream(gpu());
    case Device::meta:
      return make_meta_stream({});
  }
  detail::throw_internal(__FILE__, __LINE__, "a device of another kind");
}

int World::place_in(const std::vector<int>& members, const std::string& label) const {
  const auto me = std::find(members.begin(), members.end(), rank());
  WEFT_CHECK(me != members.end(), "rank ", rank(), " is no member of group '", label, "'");
  return static_cast<int>(me - members.begin());
}

void Backend::all_gather(const Tensor& buffer, const Cuts& cuts) {
  std::vector<Message> messages;
  for (int step = 1; step < size(); ++step) {
    messages.push_back(send_to((rank() + step) % size(), piece(buffer, cuts, rank())));
    const int from = (rank() - step + size()) % size();
    messages.push_back(receive_from(from, piece(buffer, cuts, from)));
  }
  exchange(messages);
}

void Backend::reduce_scatter(const Tensor& buffer, const Cuts& cuts, const Tensor& scratch) {
  const Tensor own = piece(buffer, cuts, rank());
  const Tensor term = scratch.slice(0, 0, own.dim(0));
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size();
    const int from = (rank() - step + size()) % size();
    const Message messages[] = {send_to(to, piece(buffer, cuts, to)), receive_from(from, term)};
    exchange(messages);
    add_into(own, term, device_stream());
  }
}

void Backend::all_reduce(const Tensor& buffer, const Tensor& scratch) {
  const Cuts cuts = Cuts::even(buffer.numel(), size());
  reduce_scatter(buffer, cuts, scratch);
  all_gather(buffer, cuts);
}

void Backend::broadcast(const Tensor& buffer, int root) {
  std::vector<Message> messages;
  if (rank() == root) {
    for (int p = 0; p < size(); ++p) {
      if (p != root) messages.push_back(send_to(p, buffer));
    }
  } else {
    messages.push_back(receive_from(root, buffer));
  }
  exchange(messages);
}

void Backend::barrier() {
  std::byte tokens[2]{};
  const int64_t two[] = {2};
  barrier_of_exchanges(Tensor::view(tokens, DType::u8, Device::cpu, two));
}

void Backend::barrier_of_exchanges(const Tensor& tokens) {
  for (int distance = 1; distance < size(); distance *= 2) {  // dissemination: log2 P rounds
    const Message messages[] = {
        send_to((rank() + distance) % size(), tokens.slice(0, 0, 1)),
        receive_from((rank() - distance + size()) % size(), tokens.slice(0, 1, 2))};
    exchange(messages);
  }
}

}  // namespace weft
