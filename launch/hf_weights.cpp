#include "launch/hf_weights.hpp"

#include <set>

#include "launch/safetensors.hpp"
#include "models/model.hpp"
#include "src/tensor/host_copy.hpp"

namespace weft {
namespace {

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t d : dims) text += concat(text.empty() ? "" : ", ", d);
  return "[" + text + "]";
}

}  // namespace

void load_hf_weights(const std::string& folder, const ModelConfig& model,
                     const std::vector<HeldValues>& held, Stream& stream) {
  const SafetensorsFile file(folder + "/model.safetensors");
  std::set<std::string> unused;
  for (const std::string& name : file.names()) unused.insert(name);
  for (const HeldValues& part : held) {
    const Parameter* parameter = part.parameter;
    const std::string& name = parameter->name;
    WEFT_REQUIRE(file.contains(name), ExitCode::data, file.path(), ": no tensor '", name, "'");
    const std::vector<int64_t> shape = file.entry(name).shape;
    WEFT_REQUIRE(shape == parameter->shape, ExitCode::data, file.path(), ": '", name,
                 "': expected shape ", dims_text(parameter->shape), ", got ", dims_text(shape));
    if (part.begin == part.end) continue;
    write_on_host(part.values, stream, [&](const Tensor& value) {
      visit_float(value.dtype, [&](auto zero) {
        using T = decltype(zero);
        std::vector<T> whole(parameter->global_numel());
        file.read<T>(name, std::span<T>(whole));
        for (int64_t i = 0; i < value.numel(); ++i) {
          value.as<T>()[i] = whole[parameter->global_index(part.begin + i)];
        }
      });
    });
  }
  Model whole(model, {}, /*loss_slice=*/1);
  for (const Parameter* parameter : whole.parameters()) unused.erase(parameter->name);
  unused.erase("lm_head.weight");  // some files repeat a tied head
  WEFT_REQUIRE(unused.empty(), ExitCode::data, file.path(), ": '", *unused.begin(),
               "' belongs to no parameter of this model");
}

}  // namespace weft
