#include "parallel/sequence/scan_bytes.hpp"

#include "src/core/check.hpp"

namespace weft {
namespace {

struct ScanForm {
  std::string_view scan;  // as in sequence.state
  int64_t (*bytes)(const ScanByteShape& s, int position, const StateScanOptions& options);
};

/// A form that no option changes.
template <int64_t (*kForm)(const ScanByteShape&, int)>
int64_t whatever_the_options(const ScanByteShape& s, int position, const StateScanOptions&) {
  return kForm(s, position);
}

int64_t two_level_form(const ScanByteShape& s, int position, const StateScanOptions& options) {
  return two_level_bytes(s, position, options.group > 0 ? options.group : default_group(s.ranks));
}

constexpr ScanForm kForms[] = {
    {"lasp", whatever_the_options<chain_bytes>},
    {"lasp2", whatever_the_options<lasp2_bytes>},
    {"zeco", whatever_the_options<chain_bytes>},
    {"doubling", whatever_the_options<doubling_bytes>},
    {"two_level", two_level_form},
};

}  // namespace

int64_t scan_bytes(std::string_view scan, const ScanByteShape& s, int position,
                   const StateScanOptions& options) {
  for (const ScanForm& form : kForms) {
    if (form.scan == scan) return form.bytes(s, position, options);
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no closed form of ", scan));
}

}  // namespace weft
