#!/usr/bin/env bash
# Installs what the build and the tests need from the distribution (Debian 12, Ubuntu 24.04). Says
# what is missing before it installs; does nothing when nothing is.
set -euo pipefail

packages=(
  ca-certificates ccache cmake g++ libcli11-dev libfmt-dev libgtest-dev libhdf5-dev libopenblas-dev
  libopenmpi-dev libspdlog-dev libyaml-cpp-dev ninja-build nlohmann-json3-dev openmpi-bin pkg-config
)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "Installing from the distribution: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
  "${missing[@]}" >/dev/null
