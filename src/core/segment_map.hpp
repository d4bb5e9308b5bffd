// Documents of one sample: the single object behind masks, positions, label shift and loss weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace weft {

/// A sample of `tokens` tokens holds one or more documents, each a contiguous range. Offsets are
/// global within the sample; a rank looks at its shard by passing [begin, end).
///
/// A document that the sample's start cuts begins there with position 0; the label of a document's
/// last token is ignored, unless the document is known to go on after the sample's end.
class SegmentMap {
 public:
  /// `starts`: strictly ascending document starts in [0, tokens); 0 is implied.
  /// `last_continues`: the token after the sample's end belongs to the sample's last document, so
  /// the last token has a label.
  SegmentMap(int64_t tokens, std::vector<int64_t> starts, bool last_continues);

  /// The whole sample as one document that goes on after its end.
  static SegmentMap single(int64_t tokens) { return SegmentMap(tokens, {}, true); }

  int64_t tokens() const { return tokens_; }
  const std::vector<int64_t>& starts() const { return starts_; }

  /// First and one-past-last token of the document that holds token t.
  int64_t document_begin(int64_t t) const;
  int64_t document_end(int64_t t) const;

  /// Position of token t inside its document.
  int64_t position(int64_t t) const { return t - document_begin(t); }

  /// Whether token t has a label: its successor belongs to the same document.
  bool has_label(int64_t t) const;

  /// Tokens of [begin, end) that have a label; over [0, tokens()) the weight of the sample.
  int64_t labels(int64_t begin, int64_t end) const;

 private:
  size_t document_of(int64_t t) const;

  int64_t tokens_;
  std::vector<int64_t> starts_;  // starts_[0] == 0 unless the sample is empty
  bool last_continues_;
};

}  // namespace weft
