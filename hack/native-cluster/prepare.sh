#!/usr/bin/env bash
# What the native cluster takes from Debian, installed where it is missing: Docker and debootstrap for images, a C library for runc, nftables.
# Nothing is started. As root; on other systems install the same by their own means.
set -euo pipefail
packages=(docker.io debootstrap libseccomp-dev pkg-config gcc libc6-dev iproute2 nftables)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then # dockerd is started by hand when it is needed
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
