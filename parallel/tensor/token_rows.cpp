#include "parallel/tensor/token_rows.hpp"

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

Lane lane_of(Tag::Pass pass) {
  return pass == Tag::Pass::forward ? Lane::forward : Lane::backward;
}

}  // namespace

TokenRows::TokenRows(const Frame& frame, int layer, StepContext& ctx)
    : ctx_(ctx),
      rank_(ctx.mesh.at(Axis::tensor)),
      ranks_(ctx.mesh.size(Axis::tensor)),
      cuts_(Cuts::even(frame.rows(), ranks_)),
      layer_(layer),
      micro_batch_(frame.micro_batch()) {}

Tensor TokenRows::room(const char* name, DType dtype, int64_t width) const {
  if (ranks_ == 1) return {};
  return ctx_.scratch.allocate(name, dtype, {all(), width});
}

Tensor TokenRows::gather(const Tensor& own, const Tensor& room, Tag::Pass pass) const {
  return begin_gather(own, room, pass, lane_of(pass)).await(ctx_.compute);
}

Arriving TokenRows::begin_gather(const Tensor& own, const Tensor& room, Tag::Pass pass,
                                 Lane lane) const {
  const Tensor all = room ? room : own;
  if (room) copy({.y = own_rows(room), .x = own}, ctx_.compute);
  return {all, group(lane).all_gather(flat(all), elements(all.dim(1)), tag(pass), ctx_.compute)};
}

Tensor TokenRows::sum(const Tensor& partial, Tag::Pass pass) const {
  const Scope scope(ctx_.scratch);
  const Tensor received =
      ranks_ == 1 ? Tensor{}
                  : ctx_.scratch.allocate("row sums", partial.dtype, {size() * partial.dim(1)});
  ctx_.compute.wait(group(lane_of(pass))
                        .reduce_scatter(flat(partial), elements(partial.dim(1)), received,
                                        tag(pass), ctx_.compute));
  return own_rows(partial);
}

void TokenRows::sum_into(const Tensor& own, const Tensor& partial, Tag::Pass pass) const {
  const Tensor summed = sum(partial, pass);
  if (ranks_ > 1) copy({.y = own, .x = summed}, ctx_.compute);
}

Tensor TokenRows::own_rows(const Tensor& all) const {
  return all.slice(0, cuts_.begin(rank_), cuts_.end(rank_));
}

Cuts TokenRows::elements(int64_t width) const {
  std::vector<int64_t> sizes;
  for (int p = 0; p < cuts_.pieces(); ++p) sizes.push_back(cuts_.size(p) * width);
  return Cuts::of_sizes(sizes);
}

Tag TokenRows::tag(Tag::Pass pass) const {
  return {layer_, Tag::Purpose::activation, pass, micro_batch_};
}

}  // namespace weft
