#include "parallel/data/muon.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

constexpr int kSteps = 5;
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;

/// FLOPs of newton_schulz, but for a constant.
double work_of(const Parameter& parameter) {
  const auto [small, large] = std::minmax(parameter.shape[0], parameter.shape[1]);
  const double n = static_cast<double>(small);
  return n * n * (2.0 * static_cast<double>(large) + n);
}

}  // namespace

Tensor newton_schulz(Tensor x, Tensor spare, Arena& scratch, Stream& compute) {
  const Scope scope(scratch);
  const bool wide = x.dim(0) <= x.dim(1);
  const int64_t n = std::min(x.dim(0), x.dim(1));
  const Tensor squares = scratch.allocate("squares", DType::f64, {1});
  const Tensor gram = scratch.allocate("gram matrix", x.dtype, {n, n});
  const Tensor factor = scratch.allocate("gram polynomial", x.dtype, {n, n});
  fill({.y = squares, .value = 0}, compute);
  squared_sum({.total = squares, .x = x.reshape({x.numel()})}, compute);
  normalize({.x = x, .squared_sum = squares}, compute);
  for (int step = 0; step < kSteps; ++step) {
    matmul({.c = gram, .a = x, .b = x, .transpose_a = !wide, .transpose_b = wide}, compute);
    matmul({.c = factor, .a = gram, .b = gram, .alpha = kC}, compute);
    add_scaled({.y = factor, .x = gram, .alpha = kB}, compute);
    matmul({.c = spare, .a = wide ? factor : x, .b = wide ? x : factor}, compute);
    add_scaled({.y = spare, .x = x, .alpha = kA}, compute);
    std::swap(x, spare);
  }
  return x;
}

std::vector<ParameterBlock> blocks_of(const std::vector<Parameter*>& parameters) {
  const std::vector<ParameterBucket> buckets = make_buckets(parameters, /*zero=*/1);
  std::vector<ParameterBlock> blocks;
  for (const Parameter* p : parameters) {
    blocks.push_back({.begin = p->begin,
                      .end = p->end,
                      .numel = p->numel(),
                      .bucket_size = buckets[p->bucket].size,
                      .offset = p->offset});
  }
  return blocks;
}

Muon::Muon(const ParameterTraffic& traffic, ProcessMesh& mesh, const ParameterBlocks& blocks)
    : traffic_(traffic), group_(mesh.holders({.tensor = mesh.size(Axis::tensor)})) {
  const std::vector<Parameter*>& parameters = traffic.store().parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = *parameters[i];
    if (!parameter.is_hidden_matrix()) continue;
    Matrix matrix{.parameter = &parameter,
                  .shard = &traffic.shards()[parameter.bucket],
                  .blocks = {},
                  .parts = parts_of(parameter, i, mesh, blocks)};
    for (int t = 0; t < mesh.size(Axis::tensor); t += parameter.holders.tensor) {
      matrix.blocks.push_back(blocks[t][i]);
    }
    matrices_.push_back(std::move(matrix));
  }
  choose_owners();
}

std::vector<Muon::Part> Muon::parts_of(const Parameter& parameter, size_t index,
                                       const ProcessMesh& mesh,
                                       const ParameterBlocks& blocks) const {
  const int holders = mesh.size(Axis::data) * mesh.size(Axis::sequence) * parameter.holders.tensor;
  std::vector<int> seen(mesh.size(Axis::tensor));  // holders so far, by block
  std::vector<int64_t> start(seen.size() + 1);     // of each block, all after each other
  for (size_t k = 0; k * parameter.holders.tensor < seen.size(); ++k) {
    start[k + 1] = start[k] + blocks[k * parameter.holders.tensor][index].numel;
  }
  std::vector<Part> parts;
  int member = 0;
  for (int rank = 0; rank < mesh.shape().ranks(); ++rank) {
    const Coordinate at = coordinate_of(mesh.shape(), rank);
    if (at[static_cast<int>(Axis::pipeline)] != mesh.at(Axis::pipeline)) continue;
    const int place = at[static_cast<int>(Axis::tensor)];
    const int block = place / parameter.holders.tensor;
    const ParameterBlock& there = blocks[place][index];
    const Cuts cuts = Cuts::even(there.bucket_size, holders);
    const int piece = seen[block]++;
    const int64_t begin = std::max(cuts.begin(piece), there.offset) - there.offset;
    const int64_t end = std::min(cuts.end(piece), there.offset + there.numel) - there.offset;
    if (begin < end) parts.push_back({member, start[block] + begin, start[block] + end});
    ++member;
  }
  return parts;
}

void Muon::choose_owners() {
  std::vector<size_t> order(matrices_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return work_of(*matrices_[a].parameter) > work_of(*matrices_[b].parameter);
  });
  std::vector<double> work(group_.size());
  std::vector<int> turns(group_.size());
  for (const size_t i : order) {  // the largest to whom has the least
    Matrix& matrix = matrices_[i];
    const auto least = std::min_element(work.begin(), work.end()) - work.begin();
    matrix.owner = static_cast<int>(least);
    matrix.turn = turns[least]++;
    work[least] += work_of(*matrix.parameter);
    turns_ = std::max(turns_, turns[least]);
  }
}

void Muon::orthogonalise(StepContext& ctx) const {
  for (int turn = 0; turn < turns_; ++turn) one_turn(turn, ctx);
}

Tensor Muon::own_piece(const Matrix& matrix, const Part& part) const {
  const ParameterShard& shard = *matrix.shard;
  const int64_t begin = std::max(shard.begin(), matrix.parameter->offset) - shard.begin();
  return shard.gradient.slice(0, begin, begin + part.end - part.begin);
}

void Muon::one_turn(int turn, StepContext& ctx) const {
  const Scope scope(ctx.scratch);
  const int me = group_.rank();
  const Matrix* own = nullptr;
  for (const Matrix& matrix : matrices_) {
    if (matrix.turn == turn && matrix.owner == me) own = &matrix;
  }
  Tensor whole, spare;
  if (own != nullptr) {
    const int64_t numel = own->parameter->global_numel();
    const DType dtype = own->shard->gradient.dtype;
    whole = ctx.scratch.allocate("muon matrix", dtype, {numel});
    spare = ctx.scratch.allocate("muon matrix", dtype, {numel});
  }
  // What members send to owners, or with `back` owners to members.
  const auto travel = [&](const Tensor& blocks, bool back) {
    std::vector<Message> messages;
    for (const Matrix& matrix : matrices_) {
      if (matrix.turn != turn) continue;
      for (const Part& part : matrix.parts) {
        const bool mine = part.member == me;
        if (matrix.owner == me) {
          const Tensor there = blocks.slice(0, part.begin, part.end);
          if (mine) {
            const Tensor piece = own_piece(matrix, part);
            copy({.y = back ? piece : there, .x = back ? there : piece}, ctx.compute);
          } else {
            messages.push_back(back ? send_to(part.member, there)
                                    : receive_from(part.member, there));
          }
        } else if (mine) {
          const Tensor piece = own_piece(matrix, part);
          messages.push_back(back ? receive_from(matrix.owner, piece)
                                  : send_to(matrix.owner, piece));
        }
      }
    }
    ctx.compute.wait(group_.exchange(
        std::move(messages),
        {-1, back ? Tag::Purpose::parameter : Tag::Purpose::gradient, Tag::Pass::update, 0},
        ctx.compute));
  };
  travel(whole, /*back=*/false);
  const Tensor result = own != nullptr ? orthogonalised(*own, whole, spare, ctx) : Tensor{};
  travel(result, /*back=*/true);
}

Tensor Muon::orthogonalised(const Matrix& matrix, const Tensor& blocks, const Tensor& spare,
                            StepContext& ctx) const {
  const int64_t rows = matrix.parameter->shape[0], columns = matrix.parameter->shape[1];
  const auto as_matrix = [&](const Tensor& t) { return t.reshape({rows, columns}); };
  const bool columns_cut = matrix.blocks.size() > 1 && matrix.parameter->cut_dim == 1;
  if (!columns_cut) {
    return newton_schulz(as_matrix(blocks), as_matrix(spare), ctx.scratch, ctx.compute)
        .reshape({rows * columns});
  }
  // Calls f(block, its place among the columns of `whole`).
  const auto for_each_block = [&](const Tensor& in_blocks, const Tensor& whole, const auto& f) {
    int64_t at = 0;
    for (const ParameterBlock& block : matrix.blocks) {
      f(in_blocks.slice(0, at, at + block.numel).reshape({rows, block.end - block.begin}),
        as_matrix(whole).slice(1, block.begin, block.end));
      at += block.numel;
    }
  };
  for_each_block(blocks, spare, [&](const Tensor& block, const Tensor& place) {
    copy({.y = place, .x = block}, ctx.compute);
  });
  const Tensor result =
      newton_schulz(as_matrix(spare), as_matrix(blocks), ctx.scratch, ctx.compute);
  const Tensor other = result.data == blocks.data ? spare : blocks;
  for_each_block(other, result.reshape({rows * columns}),
                 [&](const Tensor& block, const Tensor& place) {
                   copy({.y = block, .x = place}, ctx.compute);
                 });
  return other;
}

}  // namespace weft
