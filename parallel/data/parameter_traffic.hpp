// What crosses the holders of parameters during a step (ZeRO; Rajbhandari et al., arXiv
// 1910.02054): gradients to be summed, and values that a rank keeps a piece of.
#pragma once

#include <map>
#include <vector>

#include "parallel/data/unit_slots.hpp"
#include "parallel/mesh.hpp"
#include "parallel/parameter_store.hpp"

namespace weft {

/// The piece of a bucket that a rank sums, updates and has the optimizer's state of. The pieces of
/// the bucket's holders, one after the other, are the bucket.
struct ParameterShard {
  const ParameterBucket* bucket;
  Communicator* group;
  Cuts cuts;               // of the bucket over the group
  int64_t at;              // the piece's first element among all that the rank keeps
  Tensor value, gradient;  // [size]: in the whole bucket, or where the rank keeps its pieces

  int64_t begin() const { return cuts.begin(group->rank()); }  // in the bucket
  int64_t end() const { return cuts.end(group->rank()); }
  int64_t size() const { return end() - begin(); }
  Tensor of(const Tensor& bucket_buffer) const { return bucket_buffer.slice(0, begin(), end()); }
};

/// The part of a parameter that a rank holds: elements [begin, end) of its piece. Where that is
/// empty, begin and end are one number, of no meaning.
struct HeldValues {
  const Parameter* parameter;
  int64_t begin, end;
  Tensor values;  // [end - begin]
};

/// Moves gradients and values of a store's buckets, as the model's loops say which unit they come
/// to. All ranks that hold the same parameters make the same calls in the same order.
///
/// Whole gradients are summed once: when a unit has its last gradient of the step its
/// reduce-scatter starts, beside the rest of the backward. The others live in a slot while a unit
/// adds to them; then they are reduce-scattered and added to the own piece, a micro-batch after the
/// other. Values in pieces are gathered into slots ahead of their use, as far as the slots allow.
class ParameterTraffic {
 public:
  /// Pieces and slots come from `arena`. Store and mesh, which has the groups of the store's
  /// holders, must outlive the traffic.
  ParameterTraffic(ParameterStore& store, ProcessMesh& mesh, Arena& arena);

  // ---- While units are computed

  /// The values of a unit are here from this call on, and those of the units after it are on their
  /// way.
  void begin_forward(int unit, Stream& compute);
  void end_forward(int unit);
  /// Values as above, those before it on their way; and begin_gradients().
  void begin_backward(int unit, Stream& compute);
  void end_backward(int unit, Stream& compute);
  /// What is added to the unit's gradients between the two is all that one micro-batch adds to them
  /// here.
  void begin_gradients(int unit, Stream& compute);
  void end_gradients(int unit, Stream& compute);
  /// The unit has its last gradient of this step: nothing adds to it any more.
  void complete(int unit, Stream& compute);

  // ---- Around them

  /// Before the first unit: gradients are zero.
  void begin_step(Stream& compute);
  /// After the last: `compute` has the sums in the gradients of all shards. Of whole buckets the
  /// rest is undefined.
  void finish_gradients(Stream& compute);
  /// The value of a shard is updated: whole values get those of the other holders.
  void publish(const ParameterShard& shard, Stream& compute);
  /// After the last publish().
  void finish_update(Stream& compute);

  const ParameterStore& store() const { return store_; }
  /// By bucket.
  const std::vector<ParameterShard>& shards() const { return shards_; }
  /// Elements of all shards.
  int64_t size() const { return size_; }
  /// Every parameter's, whatever of it is here between steps.
  std::vector<HeldValues> held() const;

 private:
  void make_shards(ProcessMesh& mesh, Arena& arena);
  /// Has the values in the unit's slot, perhaps on their way.
  void fetch(int unit, Tag::Pass pass, Stream& compute);
  /// Fetches the units that come after this one as long as each has a slot of its own; those before
  /// it where `step` is -1.
  void fetch_ahead(int unit, int step, Stream& compute);
  void open_values(int unit, Tag::Pass pass, Stream& compute);
  void close_values(int unit);
  bool read_backward(int unit) const;
  void sum_whole(size_t bucket, Stream& compute);
  /// Adds what a slot of gradients has received to the own pieces.
  void fold(UnitSlots::Slot& slot, Stream& compute);
  Tensor received(const ParameterShard& shard) const;

  ParameterStore& store_;
  std::vector<ParameterShard> shards_;  // by bucket
  int64_t size_ = 0;
  UnitSlots values_, gradients_;
  Tensor kept_gradients_;                           // the pieces of gradients that are not whole
  std::map<const Communicator*, Tensor> received_;  // a piece of another rank, while it is added
  struct Sum {                                      // of whole gradients
    int units_left = 0;                             // that may still add
    bool started = false;
    Tensor gradients;
    Event event;
  };
  std::vector<Sum> sums_;         // by bucket
  std::vector<Event> published_;  // not waited for
};

}  // namespace weft
