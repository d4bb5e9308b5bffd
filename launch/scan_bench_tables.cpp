#include <fmt/format.h>

#include <algorithm>

#include "launch/sequence_bench_tables.hpp"

namespace weft {
namespace {

constexpr double kMiB = 1 << 20;

void print_case(const ScanOnRanks& row) {
  fmt::print("  {:<10}{:>6}  {:<10}", row.scan->name, row.ranks, row.transition->name);
}

Json to_json(const ScanOnRanks& row) {
  return {{"scan", row.scan->name}, {"ranks", row.ranks}, {"transition", row.transition->name}};
}

/// What the rank that sends most sends forward. Backward it is as much, of its mirror.
int64_t most_forward(const std::vector<PassBytes>& by_rank) {
  return std::ranges::max(by_rank, {}, &PassBytes::forward).forward;
}

int64_t sum_of(const std::vector<PassBytes>& by_rank) {
  int64_t sum = 0;
  for (const PassBytes& rank : by_rank) sum += rank.forward + rank.backward;
  return sum;
}

}  // namespace

bool scan_bytes_table(const ScanBenchState& shape, std::span<const ScanOnRanks> cases,
                      std::span<const int64_t> tokens, Json& json) {
  fmt::print(
      "\nbytes the busiest rank sends each way for the layer, by its closed form and as counted\n");
  fmt::print("  {:<10}{:>6}  {:<10}{:>13}", "scan", "ranks", "transition", "closed form");
  for (const int64_t length : tokens) fmt::print("{:>18}", fmt::format("{} tokens", length));
  fmt::print("{:>18}  {}\n", "all, both ways", "every rank");
  bool all_agree = true;
  for (const ScanBytes& row : bench_scan_bytes(shape, cases, tokens)) {
    all_agree &= row.agree();
    print_case(row);
    fmt::print("{:>13}", most_forward(row.closed_form));
    for (const auto& sent : row.sent) fmt::print("{:>18}", most_forward(sent));
    fmt::print("{:>18}  {}\n", sum_of(row.closed_form), row.agree() ? "the same" : "otherwise");
    Json& entry = json.emplace_back(to_json(row));
    entry["closed_form"] = to_json(row.closed_form);
    for (size_t i = 0; i < row.tokens.size(); ++i) {
      entry["counted"].push_back({{"tokens", row.tokens[i]},
                                  {"sent", to_json(row.sent[i])},
                                  {"booked", to_json(row.booked[i])}});
    }
  }
  return all_agree;
}

void scan_overlap_table(const ScanBenchState& shape, std::span<const ScanOnRanks> cases,
                        std::span<const int64_t> tokens, const SimulatedRuns& runs, Json& json) {
  fmt::print("\nsimulated ms of a prefix and a suffix, and of what they add to a layer ({})\n",
             runs.machine_text);
  fmt::print("  {:<10}{:>6}  {:<10}{:>9}{:>11}{:>9}{}", "scan", "ranks", "transition", "kernels",
             "transfers", "both", runs.real_s > 0 ? "   attained   ratio" : "");
  for (const int64_t length : tokens) fmt::print("{:>18}", fmt::format("{} tokens", length));
  fmt::print("\n");
  for (const ScanTime& row :
       bench_scan_time(shape, cases, tokens, runs.machine, runs.real_s, runs.repeats)) {
    const Overlap& alone = row.alone.step;
    print_case(row);
    fmt::print("{:>9.3f}{:>11.3f}{:>9.3f}", 1e3 * alone.kernels_s, 1e3 * alone.transfers_s,
               1e3 * alone.both_s);
    Json& entry = json.emplace_back(to_json(row));
    entry["prefix"] = to_json(row.alone.forward);
    entry["both"] = to_json(alone);
    if (row.attained_s > 0) {
      fmt::print("{:>11.3f}{:>8.3f}", 1e3 * row.attained_s, row.attained_ratio());
      entry["attained_s"] = row.attained_s;
    }
    for (const ScanTime::InLayer& layer : row.layers) {
      fmt::print("{:>18.3f}", 1e3 * layer.added_s());
      entry["layers"].push_back(
          {{"tokens", layer.tokens}, {"layer_s", layer.layer_s}, {"shard_s", layer.shard_s}});
    }
    fmt::print("\n");
  }
}

void scan_crossover_table(const ScanBenchState& shape, std::span<const StateScanKind* const> scans,
                          std::span<const TransitionKindName* const> transitions,
                          std::span<const int64_t> state_bytes, std::span<const int> ranks,
                          const SimulatedRuns& runs, Json& json) {
  fmt::print("\nsimulated us of one prefix by the size of a state ({})\n", runs.machine_text);
  fmt::print("  {:<10}{:>10}{:>7}{:>10}", "transition", "state MiB", "ranks", "transfer");
  for (const StateScanKind* scan : scans) fmt::print("{:>11}", scan->name);
  fmt::print("  {:<10}{}\n", "fastest", "the next");
  for (const ScanRace& row :
       bench_scan_race(shape, scans, transitions, state_bytes, ranks, runs.machine)) {
    fmt::print("  {:<10}{:>10.4g}{:>7}{:>10.1f}", row.transition->name,
               static_cast<double>(row.state_bytes) / kMiB, row.ranks, 1e6 * row.transfer_s);
    Json seconds;
    for (size_t i = 0; i < scans.size(); ++i) {
      fmt::print("{:>11.1f}", 1e6 * row.seconds[i]);
      seconds[scans[i]->name] = row.seconds[i];
    }
    const char* fastest = scans[row.fastest()]->name;
    fmt::print("  {:<10}x {:.2f}\n", fastest, row.lead());
    json.push_back({{"transition", row.transition->name},
                    {"state_bytes", row.state_bytes},
                    {"ranks", row.ranks},
                    {"transfer_s", row.transfer_s},
                    {"seconds", seconds},
                    {"fastest", fastest},
                    {"lead", row.lead()}});
  }
}

}  // namespace weft
