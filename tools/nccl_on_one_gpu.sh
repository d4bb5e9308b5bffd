#!/usr/bin/env bash
# Runs a program as several NCCL ranks that share one GPU, for tests:
#   tools/nccl_on_one_gpu.sh RANKS PROGRAM [ARGUMENTS...]
# NCCL refuses two ranks of one host on one GPU. Here every rank says that it is a host of its own
# (NCCL_HOSTID), and they talk over sockets of the loopback: the calls, their order and their sums are
# NCCL's, the speed says nothing.
set -euo pipefail

ranks=${1:?usage: tools/nccl_on_one_gpu.sh RANKS PROGRAM [ARGUMENTS...]}
shift
export NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
exec mpirun --allow-run-as-root -n "$ranks" --oversubscribe --bind-to none \
  -x NCCL_NET -x NCCL_SOCKET_IFNAME -x NCCL_IB_DISABLE -x LD_LIBRARY_PATH \
  bash -c 'NCCL_HOSTID=rank-$OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_LOCAL_RANK=0 exec "$@"' - "$@"
