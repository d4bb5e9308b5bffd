// What a kernel is measured on: the tensors of one call, with the same values wherever and in
// whatever type they are made, so that one description of a call serves to plan its memory, to time
// it, and to compare it with the CPU twin in f64.
#pragma once

#include <deque>
#include <functional>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "src/core/device.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// How large the tensors of a case are, in the letters of the kernels' headers.
struct KernelSizes {
  int64_t batch = 1;       // B
  int64_t tokens = 0;      // T of what treats tokens alone, and of state mixers
  int64_t width = 0;       // C
  int64_t hidden = 0;      // F
  int64_t vocab = 0;       // V
  int64_t loss_slice = 0;  // tokens whose logits exist at a time
  int64_t heads = 0;       // H
  int64_t kv_heads = 0;    // G
  int64_t head_dim = 0;    // D of attention, K of states
  int64_t value_dim = 0;   // V of states
  int64_t product_tokens = 0;
  int64_t attention_tokens = 0;
  int64_t parameters = 0;  // of an update
  bool documents = false;  // the last sequences of a batch begin in the middle of one

  int64_t rows() const { return batch * tokens; }
};

/// Of a decoder of a billion parameters on a GPU; on the CPU what takes milliseconds a kernel.
KernelSizes timed_sizes(Device device);
/// Small and odd, with documents, heads that share keys, and more tokens than a chunk holds. Heads
/// are as wide as every way of attention on a GPU takes them.
KernelSizes compared_sizes();

/// What the elements of a tensor are.
enum class Element {
  data,  // of the type that is measured
  wide,  // its accumulator type
  f64,   // f64 in every run
  bf16   // bf16 in every run
};

/// How far an output may be off.
enum class Tolerance {
  plain,
  cancelling  // a gradient that is a sum of many larger terms of both signs
};

/// Tensors of one call. They live as long as the workbench.
class Workbench {
 public:
  struct Setting {
    Device device;  // where the kernels run; the arena is of this device, or of meta to plan
    DType dtype;    // of Element::data, as the device under test has it: values are rounded to it
    DType stored;   // what they are stored in: `dtype`, or f64 for the reference
    KernelSizes sizes;
  };
  /// A tensor that the call writes.
  struct Output {
    const char* name;
    Tensor tensor;
    Tolerance tolerance;
    bool updated;  // read too: what stands in it before the call matters
  };
  using Shape = std::initializer_list<int64_t>;
  using Map = std::function<double(double normal)>;

  Workbench(const Setting& setting, Arena& arena, Stream& stream);

  const KernelSizes& sizes() const { return setting_.sizes; }
  Device device() const { return setting_.device; }
  DType stored(Element element) const;
  Stream& stream() { return stream_; }

  /// Normals, or what `map` makes of them; the same in every workbench that makes its inputs in the
  /// same order. They repeat after 65521 elements, a prime, so that rows differ.
  Tensor input(Element element, Shape shape, const Map& map = {});
  /// value(i) for every element i in row-major order; i64 or i32.
  Tensor integers(DType dtype, Shape shape, const std::function<int64_t(int64_t)>& value);
  /// What the call overwrites: NaN before it.
  Tensor output(const char* name, Element element, Shape shape,
                Tolerance tolerance = Tolerance::plain);
  /// What the call adds to or changes in place.
  Tensor updated(const char* name, Element element, Shape shape, const Map& map = {});
  /// The same of a tensor that is there, with what it holds when the case is made.
  void updates(const char* name, const Tensor& tensor, Tolerance tolerance = Tolerance::plain);
  /// NaN, for calls that come before the one that is measured, and u8 scratch.
  Tensor work(Element element, Shape shape);
  Tensor scratch(int64_t bytes);
  /// Numbers on the host that a call points at.
  const std::vector<double>* keep(std::vector<double> values);

  /// Positions inside the documents, [B, tokens] i64.
  Tensor positions(int64_t tokens);
  /// The token of sequence `b` that its document begins with, at or before token `t`.
  int64_t document_begin(int64_t b, int64_t t) const;

  const std::vector<Output>& outputs() const { return outputs_; }
  /// The type that bounds the errors: the accumulator type where no element is Element::data.
  DType type_of_errors() const;

 private:
  void write(const Tensor& t, DType rounded, const std::function<double(int64_t)>& value,
             int64_t period);

  Setting setting_;
  Arena& arena_;
  Stream& stream_;
  std::vector<Output> outputs_;
  std::deque<std::vector<double>> kept_;
  int64_t inputs_ = 0;
  bool has_data_ = false;
};

/// One call of a kernel, ready to be made any number of times.
struct KernelUse {
  std::string shape;  // for the table: "65536 x 2048"
  std::function<void(Stream&)> call;
};

template <class Args>
KernelUse use_of(void (*kernel)(const Args&, Stream&), const std::type_identity_t<Args>& args,
                 std::string shape) {
  return {std::move(shape), [kernel, args](Stream& stream) { kernel(args, stream); }};
}

/// "65536 x 2048"
std::string shape_text(std::initializer_list<int64_t> dims);

}  // namespace weft
