#include "launch/hf_weights.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "launch/safetensors.hpp"
#include "models/model.hpp"
#include "models/set_values.hpp"

namespace weft {
namespace {

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string text;
  for (const int64_t d : dims) text += concat(text.empty() ? "" : ", ", d);
  return "[" + text + "]";
}

/// Fills parts of one parameter with what the file has under its name.
void set_from_file(const SafetensorsFile& file, const std::vector<const HeldValues*>& parts,
                   Stream& stream) {
  const Parameter& parameter = *parts.front()->parameter;
  const auto here = [](const HeldValues* part) { return part->begin < part->end; };
  if (std::none_of(parts.begin(), parts.end(), here)) return;
  visit_float(accumulator_of(parts.front()->values.dtype), [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> whole(parameter.global_numel());
    file.read<T>(parameter.name, std::span<T>(whole));
    for (const HeldValues* part : parts) {
      if (here(part))
        set_values(
            *part, [&](int64_t i) { return whole[i]; }, stream);
    }
  });
}

}  // namespace

void load_hf_weights(const std::string& folder, const ModelConfig& model,
                     const std::vector<HeldValues>& parts, Stream& stream) {
  const SafetensorsFile file(folder + "/model.safetensors");
  std::set<std::string> unused;
  for (const std::string& name : file.names()) unused.insert(name);
  std::map<std::string, std::vector<const HeldValues*>> parts_of;  // a tensor is read once
  for (const HeldValues& part : parts) parts_of[part.parameter->name].push_back(&part);
  for (const auto& [name, of_one] : parts_of) {
    const Parameter& parameter = *of_one.front()->parameter;
    WEFT_REQUIRE(file.contains(name), ExitCode::data, file.path(), ": no tensor '", name, "'");
    const std::vector<int64_t> shape = file.entry(name).shape;
    WEFT_REQUIRE(shape == parameter.shape, ExitCode::data, file.path(), ": '", name,
                 "': expected shape ", dims_text(parameter.shape), ", got ", dims_text(shape));
    set_from_file(file, of_one, stream);
  }
  Model whole(model, {}, /*loss_slice=*/1);
  for (const Parameter* parameter : whole.parameters()) unused.erase(parameter->name);
  unused.erase("lm_head.weight");  // some files repeat a tied head
  WEFT_REQUIRE(unused.empty(), ExitCode::data, file.path(), ": '", *unused.begin(),
               "' belongs to no parameter of this model");
}

}  // namespace weft
