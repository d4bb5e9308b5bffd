// What a library has decided about a call, kept by the shape of the call.
#pragma once

#include <map>
#include <utility>

namespace weft::cuda {

/// The plans of one thread, a rank's own: nothing is shared, nothing is locked. A plan is made where
/// its shape is first asked for, and stays where it is. `Library`: a Handle, which the plans belong
/// to.
template <class Library, class Shape, class Plan>
class PlanCache {
 public:
  explicit PlanCache(Library library) : library_(std::move(library)) {}

  auto library() const { return library_.get(); }
  /// make(library(), shape) makes the plan.
  template <class Make>
  const Plan& of(const Shape& shape, Make&& make) {
    auto found = plans_.find(shape);
    if (found == plans_.end()) found = plans_.emplace(shape, make(library(), shape)).first;
    return found->second;
  }

 private:
  Library library_;
  std::map<Shape, Plan> plans_;
};

}  // namespace weft::cuda
