// How the tensor axis cuts a model, and what it cannot cut.
#include <gtest/gtest.h>

#include "models/tensor_axis.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

std::string refusal(const ModelConfig& model, int tensor) {
  try {
    check_tensor_axis(model, tensor);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return {};
}

TEST(TensorCuts, WhatCannotBeCutIsRefused) {
  const ModelConfig model = parity_config({}).model;  // 8 query heads, 2 key/value heads
  for (const int tensor : {1, 2, 4, 6, 8}) EXPECT_EQ(refusal(model, tensor), "") << tensor;
  EXPECT_EQ(refusal(model, 3),
            "mesh.tensor: expected at most, or a multiple of, the 2 key/value heads "
            "(model.num_key_value_heads), got 3; nearest: 2 and 4");
  EXPECT_EQ(refusal(model, 16),
            "mesh.tensor: expected at most the 8 query heads (model.num_attention_heads), got 16; "
            "nearest: 8");
  ModelConfig narrow = model;
  narrow.intermediate_size = 3;
  EXPECT_EQ(refusal(narrow, 4),
            "mesh.tensor: expected at most the 3 columns of the MLP (model.intermediate_size), got "
            "4; nearest: 2");
  ModelConfig small = model;
  small.vocab_size = 5;
  EXPECT_EQ(refusal(small, 6),
            "mesh.tensor: expected at most the 5 tokens of the vocabulary (model.vocab_size), got "
            "6; nearest: 4");
  ModelConfig linear = model;
  linear.layer_pattern = "L";
  linear.linear.family = "gla";
  linear.linear.num_heads = 4;
  EXPECT_EQ(refusal(linear, 3), "");  // no softmax layer asks for anything
  EXPECT_EQ(refusal(linear, 5),
            "mesh.tensor: expected at most the 4 heads of the L layers, got 5; nearest: 4");
  ModelConfig delta = model;
  delta.layer_pattern = "*G";
  delta.delta.num_heads = 4;
  EXPECT_EQ(refusal(delta, 8),
            "mesh.tensor: expected at most the 4 heads of the G layers, got 8; nearest: 4");
  // A pattern longer than the model: no G layer exists.
  delta.num_hidden_layers = 1;
  EXPECT_EQ(refusal(delta, 8), "");
}

/// Every head, by whoever has it: once, or as often as it says.
TEST(TensorCuts, HeadsAreCutAllAndWithTheirGroups) {
  for (const auto& [H, G] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {8, 8}, {8, 2}, {14, 7}, {6, 2}, {12, 3}, {7, 1}, {64, 8}}) {
    ModelConfig model;
    model.num_attention_heads = H;
    model.num_key_value_heads = G;
    model.vocab_size = model.intermediate_size = 1000;
    for (int size = 1; size <= H; ++size) {
      if (!refusal(model, size).empty()) continue;
      std::vector<int> query(H), key_value(G);
      for (int rank = 0; rank < size; ++rank) {
        const auto [q, kv] = attention_heads(model, {.rank = rank, .size = size});
        EXPECT_GE(q.size(), 1);
        EXPECT_EQ(kv.copies, size > G ? size / G : 1);
        for (int64_t h = q.begin; h < q.end; ++h) {
          ++query[h];
          EXPECT_TRUE(h / (H / G) >= kv.begin && h / (H / G) < kv.end);
        }
        EXPECT_EQ(q.size() % kv.size(), 0);
        for (int64_t g = kv.begin; g < kv.end; ++g) {
          EXPECT_EQ(kv.copy, key_value[g]);
          ++key_value[g];
        }
      }
      EXPECT_EQ(query, std::vector<int>(H, 1)) << H << " over " << size;
      EXPECT_EQ(key_value, std::vector<int>(G, size > G ? static_cast<int>(size / G) : 1));
    }
  }
}

}  // namespace
}  // namespace weft
