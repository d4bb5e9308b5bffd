// Tensors of any device as the host reads and writes them, outside of a step: both wait for the
// GPU.
#pragma once

#include <functional>
#include <vector>

#include "src/tensor/tensor.hpp"

namespace weft {

/// A contiguous tensor where the host can read it: on the CPU the tensor itself; of a GPU's a copy,
/// made after everything enqueued on `stream` so far and waited for. Rethrows what that work failed
/// with.
class HostCopy {
 public:
  HostCopy(const Tensor& t, Stream& stream);
  const Tensor& tensor() const { return tensor_; }

 private:
  std::vector<std::byte> bytes_;
  Tensor tensor_;
};

/// Calls write(host) with a host tensor of the type and shape of `t`, contiguous and not
/// initialised, and has it in `t` when it returns: on the CPU `host` is `t`, on a GPU it is copied
/// after everything enqueued on `stream` so far.
void write_on_host(const Tensor& t, Stream& stream,
                   const std::function<void(const Tensor& host)>& write);

}  // namespace weft
