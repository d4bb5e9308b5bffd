#include "launch/dry_run.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "launch/trainer.hpp"

namespace weft {
namespace {

std::string kib(int64_t bytes) {
  return fmt::format("{:.1f}", static_cast<double>(bytes) / 1024);
}

int64_t total(const std::map<Ledger::Key, int64_t>& bytes) {
  int64_t sum = 0;
  for (const auto& [key, sent] : bytes) sum += sent;
  return sum;
}

/// "0-3", or of several chunks "0-1 6-7".
std::string layers_of(const StepPlan& plan) {
  std::string layers;
  for (const ModelPiece& piece : plan.pieces) {
    layers += fmt::format("{}{}-{}", layers.empty() ? "" : " ", piece.begin, piece.end - 1);
  }
  return layers;
}

void print_ranks(const Config& config, const std::vector<StepPlan>& plans) {
  fmt::print("\nranks ({}; sizes in KiB, bytes sent in a step)\n", config.mesh.text());
  size_t width = 6;
  for (const StepPlan& plan : plans) width = std::max(width, layers_of(plan).size());
  fmt::print(
      "{:>5} {:>5} {:>9} {:>9} {:>7} {:>{}} {:>11} {:>9} {:>11} {:>11} {:>11} {:>11} {:>11}\n",
      "rank", "data", "pipeline", "sequence", "tensor", "layers", width, "parameters", "tokens",
      "state", "frames", "scratch", "peak", "sent");
  for (int rank = 0; rank < config.mesh.ranks(); ++rank) {
    const Coordinate at = coordinate_of(config.mesh, rank);
    const StepPlan& plan = plans[rank];
    int64_t tokens = 0;
    for (const Batch& batch : batch_shapes(config, at)) {
      tokens += std::ssize(batch.segments) * (batch.end - batch.begin);
    }
    fmt::print(
        "{:>5} {:>5} {:>9} {:>9} {:>7} {:>{}} {:>11} {:>9} {:>11} {:>11} {:>11} {:>11} {:>11}\n",
        rank, at[0], at[1], at[2], at[3], layers_of(plan), width, plan.parameters, tokens,
        kib(plan.memory.state), kib(plan.memory.frames() + plan.memory.products()),
        kib(plan.memory.scratch), kib(plan.memory.peak()), total(plan.bytes));
  }
}

void print_memory(const StepPlan& plan) {
  fmt::print("\nmemory of rank 0 at its peak, by name (KiB)\n");
  for (const Arena::Item& item : plan.at_peak) {
    fmt::print("  {:<20} {:>11}\n", item.name, kib(item.bytes));
  }
  if (plan.memory.staging > 0) {
    fmt::print("and page-locked on the host, for inputs: {}\n", kib(plan.memory.staging));
  }
}

void print_bytes(const StepPlan& plan) {
  fmt::print("\nbytes rank 0 sends in a step\n");
  fmt::print("  {:<10} {:>6} {:<10} {:<9} {:>11} {:>12}\n", "group", "layer", "purpose", "pass",
             "micro-batch", "bytes");
  for (const auto& [key, sent] : plan.bytes) {
    if (sent == 0) continue;
    fmt::print("  {:<10} {:>6} {:<10} {:<9} {:>11} {:>12}\n", key.group,
               key.tag.layer < 0 ? "-" : std::to_string(key.tag.layer), name(key.tag.purpose),
               name(key.tag.pass), key.tag.micro_batch, sent);
  }
}

void print_flops(const StepPlan& plan) {
  fmt::print("\nMFLOP of rank 0 in a step, by kernel\n");
  for (const auto& [kernel, cost] : plan.kernels) {
    fmt::print("  {:<20} {:>11.3f}\n", kernel, cost.flops / 1e6);
  }
  fmt::print("  {:<20} {:>11.3f}\n", "all", plan.flops() / 1e6);
}

}  // namespace

void print_dry_run(const Config& config) {
  std::vector<StepPlan> plans;
  for (int rank = 0; rank < config.mesh.ranks(); ++rank) plans.push_back(plan_step(config, rank));
  fmt::print("{}", to_yaml(config));
  print_ranks(config, plans);
  print_memory(plans[0]);
  print_bytes(plans[0]);
  print_flops(plans[0]);
}

}  // namespace weft
