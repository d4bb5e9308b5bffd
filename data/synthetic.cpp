#include "data/synthetic.hpp"

#include <utility>

#include "src/core/check.hpp"
#include "src/core/random.hpp"

namespace weft {

SyntheticSource::SyntheticSource(int64_t vocab_size, int64_t seq_length, uint64_t seed,
                                 bool documents)
    : vocab_size_(vocab_size), seq_length_(seq_length), seed_(seed), documents_(documents) {
  WEFT_CHECK(vocab_size > 0 && vocab_size <= INT32_MAX, "vocab_size ", vocab_size);
  WEFT_CHECK(seq_length > 0, "seq_length ", seq_length);
}

SegmentMap SyntheticSource::segments(int64_t sample) const {
  WEFT_CHECK(sample >= 0 && sample < samples(), "sample ", sample);
  if (!documents_) return SegmentMap::single(seq_length_);
  const RandomStream random(seed_, concat("synthetic documents ", sample));
  uint64_t draw = 0;
  const bool last_continues = random.below(draw++, 2) == 0;
  std::vector<int64_t> starts;
  for (int64_t start = 0; start < seq_length_;) {
    starts.push_back(start);
    // One in eight has a single token, the others are uniform up to half the sequence.
    const bool tiny = random.below(draw++, 8) == 0;
    start += tiny ? 1 : 1 + static_cast<int64_t>(random.below(draw++, (seq_length_ + 1) / 2));
  }
  return SegmentMap(seq_length_, std::move(starts), last_continues);
}

void SyntheticSource::tokens(int64_t sample, int64_t begin, int64_t end,
                             std::span<int32_t> out) const {
  WEFT_CHECK(sample >= 0 && sample < samples(), "sample ", sample);
  WEFT_CHECK(begin >= 0 && begin <= end && end <= seq_length_ + 1, "[", begin, ", ", end, ")");
  WEFT_CHECK(std::ssize(out) == end - begin, out.size(), " places for ", end - begin, " tokens");
  const RandomStream random(seed_, concat("synthetic tokens ", sample));
  for (int64_t t = begin; t < end; ++t) {
    out[t - begin] = static_cast<int32_t>(random.below(t, vocab_size_));
  }
}

}  // namespace weft
