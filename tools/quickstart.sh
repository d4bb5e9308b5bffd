#!/usr/bin/env bash
# From a fresh machine to a model that learns: installs what is missing, builds, makes a token file of
# the C and C++ headers under /usr/include, and trains on it with four MPI ranks along the sequence
# axis. Leaves everything in runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/build.sh cpu weft
weft=build/cpu/weft
run=runs/quickstart

echo
echo "== 1. real text: C and C++ headers"
mkdir -p "$run"
"$weft" data prepare --input /usr/include --extensions h,hpp,hh,hxx,inl --max-bytes 4000000 \
  --seed 1 --output "$run/tokens.h5" --overwrite

echo
echo "== 2. training on four ranks, 2048 tokens a sequence, each rank holding 512 of them"
launch=(mpirun -q -n 4 --oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || launch+=(--allow-run-as-root)
"${launch[@]}" "$weft" train configs/quickstart.yaml --output "$run"

echo
tail -n 10 "$run/metrics.jsonl" | sed -E 's/.*"loss":([0-9.e+-]+).*/\1/' | awk '
  { sum += $1 } END { printf "mean loss of the last %d steps: %.3f nats per byte\n", NR, sum / NR }'
