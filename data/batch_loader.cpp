#include "data/batch_loader.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "src/core/check.hpp"
#include "src/core/random.hpp"

namespace weft {

// ---- Samples of a token file

TokenFileSource::TokenFileSource(const std::string& path, int64_t seq_length, bool documents)
    : file_(path), seq_length_(seq_length), documents_(documents) {
  WEFT_CHECK(seq_length > 0, "seq_length ", seq_length);
  WEFT_REQUIRE(file_.tokens() > seq_length, ExitCode::data, path, ": expected at least ",
               seq_length + 1, " tokens for a sequence of ", seq_length,
               " and its last label, got ", file_.tokens());
}

SegmentMap TokenFileSource::segments(int64_t sample) const {
  WEFT_CHECK(sample >= 0 && sample < samples(), "sample ", sample, " of ", samples());
  if (!documents_) return SegmentMap::single(seq_length_);
  const int64_t first = sample * seq_length_;
  const int64_t next = first + seq_length_;
  const auto& offsets = file_.document_offsets();
  // `next` is a token of the file, so the file's last offset is beyond it and both searches hit.
  const auto begin = std::upper_bound(offsets.begin(), offsets.end(), first);
  const auto end = std::lower_bound(begin, offsets.end(), next);
  std::vector<int64_t> starts(begin, end);
  for (int64_t& start : starts) start -= first;
  return SegmentMap(seq_length_, std::move(starts), *end != next);
}

void TokenFileSource::tokens(int64_t sample, int64_t begin, int64_t end,
                             std::span<int32_t> out) const {
  WEFT_CHECK(sample >= 0 && sample < samples(), "sample ", sample, " of ", samples());
  WEFT_CHECK(begin >= 0 && begin <= end && end <= seq_length_ + 1, "[", begin, ", ", end, ")");
  const int64_t first = sample * seq_length_;
  file_.read(first + begin, first + end, out);
}

// ---- Order

namespace {

/// A bijection of [0, 2^(2 half_bits)): a Feistel network whose rounds are Philox.
uint64_t feistel(uint64_t value, int half_bits, uint64_t seed, uint64_t epoch) {
  constexpr uint32_t kRounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = value >> half_bits;
  uint64_t right = value & mask;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const auto words = philox({static_cast<uint32_t>(right), round, static_cast<uint32_t>(epoch),
                               static_cast<uint32_t>(epoch >> 32)},
                              {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    left = std::exchange(right, (left ^ words[0]) & mask);
  }
  return left << half_bits | right;
}

}  // namespace

int64_t sample_at(uint64_t seed, int64_t global_index, int64_t samples) {
  WEFT_CHECK(global_index >= 0 && samples > 0, "index ", global_index, " of ", samples);
  const uint64_t count = samples;
  const uint64_t epoch = global_index / samples;
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(count - 1)) + 1) / 2);
  // Walking on until the value falls inside [0, samples) keeps it a bijection there.
  uint64_t value = global_index % samples;
  do {
    value = feistel(value, half_bits, seed, epoch);
  } while (value >= count);
  return static_cast<int64_t>(value);
}

// ---- Batches

namespace {

/// Labels of tokens [begin, begin + tokens.size() - 1): the next token, -1 at a document's end.
std::vector<int32_t> next_tokens(const SegmentMap& segments, int64_t begin,
                                 std::span<const int32_t> tokens) {
  std::vector<int32_t> labels(tokens.size() - 1);
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i] = segments.has_label(begin + static_cast<int64_t>(i)) ? tokens[i + 1] : -1;
  }
  return labels;
}

}  // namespace

BatchLoader::BatchLoader(const SampleSource& source, uint64_t seed, int64_t global_batch_size,
                         const Cuts& sequence_cuts, int sequence_shard, const Cuts& data_cuts,
                         int data_shard, int64_t micro_batch_size,
                         std::optional<TokenMasking> masking)
    : source_(source),
      seed_(seed),
      global_batch_size_(global_batch_size),
      token_begin_(sequence_cuts.begin(sequence_shard)),
      token_end_(sequence_cuts.end(sequence_shard)),
      sample_begin_(data_cuts.begin(data_shard)),
      sample_end_(data_cuts.end(data_shard)),
      micro_batch_size_(micro_batch_size),
      most_samples_(data_cuts.largest()),
      masking_(masking) {
  WEFT_CHECK(sequence_cuts.total() == source.seq_length(), sequence_cuts.total(), " is not ",
             source.seq_length());
  WEFT_CHECK(data_cuts.total() == global_batch_size, data_cuts.total(), " is not ",
             global_batch_size);
  WEFT_CHECK(micro_batch_size > 0, micro_batch_size);
}

int64_t BatchLoader::global_index(int64_t step, int64_t index) const {
  return step * global_batch_size_ + index;
}

int64_t BatchLoader::sample(int64_t global_index) const {
  return sample_at(seed_, global_index, source_.samples());
}

std::vector<Batch> BatchLoader::load(int64_t step) const {
  std::vector<Batch> batches;
  for (int64_t i = 0; i < most_samples_; i += micro_batch_size_) {
    batches.push_back(load_batch(step, std::min(sample_begin_ + i, sample_end_),
                                 std::min(sample_begin_ + i + micro_batch_size_, sample_end_)));
  }
  return batches;
}

Batch BatchLoader::load_batch(int64_t step, int64_t first, int64_t last) const {
  Batch batch;
  batch.begin = token_begin_;
  batch.end = token_end_;
  const int64_t places = (last - first) * (token_end_ - token_begin_);
  batch.tokens.reserve(places);
  batch.labels.reserve(places);
  for (int64_t i = first; i < last; ++i) append_sample(global_index(step, i), batch);
  return batch;
}

void BatchLoader::append_sample(int64_t global_index, Batch& batch) const {
  const int64_t sample = this->sample(global_index);
  const SegmentMap& segments = batch.segments.emplace_back(source_.segments(sample));
  if (token_begin_ == token_end_) return;
  // One token more than the shard: labels are shifted before the cut.
  std::vector<int32_t> tokens(token_end_ - token_begin_ + 1);
  source_.tokens(sample, token_begin_, token_end_ + 1, tokens);
  const std::span<int32_t> own = std::span(tokens).first(tokens.size() - 1);
  const std::vector<int32_t> labels = masking_ ? masking_->mask(global_index, token_begin_, own)
                                               : next_tokens(segments, token_begin_, tokens);
  batch.tokens.insert(batch.tokens.end(), own.begin(), own.end());
  batch.labels.insert(batch.labels.end(), labels.begin(), labels.end());
}

int64_t BatchLoader::global_labels(int64_t step) const {
  int64_t labels = 0;
  for (int64_t i = 0; i < global_batch_size_; ++i) {
    const int64_t index = global_index(step, i);
    labels += masking_ ? masking_->selected(index, source_.seq_length())
                       : source_.segments(sample(index)).labels(0, source_.seq_length());
  }
  return labels;
}

}  // namespace weft
