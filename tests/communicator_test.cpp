// Communicators between threads: exact results, mismatches named, failures that wake everybody.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "parallel/comm/threads.hpp"
#include "parallel/mesh.hpp"
#include "tests/collectives_check.hpp"
#include "tests/sequence_testing.hpp"

namespace weft {
namespace {

class Ranks : public testing::TestWithParam<int> {};

TEST_P(Ranks, CollectivesAreExact) {
  run_ranks(GetParam(), check_collectives);
}

TEST_P(Ranks, CollectivesAreExactDeliveredLate) {
  set_late_delivery(true);
  run_ranks(GetParam(), check_collectives);
  set_late_delivery(false);
}

INSTANTIATE_TEST_SUITE_P(Threads, Ranks, testing::Values(1, 2, 3, 4, 5, 8));

/// The error that ends a job of ranks.
Error error_of(int ranks, const std::function<void(World&)>& body) {
  try {
    run_ranks(ranks, body);
  } catch (const Error& error) {
    return error;
  }
  return Error(ExitCode::done, "no error");
}

TEST(Mismatch, DifferentOperationsAreNamed) {
  const Error error = error_of(2, [](World& world) {
    TestRank rank(world, sequence_mesh(2));
    Communicator& comm = rank.context.mesh.along(Axis::sequence);
    const Owned buffer = zeros(DType::f64, {4}), scratch = zeros(DType::f64, {4});
    Stream& stream = rank.context.compute;
    stream.wait(world.rank() == 0 ? comm.all_reduce(buffer, scratch, {}, stream)
                                  : comm.all_gather(buffer, Cuts::even(4, 2), {}, stream));
  });
  EXPECT_EQ(error.code(), ExitCode::mismatch);
  EXPECT_NE(std::string(error.what()).find("all_reduce of f64"), std::string::npos) << error.what();
  EXPECT_NE(std::string(error.what()).find("all_gather of f64"), std::string::npos) << error.what();
}

TEST(Mismatch, DifferentCountsAreNamed) {
  const Error error = error_of(3, [](World& world) {
    TestRank rank(world, sequence_mesh(3));
    Communicator& comm = rank.context.mesh.along(Axis::sequence);
    const Owned buffer = zeros(DType::f32, {6});
    const Cuts cuts = world.rank() == 2 ? Cuts::of_sizes({1, 2, 3}) : Cuts::even(6, 3);
    rank.context.compute.wait(comm.all_gather(buffer, cuts, {}, rank.context.compute));
  });
  EXPECT_EQ(error.code(), ExitCode::mismatch) << error.what();
}

TEST(Mismatch, DifferentMessageSizesAreNamed) {
  const Error error = error_of(2, [](World& world) {
    TestRank rank(world, sequence_mesh(2));
    Communicator& comm = rank.context.mesh.along(Axis::sequence);
    const Owned sent = zeros(DType::f32, {3}), received = zeros(DType::f32, {4});
    rank.context.compute.wait(
        comm.exchange({send_to(comm.next(), sent), receive_from(comm.prev(), received)}, {},
                      rank.context.compute));
  });
  EXPECT_EQ(error.code(), ExitCode::mismatch) << error.what();
}

TEST(Failure, OneRankWakesAllTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  const Error error = error_of(4, [](World& world) {
    TestRank rank(world, sequence_mesh(4));
    WEFT_REQUIRE(world.rank() != 2, ExitCode::data, "rank 2 fails");
    const Owned buffer = zeros(DType::f64, {4}), scratch = zeros(DType::f64, {1});
    rank.context.compute.wait(rank.context.mesh.along(Axis::sequence)
                                  .all_reduce(buffer, scratch, {}, rank.context.compute));
  });
  EXPECT_EQ(error.code(), ExitCode::data);
  EXPECT_STREQ(error.what(), "rank 2 fails");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(Failure, AnAbsentPeerIsAHang) {
  set_wait_deadline(0.2);
  const Error error = error_of(2, [](World& world) {
    TestRank rank(world, sequence_mesh(2));
    if (world.rank() == 1) return;
    const Owned buffer = zeros(DType::f64, {4}), scratch = zeros(DType::f64, {2});
    rank.context.compute.wait(rank.context.mesh.along(Axis::sequence)
                                  .all_reduce(buffer, scratch, {}, rank.context.compute));
  });
  set_wait_deadline(300);
  EXPECT_EQ(error.code(), ExitCode::hang) << error.what();
}

// ---- Mesh

TEST(Mesh, CoordinatesAndRanksInvertEachOther) {
  MeshShape shape{.size = {2, 3, 4, 2}};
  for (const auto& order :
       {kAllAxes, std::array<Axis, 4>{Axis::tensor, Axis::data, Axis::sequence, Axis::pipeline}}) {
    shape.order = order;
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      EXPECT_EQ(rank_of(shape, coordinate_of(shape, rank)), rank);
    }
  }
  // By default tensor is fastest, then sequence, pipeline, data.
  shape.order = kAllAxes;
  EXPECT_EQ(coordinate_of(shape, 1), (Coordinate{0, 0, 0, 1}));
  EXPECT_EQ(coordinate_of(shape, 2), (Coordinate{0, 0, 1, 0}));
}

TEST(Mesh, GroupsHoldWhoDiffersOnTheAxisAlone) {
  std::atomic<int> checked = 0;
  run_ranks(12, [&](World& world) {
    TestRank rank(world, {.size = {2, 1, 3, 2}});
    ProcessMesh& mesh = rank.context.mesh;
    EXPECT_EQ(mesh.along(Axis::sequence).size(), 3);
    EXPECT_EQ(mesh.along(Axis::sequence).rank(), world.rank() / 2 % 3);
    EXPECT_EQ(mesh.along(Axis::tensor).size(), 2);
    EXPECT_EQ(mesh.along(Axis::tensor).rank(), world.rank() % 2);
    EXPECT_EQ(mesh.everyone().size(), 12);
    ++checked;
  });
  EXPECT_EQ(checked, 12);
}

TEST(Mesh, HoldersAreDataAndSequenceAndWhatAParameterSays) {
  std::atomic<int> checked = 0;
  run_ranks(16, [&](World& world) {
    TestRank rank(world, {.size = {1, 2, 2, 4}});
    ProcessMesh& mesh = rank.context.mesh;
    const Holders pieces{}, pairs{.tensor = 2}, whole{.tensor = 4}, table{.both_ends = true};
    mesh.make_holders(world, {pieces, pairs, whole, table});
    EXPECT_EQ(mesh.holders(pieces).size(), 2);  // sequence
    EXPECT_EQ(mesh.holders(pieces).rank(), world.rank() / 4 % 2);
    EXPECT_EQ(mesh.holders(pairs).size(), 4);
    EXPECT_EQ(mesh.holders(whole).size(), 8);
    EXPECT_EQ(mesh.holders(whole).rank(), world.rank() % 8);
    EXPECT_EQ(mesh.holders(table).size(), 4);  // of both stages
    ++checked;
  });
  EXPECT_EQ(checked, 16);
}

TEST(Mesh, AProductThatIsNotTheJobIsRefused) {
  const Error error = error_of(3, [](World& world) { TestRank rank(world, sequence_mesh(2)); });
  EXPECT_EQ(error.code(), ExitCode::config);
}

}  // namespace
}  // namespace weft
