#include "launch/machine.hpp"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>

#include "src/core/check.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"

namespace weft {
namespace {

/// What follows "name:" on the first such line of a file under /proc; empty where there is none.
std::string entry_of(const char* path, const std::string& name) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(name) || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

/// What a control group leaves of its limit; the cached files that it counts could go, and do not
/// here. No limit where there is no such file, or "max" in it.
int64_t left_of_limit(const char* limit_file, const char* usage_file) {
  std::ifstream limit_in(limit_file), usage_in(usage_file);
  int64_t limit = 0, usage = 0;
  if (!(limit_in >> limit) || !(usage_in >> usage)) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(0, limit - usage);
}

int64_t available_memory() {
  const std::string kib = entry_of("/proc/meminfo", "MemAvailable");
  WEFT_CHECK(!kib.empty(), "/proc/meminfo has no MemAvailable");
  return std::min<int64_t>(
      {std::stoll(kib) * 1024,
       left_of_limit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
       left_of_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                     "/sys/fs/cgroup/memory/memory.usage_in_bytes")});
}

}  // namespace

Machine this_machine() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  WEFT_CALL(sched_getaffinity(0, sizeof(cores), &cores));
  return {.cpu = entry_of("/proc/cpuinfo", "model name"),
          .cores = CPU_COUNT(&cores),
          .memory_bytes = available_memory()};
}

Gpus these_gpus(int most_ranks) {
  Gpus gpus;
  gpus.count = cuda::device_count();
  const int used = std::min(gpus.count, most_ranks);
  if (used == 0) return gpus;
  gpus.name = cuda::device_name(0);
  gpus.memory_bytes = cuda::free_bytes(0);
  for (int gpu = 1; gpu < used; ++gpu) {
    gpus.memory_bytes = std::min(gpus.memory_bytes, cuda::free_bytes(gpu));
  }
  return gpus;
}

}  // namespace weft
