#include "models/tensor_axis.hpp"

#include "models/state_family.hpp"

namespace weft {
namespace {

/// What stands against `tensor` ranks, or nothing.
std::string obstacle(const ModelConfig& config, int64_t tensor) {
  const auto at_most = [&](int64_t most, const char* what) {
    return tensor <= most ? std::string() : concat("at most the ", most, " ", what);
  };
  const int64_t H = config.num_attention_heads, G = config.num_key_value_heads;
  std::string found;
  const auto ask = [&](const std::string& answer) {
    if (found.empty()) found = answer;
  };
  if (config.mixers("*WP", config.num_hidden_layers) > 0) {
    ask(at_most(H, "query heads (model.num_attention_heads)"));
    if (tensor > G && tensor % G != 0) {
      ask(concat("at most, or a multiple of, the ", G,
                 " key/value heads (model.num_key_value_heads)"));
    }
  }
  for (const char letter : {'L', 'G'}) {
    if (config.mixers(std::string_view(&letter, 1), config.num_hidden_layers) == 0) continue;
    ask(at_most(state_layout(config, letter).heads,
                letter == 'L' ? "heads of the L layers" : "heads of the G layers"));
  }
  ask(at_most(config.intermediate_size, "columns of the MLP (model.intermediate_size)"));
  ask(at_most(config.vocab_size, "tokens of the vocabulary (model.vocab_size)"));
  return found;
}

}  // namespace

AttentionHeads attention_heads(const ModelConfig& config, const TensorPlace& place) {
  const int64_t G = config.num_key_value_heads, group = config.num_attention_heads / G;
  if (place.size <= G) {
    const Piece heads = place.piece(G);
    return {.query = heads.times(group), .key_value = heads};
  }
  const int copies = static_cast<int>(place.size / G), copy = place.rank % copies;
  const int64_t head = place.rank / copies;
  const Piece of_group = TensorPlace{copy, copies}.piece(group);
  const int64_t first = head * group;
  return {.query = {first + of_group.begin, first + of_group.end, config.num_attention_heads},
          .key_value = {head, head + 1, G, copies, copy}};
}

void check_tensor_axis(const ModelConfig& config, int tensor) {
  const std::string expected = obstacle(config, tensor);
  if (expected.empty()) return;
  int64_t below = tensor;
  while (!obstacle(config, below).empty()) --below;  // 1 always can
  int64_t above = tensor;
  while (above <= config.vocab_size && !obstacle(config, above).empty()) ++above;
  const bool more = above <= config.vocab_size;
  throw Error(ExitCode::config,
              concat("mesh.tensor: expected ", expected, ", got ", tensor, "; nearest: ", below,
                     more ? concat(" and ", above) : std::string()));
}

}  // namespace weft
