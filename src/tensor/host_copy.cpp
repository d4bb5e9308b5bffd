#include "src/tensor/host_copy.hpp"

#include "src/core/cuda/memory.hpp"

namespace weft {
namespace {

/// `bytes` as a host tensor of the type and shape of `t`.
Tensor like(const Tensor& t, std::vector<std::byte>& bytes) {
  WEFT_CHECK(t.contiguous(), "a host copy of a strided view ", t.text());
  bytes.resize(t.nbytes());
  return Tensor::view(bytes.data(), t.dtype, Device::cpu,
                      {t.shape.data(), static_cast<size_t>(t.ndim)});
}

}  // namespace

HostCopy::HostCopy(const Tensor& t, Stream& stream) : tensor_(t) {
  if (t.device != Device::cuda) return;
  tensor_ = like(t, bytes_);
  cuda::copy_bytes(tensor_.data, t.data, t.nbytes(), stream);
  stream.record().wait();
}

void write_on_host(const Tensor& t, Stream& stream,
                   const std::function<void(const Tensor& host)>& write) {
  if (t.device != Device::cuda) return write(t);
  std::vector<std::byte> bytes;
  const Tensor host = like(t, bytes);
  write(host);
  cuda::copy_bytes(t.data, host.data, t.nbytes(), stream);
  stream.record().wait();
}

}  // namespace weft
