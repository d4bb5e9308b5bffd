#include "parallel/comm/ledger.hpp"

#include "src/core/check.hpp"

namespace weft {

const char* name(Tag::Purpose purpose) {
  switch (purpose) {
    case Tag::Purpose::activation:
      return "activation";
    case Tag::Purpose::attention:
      return "attention";
    case Tag::Purpose::balance:
      return "balance";
    case Tag::Purpose::state:
      return "state";
    case Tag::Purpose::convolution:
      return "convolution";
    case Tag::Purpose::gradient:
      return "gradient";
    case Tag::Purpose::parameter:
      return "parameter";
    case Tag::Purpose::norm:
      return "norm";
    case Tag::Purpose::loss:
      return "loss";
    case Tag::Purpose::control:
      return "control";
  }
  return "?";
}

const char* name(Tag::Pass pass) {
  switch (pass) {
    case Tag::Pass::forward:
      return "forward";
    case Tag::Pass::backward:
      return "backward";
    case Tag::Pass::update:
      return "update";
  }
  return "?";
}

std::string text(const Tag& tag) {
  const std::string what = concat(name(tag.purpose), " ", name(tag.pass));
  return tag.layer < 0 ? what
                       : concat(what, " of layer ", tag.layer, ", micro-batch ", tag.micro_batch);
}

void Ledger::book(const std::string& group, const Tag& tag, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  bytes_[Key{group, tag}] += bytes;
}

void Ledger::clear() {
  const std::lock_guard lock(mutex_);
  bytes_.clear();
}

std::map<Ledger::Key, int64_t> Ledger::entries() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

std::map<std::string, int64_t> Ledger::by_group() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, int64_t> sums;
  for (const auto& [key, bytes] : bytes_) sums[key.group] += bytes;
  return sums;
}

}  // namespace weft
