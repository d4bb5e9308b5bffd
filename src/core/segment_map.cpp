#include "src/core/segment_map.hpp"

#include <algorithm>

#include "src/core/check.hpp"

namespace weft {

SegmentMap::SegmentMap(int64_t tokens, std::vector<int64_t> starts, bool last_continues)
    : tokens_(tokens), starts_(std::move(starts)), last_continues_(last_continues) {
  WEFT_CHECK(tokens_ >= 0);
  if (tokens_ > 0 && (starts_.empty() || starts_.front() != 0)) starts_.insert(starts_.begin(), 0);
  for (size_t i = 0; i < starts_.size(); ++i) {
    WEFT_CHECK(starts_[i] < tokens_ && (i == 0 || starts_[i] > starts_[i - 1]), "document start ",
               starts_[i], " in a sample of ", tokens_, " tokens");
  }
}

size_t SegmentMap::document_of(int64_t t) const {
  WEFT_CHECK(t >= 0 && t < tokens_, "token ", t, " of ", tokens_);
  return std::upper_bound(starts_.begin(), starts_.end(), t) - starts_.begin() - 1;
}

int64_t SegmentMap::document_begin(int64_t t) const {
  return starts_[document_of(t)];
}

int64_t SegmentMap::document_end(int64_t t) const {
  const size_t next = document_of(t) + 1;
  return next < starts_.size() ? starts_[next] : tokens_;
}

bool SegmentMap::has_label(int64_t t) const {
  return t + 1 < tokens_ ? document_end(t) > t + 1 : last_continues_;
}

int64_t SegmentMap::labels(int64_t begin, int64_t end) const {
  WEFT_CHECK(begin >= 0 && begin <= end && end <= tokens_, "[", begin, ", ", end, ")");
  int64_t ignored = end == tokens_ && begin < end && !last_continues_ ? 1 : 0;
  for (const int64_t start : starts_) {
    if (start > 0 && start - 1 >= begin && start - 1 < end) ++ignored;
  }
  return end - begin - ignored;
}

}  // namespace weft
