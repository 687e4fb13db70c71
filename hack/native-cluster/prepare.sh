#!/usr/bin/env bash
# Install the Debian packages of the native cluster: Docker and debootstrap for images, a C library for runc, nftables,
# iptables and ipset.
# Run it as root. No daemon is started. On other systems install the same packages yourself.
set -euo pipefail
packages=(docker.io debootstrap libseccomp-dev pkg-config gcc libc6-dev iproute2 nftables iptables ipset)
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null) || true
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then # keeps apt from starting dockerd
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
