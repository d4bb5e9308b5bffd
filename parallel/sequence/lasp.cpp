// LASP (Sun et al., "Linear Attention Sequence Parallelism", arXiv 2404.02882): the state passes
// the ranks one after the other. A rank's transition never leaves it.
//
//   step        0      1      2         P - 1 steps. What a rank computes in its turn is one
//   rank 0    send                      combine: its own state was ready before.
//   rank 1    recv   send
//   rank 2           recv   send
//   rank 3                  recv
#include "parallel/sequence/scan_line.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

class Lasp final : public StateScan {
 public:
  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    ScanLine line(element, entering, direction, tag, ctx);
    const StateMap& own = line.own();
    const int position = line.position();
    const bool first = position == 0, last = position + 1 == line.size();
    // Nothing enters the first shard, and its own state leaves it.
    const Tensor leaving = first || last ? own.state : line.allocate_state("lasp leaving");
    for (int step = 0; step + 1 < line.size(); ++step) {
      const bool sends = step == position, receives = step + 1 == position;
      std::vector<Message> messages;
      if (sends) messages.push_back(send_to(position + 1, leaving));
      if (receives) messages.push_back(receive_from(position - 1, line.entering()));
      line.exchange(std::move(messages));
      if (receives && !last) line.combine(leaving, own.transition, line.entering(), own.state);
    }
    return line.pending();
  }
};

}  // namespace

std::unique_ptr<StateScan> make_lasp_scan(const StateScanOptions&) {
  return std::make_unique<Lasp>();
}

}  // namespace weft
