#!/usr/bin/env bash
# Installs what is missing and builds: tools/build.sh [preset] [target...]. The program ends up at
# build/<preset>/weft. The preset is cpu unless named.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-cpu}
shift || true
mkdir -p build
tools/install_dependencies.sh "$preset"
# Clones in other folders share one compiler cache.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=true
cmake --preset "$preset" >build/configure.log 2>&1 || { cat build/configure.log >&2; exit 1; }
targets=()
[ $# -eq 0 ] || targets=(--target "$@")
cmake --build --preset "$preset" "${targets[@]}"
