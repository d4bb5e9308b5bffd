// The recording communicator: any rank of any world, in one process, moving nothing. With the meta
// device it lets a step run on shapes alone; the shell books what would have been sent.
#pragma once

#include <memory>

#include "parallel/comm/backend.hpp"

namespace weft {

std::unique_ptr<World> make_recording_world(int rank, int size);

}  // namespace weft
