#include "launch/sequence_bench_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "launch/machine.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

/// The beginning of a row; the whole of it where the strategy refused, which is then true.
bool print_case(const StrategyOnRanks& row) {
  fmt::print("  {:<10}{:>6}", row.strategy->name, row.ranks);
  if (!row.refused.empty()) fmt::print("  refused: {}\n", row.refused);
  return !row.refused.empty();
}

Json to_json(const StrategyOnRanks& row) {
  Json json{{"strategy", row.strategy->name}, {"ranks", row.ranks}};
  if (!row.refused.empty()) json["refused"] = row.refused;
  return json;
}

std::string where_text(const RankChoice& place) {
  if (place.device == Device::cpu) {
    return fmt::format("ranks are threads on {} cores", this_machine().cores);
  }
  if (place.comm == "nccl") return "ranks over NCCL, a GPU each";
  return fmt::format("ranks are threads, {} GPUs in turn", cuda::device_count());
}

void print(const MeasuredAttention& row) {
  if (print_case(row)) return;
  if (row.both_s > 0) {
    fmt::print("{:>11.3f}{:>11.3f}{:>11.3f}{:>11}{:>11.3g}", 1e3 * row.forward_s,
               1e3 * row.backward_s, 1e3 * row.both_s,
               row.over_ring ? fmt::format("{:.2f}", *row.over_ring) : "-",
               1e-12 * row.flops_per_s());
    if (row.error) fmt::print("  {:.1e} {}", *row.error, row.worst);
  }
  if (!row.failed.empty()) fmt::print("  FAILED: {}", row.failed);
  fmt::print("\n");
}

Json to_json(const MeasuredAttention& row, const AttentionRuns& runs) {
  Json json = to_json(static_cast<const StrategyOnRanks&>(row));
  json["device"] = name(runs.place.device);
  json["comm"] = runs.place.comm;
  if (!row.failed.empty()) json["failed"] = row.failed;
  if (row.both_s == 0) return json;
  json["repeats"] = runs.repeats;
  json["forward_s"] = row.forward_s;
  json["backward_s"] = row.backward_s;
  json["both_s"] = row.both_s;
  json["flops"] = row.flops;
  json["flops_per_s"] = row.flops_per_s();
  if (row.over_ring) json["over_ring"] = *row.over_ring;
  if (row.error) json["error"] = {{"value", *row.error}, {"of", row.worst}};
  return json;
}

}  // namespace

Json to_json(const std::vector<PassBytes>& by_rank) {
  Json forward = Json::array(), backward = Json::array();
  for (const PassBytes& rank : by_rank) {
    forward.push_back(rank.forward);
    backward.push_back(rank.backward);
  }
  return {{"forward", forward}, {"backward", backward}};
}

Json to_json(const Overlap& overlap) {
  return {{"kernels_s", overlap.kernels_s},
          {"transfers_s", overlap.transfers_s},
          {"critical_path_s", overlap.both_s},
          {"hidden", overlap.hidden()}};
}

bool bytes_table(const Config& config, std::span<const StrategyOnRanks> cases, Json& json) {
  fmt::print("\nbytes a rank sends for the layer, as counted\n");
  fmt::print("  {:<10}{:>6}{:>15}{:>15}{:>15}{:>15}  {}\n", "strategy", "ranks", "forward least",
             "most", "backward least", "most", "predicted");
  bool all_hold = true;
  for (const SequenceBytes& row : bench_bytes(config, cases)) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    const bool holds = row.sent == row.booked;
    all_hold &= holds;
    const auto [f0, f1] = std::ranges::minmax(row.sent, {}, &PassBytes::forward);
    const auto [b0, b1] = std::ranges::minmax(row.sent, {}, &PassBytes::backward);
    fmt::print("{:>15}{:>15}{:>15}{:>15}  {}\n", f0.forward, f1.forward, b0.backward, b1.backward,
               holds ? "the same" : "otherwise");
    entry["sent"] = to_json(row.sent);
    entry["booked"] = to_json(row.booked);
  }
  return all_hold;
}

void overlap_table(const Config& config, std::span<const StrategyOnRanks> cases,
                   const SimulatedRuns& runs, Json& json) {
  fmt::print("\nsimulated ms of the layer, forward and backward ({})\n", runs.machine_text);
  fmt::print("  {:<10}{:>6}{:>11}{:>11}{:>11}{:>9}{:>8}{}\n", "strategy", "ranks", "kernels",
             "transfers", "both", "hidden", "busy", runs.real_s > 0 ? "   attained   ratio" : "");
  for (const SequenceTime& row :
       bench_time(config, cases, runs.machine, runs.real_s, runs.repeats)) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    const auto& [kernels_s, transfers_s, both_s] = row.overlap.step;
    fmt::print("{:>11.3f}{:>11.3f}{:>11.3f}{:>8.1f}%{:>7.1f}%", 1e3 * kernels_s, 1e3 * transfers_s,
               1e3 * both_s, 100 * row.overlap.step.hidden(), 100 * row.overlap.busy);
    entry["forward"] = to_json(row.overlap.forward);
    entry["step"] = to_json(row.overlap.step);
    entry["busy"] = row.overlap.busy;
    if (row.attained_s > 0) {
      fmt::print("{:>11.3f}{:>8.3f}", 1e3 * row.attained_s, row.attained_ratio());
      entry["attained_s"] = row.attained_s;
    }
    fmt::print("\n");
  }
}

void memory_table(const Config& config, std::span<const StrategyOnRanks> cases, int64_t limit_bytes,
                  const std::string& limit_text, Json& json) {
  fmt::print("\nlongest sequence whose training step takes at most {} a rank\n", limit_text);
  fmt::print("  {:<10}{:>6}{:>14}{:>14}{:>12}  {}\n", "strategy", "ranks", "tokens", "a rank",
             "peak GiB", "most of it");
  for (const SequenceMemory& row : bench_memory(config, cases, limit_bytes)) {
    Json& entry = json.emplace_back(to_json(row));
    if (print_case(row)) continue;
    entry["tokens"] = row.tokens;
    if (row.tokens == 0) {
      fmt::print("{:>14}  one token does not fit\n", 0);
      continue;
    }
    fmt::print(
        "{:>14}{:>14}{:>12.2f}  {} ({:.0f}%)\n", row.tokens, row.tokens / row.ranks,
        static_cast<double>(row.peak_bytes) / (1 << 30), row.largest,
        100.0 * static_cast<double>(row.largest_bytes) / static_cast<double>(row.peak_bytes));
    entry["peak_bytes"] = row.peak_bytes;
    entry["largest"] = {{"name", row.largest}, {"bytes", row.largest_bytes}};
  }
}

bool measured_table(const Config& config, std::span<const StrategyOnRanks> cases,
                    const AttentionRuns& runs, Json& json) {
  fmt::print("\nmeasured ms of the layer, forward and backward ({}, medians of {} pairs)\n",
             where_text(runs.place), runs.repeats);
  fmt::print("  {:<10}{:>6}{:>11}{:>11}{:>11}{:>11}{:>11}  {}\n", "strategy", "ranks", "forward",
             "backward", "both", "over ring", "TFLOP/s", runs.errors ? "error" : "");
  bool all_hold = true;
  measure_attention(config, cases, runs, [&](const MeasuredAttention& row) {
    all_hold &= row.failed.empty();
    print(row);
    std::fflush(stdout);
    json.push_back(to_json(row, runs));
  });
  return all_hold;
}

}  // namespace weft
