#!/usr/bin/env bash
# Installs what the build and the tests need from the distribution (Debian 12, Ubuntu 24.04), and for
# the preset "cuda", its argument, the headers of cuDNN's front end from the Python index into
# build/. Says what is missing before it installs; does nothing when nothing is.
set -euo pipefail
cd "$(dirname "$0")/.."

cudnn_frontend=1.18.0  # as in cmake/cuda.cmake

packages=(
  ca-certificates ccache cmake g++ libcli11-dev libfmt-dev libgtest-dev libhdf5-dev libopenblas-dev
  libopenmpi-dev libspdlog-dev libyaml-cpp-dev ninja-build nlohmann-json3-dev openmpi-bin pkg-config
)
if [ "${1:-}" = cuda ]; then packages+=(python3-pip); fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  echo "Installing from the distribution: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
fi

folder=build/cudnn-frontend-$cudnn_frontend
if [ "${1:-}" = cuda ] && [ ! -e "$folder/include/cudnn_frontend.h" ]; then
  echo "Fetching the headers of cuDNN's front end $cudnn_frontend"
  # Without them the build goes on, and has no cuDNN.
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" \
    "nvidia-cudnn-frontend==$cudnn_frontend" || echo "They could not be had; going on without" >&2
fi
