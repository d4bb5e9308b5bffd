#include "parallel/sequence/state_scan.hpp"

namespace weft {

PendingScan::~PendingScan() {
  try {
    done_.wait();
  } catch (...) {
    // The error that keeps the caller from finish() is the one to report.
  }
}

Tensor PendingScan::finish() {
  WEFT_CHECK(entering_, "the scan is finished");
  compute_->wait(std::exchange(done_, {}));
  return std::exchange(entering_, {});
}

}  // namespace weft
