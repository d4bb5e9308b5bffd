#!/usr/bin/env bash
# What docs/measurements says of several GPUs of one host, measured again on all that are there:
#   tools/measure_gpus.sh [--gpus N] [--seconds S] [--only NAME,...] [--output DIR] [BUILD_FOLDER]
# Parts: collectives (exact integers, then bandwidths and scans), parity (every strategy and scan in f32,
# then meshes of several axes), attention (ring against the others, 131072 tokens), training (weak and
# strong scaling of the transformer, the linear model and the hybrid). Each command has S seconds (180)
# and leaves its output in DIR (BUILD_FOLDER/measured); one that fails or does not end is named, and the
# rest goes on. The last line says how many did what they should.
set -euo pipefail
cd "$(dirname "$0")/.."

gpus='' seconds=180 only=collectives,parity,attention,training folder=build/cuda output=''
while [ $# -gt 0 ]; do
  case $1 in
    --gpus) gpus=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    -*) echo "tools/measure_gpus.sh: unexpected '$1'" >&2; exit 2 ;;
    *) folder=$1; shift ;;
  esac
done
gpus=${gpus:-$(nvidia-smi --list-gpus | wc -l)}
output=${output:-$folder/measured}
weft=$folder/weft
mkdir -p "$output"
export NCCL_NVLS_ENABLE=0

counts=()  # of ranks
for p in 2 4 8 16; do [ "$p" -le "$gpus" ] && counts+=("$p"); done
if [ ${#counts[@]} -eq 0 ]; then
  echo "tools/measure_gpus.sh: needs 2 GPUs, found $gpus" >&2
  exit 2
fi
ranks=$(IFS=,; echo "${counts[*]}") most=${counts[-1]}

passed=0 failed=0
measure() {  # name, command
  local log=$output/$1.txt status=0 start=$SECONDS
  shift
  { echo "$*"; timeout --kill-after=10 "$seconds" "$@"; } >"$log" 2>&1 || status=$?
  case $status in
    0) passed=$((passed + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
  case $status in
    0) printf 'passed' ;;
    124 | 137) printf 'did not end' ;;
    *) printf 'failed with %d' "$status" ;;
  esac
  echo " in $((SECONDS - start)) s: ${log##*/}: $(tail -n 1 "$log" | cut -c 1-150)"
}
wanted() { [[ ,$only, == *,$1,* ]]; }
mpi=(mpirun --allow-run-as-root --oversubscribe --bind-to none -n)

if wanted collectives; then
  for p in "${counts[@]}"; do
    measure "collectives-exact-$p" "${mpi[@]}" "$p" "$folder/tests/collectives_mpi" nccl
    measure "collectives-$p" "${mpi[@]}" "$p" "$weft" bench collectives --comm nccl --device cuda \
      --json "$output/collectives-$p.json"
  done
fi

if wanted parity; then
  parity() {  # name, mesh, arguments: a strategy and a scan a layer
    local name=$1 mesh=$2 p=1 axis
    shift 2
    for axis in ${mesh//,/ }; do p=$((p * ${axis#*=})); done
    [ "$p" -le "$gpus" ] || return 0
    measure "parity-$name" "${mpi[@]}" "$p" "$weft" parity configs/parity.yaml --mesh "$mesh" \
      --device cuda --comm nccl --dtype f32 --steps 1 --set 'model.layer_pattern=*L*L*L*L*L' \
      --set model.num_hidden_layers=10 --set model.linear.family=simple_gla \
      --set 'sequence.attention=[ring, lightseq, allgather, ulysses, rsa]' \
      --set 'sequence.state=[lasp, lasp2, zeco, doubling, two_level]' "$@"
  }
  for p in "${counts[@]}"; do parity "sequence-$p" "sequence=$p"; done
  parity data-tensor data=2,tensor=2
  parity sequence-tensor sequence=2,tensor=2
  parity pipeline-sequence pipeline=2,sequence=2 --set train.micro_batch_size=1
  parity three-axes data=2,sequence=2,tensor=2
  parity pipeline-sequence-tensor pipeline=2,sequence=2,tensor=2 --set train.micro_batch_size=1
fi

if wanted attention; then
  measure attention "$weft" bench sequence configs/llama-1b.yaml --tables measured --device cuda \
    --comm nccl --ranks "$ranks" --strategies ring,lightseq,allgather,ulysses \
    --set train.precision=bf16 --json "$output/attention.json"
fi

if wanted training; then
  scale() {  # name, config, strategies, arguments
    local name=$1 config=$2 strategies=$3
    shift 3
    measure "training-$name" "$weft" scale "configs/$config.yaml" --ranks "1,$most" --no-error \
      --strategies "$strategies" --set train.comm=nccl --set train.precision=bf16 \
      --set data.documents=false --json "$output/training-$name.json" "$@"
  }
  scale linear linear-1b zeco --seq "32k,$((32 * most))k"
  scale hybrid hybrid4-1b lightseq --seq "32k,$((32 * most))k"
  scale transformer llama-1b ring,lightseq --seq "32k,$((16 * most))k"
fi

echo "$passed passed, $failed failed; output in $output"
[ "$failed" -eq 0 ]
