#include "launch/kernel_workbench.hpp"

#include <algorithm>
#include <utility>

#include "src/core/random.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/tensor/bf16.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

constexpr int64_t kPeriod = 65521;
constexpr int64_t kDocument = 23;  // tokens of the documents of a batch that has some

const std::vector<double>& normals() {
  static const std::vector<double> numbers = [] {
    const RandomStream random(11, "kernels");
    std::vector<double> out(kPeriod);
    for (int64_t i = 0; i < kPeriod; ++i) out[i] = random.normal(i);
    return out;
  }();
  return numbers;
}

double round_to(DType dtype, double value) {
  if (dtype == DType::bf16) return from_bf16(to_bf16(static_cast<float>(value)));
  return dtype == DType::f32 ? static_cast<float>(value) : value;
}

/// Writes value(i) into element i of a contiguous host tensor.
template <class F>
void write_elements(const Tensor& host, F&& value) {
  const auto write = [&](auto* data, auto convert) {
    for (int64_t i = 0; i < host.numel(); ++i) data[i] = convert(value(i));
  };
  switch (host.dtype) {
    case DType::f64:
      return write(host.as<double>(), [](double x) { return x; });
    case DType::f32:
      return write(host.as<float>(), [](double x) { return static_cast<float>(x); });
    case DType::bf16:
      return write(reinterpret_cast<uint16_t*>(host.data),
                   [](double x) { return to_bf16(static_cast<float>(x)); });
    case DType::i64:
      return write(host.as<int64_t>(), [](double x) { return static_cast<int64_t>(x); });
    case DType::i32:
      return write(host.as<int32_t>(), [](double x) { return static_cast<int32_t>(x); });
    case DType::u8:
      break;
  }
  WEFT_CHECK(false, "values of ", name(host.dtype));
}

}  // namespace

KernelSizes timed_sizes(Device device) {
  if (device == Device::cuda) {
    return {.tokens = 65536,
            .width = 2048,
            .hidden = 8192,
            .vocab = 128256,
            .loss_slice = 2048,
            .heads = 16,
            .kv_heads = 16,
            .head_dim = 128,
            .value_dim = 128,
            .product_tokens = 16384,
            .attention_tokens = 8192,
            .parameters = int64_t{1} << 28};
  }
  return {.tokens = 4096,
          .width = 1024,
          .hidden = 2048,
          .vocab = 8192,
          .loss_slice = 512,
          .heads = 8,
          .kv_heads = 8,
          .head_dim = 64,
          .value_dim = 64,
          .product_tokens = 256,
          .attention_tokens = 1024,
          .parameters = int64_t{1} << 22};
}

KernelSizes compared_sizes() {
  return {.batch = 2,
          .tokens = 101,
          .width = 77,
          .hidden = 131,
          .vocab = 1003,
          .loss_slice = 37,
          .heads = 6,
          .kv_heads = 3,
          .head_dim = 48,
          .value_dim = 20,
          .product_tokens = 101,
          .attention_tokens = 150,
          .parameters = 10007,
          .documents = true};
}

Workbench::Workbench(const Setting& setting, Arena& arena, Stream& stream)
    : setting_(setting), arena_(arena), stream_(stream) {}

DType Workbench::stored(Element element) const {
  switch (element) {
    case Element::data:
      return setting_.stored;
    case Element::wide:
      return accumulator_of(setting_.stored);
    case Element::f64:
      return DType::f64;
    case Element::bf16:
      return DType::bf16;
  }
  return setting_.stored;
}

Tensor Workbench::input(Element element, Shape shape, const Map& map) {
  const DType rounded = element == Element::data   ? setting_.dtype
                        : element == Element::wide ? accumulator_of(setting_.dtype)
                                                   : stored(element);
  const Tensor t = work(element, shape);
  const int64_t from = inputs_++ * 977;  // of the pattern: no two inputs are one
  write(
      t, rounded,
      [&](int64_t i) {
        const double normal = normals()[(from + i) % kPeriod];
        return map ? map(normal) : normal;
      },
      kPeriod);
  return t;
}

Tensor Workbench::integers(DType dtype, Shape shape, const std::function<int64_t(int64_t)>& value) {
  const Tensor t = arena_.allocate("integers", dtype, shape);
  write(
      t, dtype, [&](int64_t i) { return static_cast<double>(value(i)); }, t.numel());
  return t;
}

Tensor Workbench::output(const char* name, Element element, Shape shape, Tolerance tolerance) {
  const Tensor t = work(element, shape);
  outputs_.push_back({name, t, tolerance, false});
  return t;
}

Tensor Workbench::updated(const char* name, Element element, Shape shape, const Map& map) {
  const Tensor t = input(element, shape, map);
  updates(name, t);
  return t;
}

void Workbench::updates(const char* name, const Tensor& tensor, Tolerance tolerance) {
  outputs_.push_back({name, tensor, tolerance, true});
}

Tensor Workbench::work(Element element, Shape shape) {
  has_data_ = has_data_ || element == Element::data;
  const Tensor t = arena_.allocate("floating", stored(element), shape);
  poison_fill(t, &stream_);
  return t;
}

Tensor Workbench::scratch(int64_t bytes) {
  const Tensor t = arena_.allocate("scratch", DType::u8, {bytes});
  poison_fill(t, &stream_);
  return t;
}

const std::vector<double>* Workbench::keep(std::vector<double> values) {
  return &kept_.emplace_back(std::move(values));
}

Tensor Workbench::positions(int64_t tokens) {
  return integers(DType::i64, {sizes().batch, tokens},
                  [&](int64_t i) { return i % tokens - document_begin(i / tokens, i % tokens); });
}

int64_t Workbench::document_begin(int64_t b, int64_t t) const {
  if (!sizes().documents) return 0;
  // The first sequence is one document, which began 3 tokens earlier.
  return b == 0 ? -3 : (t + 5) / kDocument * kDocument - 5;
}

DType Workbench::type_of_errors() const {
  return has_data_ ? setting_.dtype : accumulator_of(setting_.dtype);
}

void Workbench::write(const Tensor& t, DType rounded, const std::function<double(int64_t)>& value,
                      int64_t period) {
  if (t.data == nullptr || t.numel() == 0) return;
  const Tensor flat = t.reshape({t.numel()});
  int64_t done = std::min(period, t.numel());
  write_on_host(flat.slice(0, 0, done), stream_, [&](const Tensor& host) {
    write_elements(host, [&](int64_t i) { return round_to(rounded, value(i)); });
  });
  while (done < t.numel()) {  // the rest where the tensor is
    const int64_t more = std::min(done, t.numel() - done);
    copy({.y = flat.slice(0, done, done + more), .x = flat.slice(0, 0, more)}, stream_);
    done += more;
  }
}

std::string shape_text(std::initializer_list<int64_t> dims) {
  std::string text;
  for (const int64_t n : dims) text += (text.empty() ? "" : " x ") + std::to_string(n);
  return text;
}

}  // namespace weft
