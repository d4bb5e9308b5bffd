#include "tests/collectives_check.hpp"

#include "parallel/mesh.hpp"
#include "tests/placed.hpp"

namespace weft {
namespace {

/// Pieces of many shapes for P ranks.
std::vector<Cuts> all_cuts(int ranks) {
  std::vector<int64_t> uneven, holes, single(ranks, 0);
  for (int p = 0; p < ranks; ++p) {
    uneven.push_back(1 + 7 * p % 5);
    holes.push_back(p % 2 == 0 ? 0 : 3);
  }
  single[ranks - 1] = 1;
  return {Cuts::even(64 * ranks, ranks), Cuts::even(ranks + 1, ranks), Cuts::of_sizes(uneven),
          Cuts::of_sizes(holes),         Cuts::of_sizes(single),       Cuts::even(0, ranks)};
}

/// A small integer that depends on who writes it and where.
double value_of(int rank, int64_t i) {
  return static_cast<double>((rank + 1) * 1000 + i % 997);
}

void expect(const Tensor& got, const std::vector<double>& expected, const char* what) {
  const std::vector<double> v = values(got);
  for (size_t i = 0; i < expected.size(); ++i) {
    WEFT_CHECK(v[i] == expected[i], what, ": element ", i, " is ", v[i], ", not ", expected[i]);
  }
}

struct Check {
  Communicator& comm;
  Stream& stream;
  DType dtype;
  Tag tag = {};

  void all_gather(const Cuts& cuts) const {
    Owned host(dtype, {cuts.total()});
    std::vector<double> expected;
    for (int p = 0; p < comm.size(); ++p) {
      for (int64_t i = cuts.begin(p); i < cuts.end(p); ++i) expected.push_back(value_of(p, i));
    }
    assign(host.view().slice(0, cuts.begin(comm.rank()), cuts.end(comm.rank())),
           {expected.begin() + cuts.begin(comm.rank()), expected.begin() + cuts.end(comm.rank())});
    const Placed buffer(std::move(host), stream);
    stream.wait(comm.all_gather(buffer, cuts, tag, stream));
    expect(buffer.on_host(stream), expected, "all_gather");
  }

  /// Every rank's contribution, and their sum: integers, so exact in any order.
  std::vector<double> contribution(int64_t n, int rank) const {
    std::vector<double> out(n);
    for (int64_t i = 0; i < n; ++i) out[i] = value_of(rank, i);
    return out;
  }
  std::vector<double> sum(int64_t n) const {
    std::vector<double> out(n, 0.0);
    for (int p = 0; p < comm.size(); ++p) {
      for (int64_t i = 0; i < n; ++i) out[i] += value_of(p, i);
    }
    return out;
  }

  void reduce_scatter(const Cuts& cuts) const {
    const int64_t n = cuts.total(), begin = cuts.begin(comm.rank()), end = cuts.end(comm.rank());
    const Placed buffer(from_values(dtype, {n}, contribution(n, comm.rank())), stream);
    const Placed scratch(Owned(dtype, {end - begin}), stream);
    stream.wait(comm.reduce_scatter(buffer, cuts, scratch, tag, stream));
    const std::vector<double> all = sum(n);
    expect(buffer.on_host(stream).slice(0, begin, end), {all.begin() + begin, all.begin() + end},
           "reduce_scatter");
  }

  void all_reduce(int64_t n) const {
    const Placed buffer(from_values(dtype, {n}, contribution(n, comm.rank())), stream);
    const Placed scratch(Owned(dtype, {n / comm.size() + 1}), stream);
    stream.wait(comm.all_reduce(buffer, scratch, tag, stream));
    expect(buffer.on_host(stream), sum(n), "all_reduce");
  }

  void broadcast(int64_t n, int root) const {
    Owned host(dtype, {n});
    if (comm.rank() == root) assign(host, contribution(n, root));
    const Placed buffer(std::move(host), stream);
    stream.wait(comm.broadcast(buffer, root, tag, stream));
    expect(buffer.on_host(stream), contribution(n, root), "broadcast");
  }

  /// Two messages to each neighbour, of sizes that only the two know: they match in order.
  void exchange() const {
    if (comm.size() == 1) return;
    const auto length = [](int from, int which) { return int64_t{3} * from + 5 * which; };
    std::vector<Placed> kept;
    std::vector<Message> messages;
    for (const int which : {0, 1}) {
      kept.emplace_back(from_values(dtype, {length(comm.rank(), which)},
                                    contribution(length(comm.rank(), which), comm.rank())),
                        stream);
      messages.push_back(send_to(comm.next(), kept.back()));
      kept.emplace_back(Owned(dtype, {length(comm.prev(), which)}), stream);
      messages.push_back(receive_from(comm.prev(), kept.back()));
    }
    stream.wait(comm.exchange(messages, tag, stream));
    for (const int which : {0, 1}) {
      expect(kept[2 * which + 1].on_host(stream),
             contribution(length(comm.prev(), which), comm.prev()), "exchange");
    }
  }
};

}  // namespace

void check_collectives(World& world) {
  Ledger predicted, counted;
  MeshShape shape;
  shape.along(Axis::sequence) = world.size();
  ProcessMesh mesh(world, shape, {&predicted, &counted}, /*strict=*/true);
  const auto stream = world.make_compute_stream();
  Communicator& comm = mesh.along(Axis::sequence);
  for (const DType dtype : {DType::f32, DType::f64, DType::i32}) {
    const Check check{comm, *stream, dtype};
    for (const Cuts& cuts : all_cuts(world.size())) {
      check.all_gather(cuts);
      if (dtype != DType::i32) check.reduce_scatter(cuts);
    }
    for (const int64_t n : {0, 1, 2, 3, 17, 1000}) {
      if (dtype != DType::i32) check.all_reduce(n);
      check.broadcast(n, static_cast<int>(n) % world.size());
    }
    check.exchange();
  }
  stream->wait(comm.barrier(*stream));
  WEFT_CHECK(predicted.entries() == counted.entries() || world.size() == 1,
             "booked and counted bytes differ");
}

}  // namespace weft
