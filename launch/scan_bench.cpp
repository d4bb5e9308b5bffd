#include "launch/scan_bench.hpp"

#include <algorithm>

#include "parallel/sequence/scan_bytes.hpp"

namespace weft {
namespace {

constexpr TransitionKindName kTransitions[] = {{"none", StateKind::none},
                                               {"scalar", StateKind::scalar},
                                               {"vector", StateKind::vector},
                                               {"dense", StateKind::delta}};

ScanSetting setting_of(const ScanBenchState& shape, StateKind kind, int ranks, int64_t tokens) {
  return {.batch = shape.batch,
          .heads = shape.heads,
          .key_dim = shape.key_dim,
          .value_dim = shape.value_dim,
          .dtype = shape.dtype,
          .kind = kind,
          .cuts = Cuts::even(tokens, ranks),
          .options = shape.options};
}

SimulatedProgram program_of(const ScanBenchState& shape, const ScanOnRanks& which, int64_t tokens) {
  return scan_program(*which.scan, setting_of(shape, which.transition->kind, which.ranks, tokens));
}

constexpr int64_t kScansAlone = 0, kLayer = 1;  // tokens

double critical_path(const SimulatedProgram& program, const SimulatedMachine& machine) {
  return simulate_layer(program, machine, SimulatedTime::critical_path).step();
}

}  // namespace

std::span<const TransitionKindName> transition_kinds() {
  return kTransitions;
}

bool ScanBytes::agree() const {
  const auto is_closed_form = [&](const std::vector<PassBytes>& b) { return b == closed_form; };
  return std::ranges::all_of(sent, is_closed_form) && std::ranges::all_of(booked, is_closed_form);
}

std::vector<ScanBytes> bench_scan_bytes(const ScanBenchState& shape,
                                        std::span<const ScanOnRanks> cases,
                                        std::span<const int64_t> tokens) {
  std::vector<ScanBytes> rows;
  for (const ScanOnRanks& which : cases) {
    ScanBytes& row = rows.emplace_back();
    static_cast<ScanOnRanks&>(row) = which;
    row.tokens.assign(tokens.begin(), tokens.end());
    const ScanSetting setting = setting_of(shape, which.transition->kind, which.ranks, kLayer);
    const ScanByteShape bytes{which.ranks, setting.state_bytes(), setting.transition_bytes()};
    for (int rank = 0; rank < which.ranks; ++rank) {
      row.closed_form.push_back(
          {.forward = scan_bytes(which.scan->name, bytes, rank, shape.options),
           .backward = scan_bytes(which.scan->name, bytes, which.ranks - 1 - rank, shape.options)});
    }
    for (const int64_t length : tokens) {
      SimulatedLayer run =
          simulate_layer(program_of(shape, which, length), {}, SimulatedTime::critical_path);
      row.sent.push_back(std::move(run.sent));
      row.booked.push_back(std::move(run.booked));
    }
  }
  return rows;
}

std::vector<ScanTime> bench_scan_time(const ScanBenchState& shape,
                                      std::span<const ScanOnRanks> cases,
                                      std::span<const int64_t> tokens,
                                      const SimulatedMachine& machine, double real_s, int repeats) {
  std::vector<ScanTime> rows;
  for (const ScanOnRanks& which : cases) {
    ScanTime& row = rows.emplace_back();
    static_cast<ScanOnRanks&>(row) = which;
    const SimulatedProgram alone = program_of(shape, which, kScansAlone);
    row.alone = overlap_of(alone, machine);
    const double critical_s = row.alone.step.both_s;
    if (critical_s > 0 && real_s > 0) {
      row.attained_s = attained_step_s(alone, machine, critical_s, real_s, repeats);
    }
    for (const int64_t length : tokens) {
      const ScanSetting layer = setting_of(shape, which.transition->kind, which.ranks, length);
      row.layers.push_back({.tokens = length,
                            .layer_s = critical_path(scan_program(*which.scan, layer), machine),
                            .shard_s = critical_path(one_shard_program(layer), machine)});
    }
  }
  return rows;
}

int ScanRace::fastest() const {
  return static_cast<int>(std::ranges::min_element(seconds) - seconds.begin());
}

double ScanRace::lead() const {
  std::vector<double> sorted = seconds;
  std::ranges::sort(sorted);
  return sorted.size() > 1 && sorted[0] > 0 ? sorted[1] / sorted[0] : 1;
}

std::vector<ScanRace> bench_scan_race(const ScanBenchState& shape,
                                      std::span<const StateScanKind* const> scans,
                                      std::span<const TransitionKindName* const> transitions,
                                      std::span<const int64_t> state_bytes,
                                      std::span<const int> ranks, const SimulatedMachine& machine) {
  std::vector<ScanRace> rows;
  ScanBenchState state = shape;
  state.batch = state.heads = 1;
  const int64_t head_bytes = setting_of(state, StateKind::none, 1, kScansAlone).state_bytes();
  for (const TransitionKindName* transition : transitions) {
    for (const int64_t bytes : state_bytes) {
      WEFT_CHECK(bytes > 0 && bytes % head_bytes == 0, bytes, " bytes of ", head_bytes, " a head");
      state.heads = bytes / head_bytes;
      for (const int P : ranks) {
        ScanRace& row =
            rows.emplace_back(ScanRace{transition, bytes, P, machine.transfer_s(1, bytes), {}});
        for (const StateScanKind* scan : scans) {
          const SimulatedProgram program = program_of(state, {scan, transition, P}, kScansAlone);
          row.seconds.push_back(
              simulate_layer(program, machine, SimulatedTime::critical_path).forward());
        }
      }
    }
  }
  return rows;
}

}  // namespace weft
