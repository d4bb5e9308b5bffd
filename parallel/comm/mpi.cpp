#include "parallel/comm/mpi.hpp"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace weft {
namespace {

constexpr int64_t kLargestMessage = int64_t{1} << 30;  // MPI counts are ints

/// Waits for all requests without holding a core: ranks often outnumber cores. Spins politely for
/// the length of a short message, then sleeps a little between looks.
void wait_all(std::vector<MPI_Request>& requests) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t looks = 0;; ++looks) {
    int done = 0;
    WEFT_CALL(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                          MPI_STATUSES_IGNORE));
    if (done) return;
    if (looks < 50) {
      sched_yield();
    } else {
      usleep(looks < 500 ? 20 : 100);
    }
    if (looks % 1024 == 1023) {
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
      WEFT_REQUIRE(waited.count() < wait_deadline(), ExitCode::hang,
                   "no message from a peer within ", wait_deadline(), " s");
    }
  }
}

class MpiBackend final : public Backend {
 public:
  MpiBackend(int rank, int size, MPI_Comm comm) : Backend(rank, size), comm_(comm) {}

  ~MpiBackend() override {
    // After a failure peers may be gone, and MPI_Comm_free talks to them: finalize or abort will
    // do.
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  void exchange(std::span<const Message> messages) override {
    requests_.clear();
    for (const auto& [way, peer, buffer] : messages) {
      for (int64_t at = 0; at < buffer.nbytes(); at += kLargestMessage) {
        const int bytes = static_cast<int>(std::min(kLargestMessage, buffer.nbytes() - at));
        MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
        if (way == Message::Way::send) {
          WEFT_CALL(MPI_Isend(buffer.data + at, bytes, MPI_BYTE, peer, 0, comm_, &request));
          count_sent(bytes);
        } else {
          WEFT_CALL(MPI_Irecv(buffer.data + at, bytes, MPI_BYTE, peer, 0, comm_, &request));
        }
      }
    }
    wait_all(requests_);
  }

  /// Every rank sends its fingerprint to every other: slow, so only when asked for.
  void verify(const Fingerprint& mine) override {
    constexpr int64_t bytes = sizeof(Fingerprint);
    Fingerprint sent = mine;
    std::vector<Fingerprint> others(size());
    const auto as_tensor = [](Fingerprint& print) {
      const int64_t dims[] = {bytes};
      return Tensor::view(&print, DType::u8, Device::cpu, dims);
    };
    std::vector<Message> messages;
    for (int p = 0; p < size(); ++p) {
      if (p == rank()) continue;
      messages.push_back(send_to(p, as_tensor(sent)));
      messages.push_back(receive_from(p, as_tensor(others[p])));
    }
    exchange(messages);
    for (int p = 0; p < size(); ++p) {
      WEFT_REQUIRE(p == rank() || others[p] == mine, ExitCode::mismatch,
                   "collective mismatch: rank ", rank(), " enters ", mine.text(), "; rank ", p,
                   " enters ", others[p].text());
    }
  }

 private:
  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
};

class MpiWorld final : public World {
 public:
  MpiWorld() {
    WEFT_CALL(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
    WEFT_CALL(MPI_Comm_size(MPI_COMM_WORLD, &size_));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Backend> group(const std::vector<int>& members,
                                 const std::string& label) override {
    MPI_Group all, some;
    MPI_Comm comm;
    WEFT_CALL(MPI_Comm_group(MPI_COMM_WORLD, &all));
    WEFT_CALL(MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &some));
    WEFT_CALL(MPI_Comm_create_group(MPI_COMM_WORLD, some, 0, &comm));
    WEFT_CALL(MPI_Group_free(&some));
    WEFT_CALL(MPI_Group_free(&all));
    WEFT_CALL(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    return std::make_unique<MpiBackend>(place_in(members, label), static_cast<int>(members.size()),
                                        comm);
  }

 private:
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

MpiSession::MpiSession() {
  int granted = 0;
  WEFT_CALL(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &granted));
  WEFT_REQUIRE(granted == MPI_THREAD_MULTIPLE, ExitCode::internal,
               "this MPI does not grant MPI_THREAD_MULTIPLE");
  world_ = std::make_unique<MpiWorld>();
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

void MpiSession::abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  _exit(code);
}

bool launched_by_mpi() {
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    if (std::getenv(variable) != nullptr) return true;
  }
  return false;
}

namespace {

/// The first of the variables that is set, as a number; 0 when none is.
int first_set(std::initializer_list<const char*> variables) {
  for (const char* variable : variables) {
    if (const char* value = std::getenv(variable)) return std::atoi(value);
  }
  return 0;
}

}  // namespace

int launched_rank() {
  return first_set({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"});
}

int launched_local_rank() {
  return first_set({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"});
}

}  // namespace weft
