#include "launch/byte_check.hpp"

#include "src/core/check.hpp"

namespace weft {

void check_sent_bytes(int64_t step, const SentBytes& planned, const SentBytes& booked,
                      const SentBytes& counted) {
  for (const SentBytes* entries : {&planned, &booked, &counted}) {
    for (const auto& [key, unused] : *entries) {
      const auto bytes = [&key = key](const SentBytes& ledger) {
        const auto found = ledger.find(key);
        return found == ledger.end() ? int64_t{0} : found->second;
      };
      WEFT_REQUIRE(bytes(planned) == bytes(booked) && bytes(booked) == bytes(counted),
                   ExitCode::comparison, "step ", step, ": bytes sent for ", text(key.tag),
                   " over ", key.group, ": planned ", bytes(planned), ", booked ", bytes(booked),
                   ", counted ", bytes(counted));
    }
  }
}

}  // namespace weft
