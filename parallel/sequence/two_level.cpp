// Two levels: groups of neighbours, say the GPUs of a node, and a chain over the groups. Of a group
// only its last member, the leader, talks to other groups, and only states do.
//
//   call 0        every member sends its shard's map to the later members of its group, who fold
//                 what stands before them there
//   call 1 + t    the leader of group t sends the state that leaves the group to the next leader,
//                 and the state that entered it to its members, who apply their fold to it
//
// That is 1 + P / g calls for groups of g, least for g = sqrt(P). The sum is bracketed otherwise
// than the chain's: equal up to rounding, not bit for bit.
#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/sequence/scan_line.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Positions [first, leader] of one group.
struct Group {
  int index, first, leader;

  static Group of(int position, int size, int positions) {
    const int index = position / size;
    return {index, index * size, std::min((index + 1) * size, positions) - 1};
  }
};

class TwoLevel final : public StateScan {
 public:
  explicit TwoLevel(int group) : group_(group) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    ScanLine line(element, entering, direction, tag, ctx);
    const int size = group_ > 0 ? group_ : static_cast<int>(std::lround(std::sqrt(line.size())));
    const Group group = Group::of(line.position(), size, line.size());
    const StateMap before = fold_group(line, group, share_maps(line, group));
    pass_over_groups(line, group, size, before);
    return line.pending();
  }

 private:
  /// The maps of the earlier members of the group.
  static std::vector<StateMap> share_maps(ScanLine& line, const Group& group) {
    const int position = line.position();
    std::vector<Message> messages;
    std::vector<StateMap> maps;
    // Nothing enters the first shard: its transition meets no state.
    const StateMap own{position == 0 ? Tensor{} : line.own().transition, line.own().state};
    for (int member = position + 1; member <= group.leader; ++member) {
      append_send(messages, member, own);
    }
    for (int member = group.first; member < position; ++member) {
      maps.push_back({member == 0 ? Tensor{} : line.allocate_transition("group transition"),
                      line.allocate_state("group state")});
      append_receive(messages, member, maps.back());
    }
    line.exchange(std::move(messages));
    return maps;
  }

  /// One map of all of them, without a state where there are none; without a transition in the
  /// first group, which nothing enters.
  static StateMap fold_group(const ScanLine& line, const Group& group,
                             const std::vector<StateMap>& maps) {
    if (maps.empty()) return {};
    StateMap sum = maps[0];
    for (size_t i = 1; i < maps.size(); ++i) {
      line.combine(maps[i].state, maps[i].transition, sum.state, maps[i].state);
      sum.state = maps[i].state;
      if (group.index == 0) continue;
      const Tensor both = line.allocate_transition("group transition");
      line.compose_transitions(both, maps[i].transition, sum.transition);
      sum.transition = both;
    }
    return sum;
  }

  static void pass_over_groups(ScanLine& line, const Group& group, int size,
                               const StateMap& before) {
    const int position = line.position(), groups = (line.size() + size - 1) / size;
    const bool leads = position == group.leader, leads_on = leads && group.index + 1 < groups;
    const auto leader_of = [&](int index) {
      return Group::of(index * size, size, line.size()).leader;
    };
    // The state that enters the group is the one that enters its first member.
    const bool enters_group = group.index > 0;
    const Tensor group_entering =
        enters_group && before.state ? line.allocate_state("group entering") : line.entering();
    const Tensor leaving =
        leads_on && position > 0 ? line.allocate_state("group leaving") : line.own().state;
    if (!enters_group && before.state) {
      copy({.y = line.entering(), .x = before.state}, line.stream());
    }
    if (!enters_group && leads_on && position > 0) leave(line, leaving);
    for (int turn = 0; turn < groups; ++turn) {
      std::vector<Message> messages;
      bool receives = false;
      if (leads && turn == group.index) {
        // First the one that the chain waits for.
        if (leads_on) messages.push_back(send_to(leader_of(turn + 1), leaving));
        for (int member = group.first; enters_group && member < position; ++member) {
          messages.push_back(send_to(member, group_entering));
        }
      } else if (enters_group && turn == (leads ? group.index - 1 : group.index)) {
        receives = true;
        messages.push_back(receive_from(leads ? leader_of(turn) : group.leader, group_entering));
      }
      line.exchange(std::move(messages));
      if (!receives) continue;
      if (before.state) {
        line.combine(line.entering(), before.transition, group_entering, before.state);
      }
      if (leads_on) leave(line, leaving);
    }
  }

  static void leave(const ScanLine& line, const Tensor& leaving) {
    line.combine(leaving, line.own().transition, line.entering(), line.own().state);
  }

  int group_;  // positions a group; 0: about sqrt(P)
};

}  // namespace

std::unique_ptr<StateScan> make_two_level_scan(const StateScanOptions& options) {
  return std::make_unique<TwoLevel>(options.group);
}

}  // namespace weft
