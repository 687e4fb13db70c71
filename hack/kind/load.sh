#!/usr/bin/env bash
# Build the project's images and load those that the cluster's nodes do not have.
#
# `kind load docker-image` fails with Docker's containerd image store, the default since Docker 29, when the image's base
# names platforms that are not here (kubernetes-sigs/kind#3795). The documented way is an archive of one platform.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exists || fail "there is no kind cluster $name: make kind-up"
archive=
trap 'rm -f "$archive"' EXIT

save() { # IMAGE: write the archive
  archive=$(mktemp "${TMPDIR:-/tmp}/swarmgame-image.XXXXXX")
  local platform
  platform=$(docker version --format '{{.Server.Os}}/{{.Server.Arch}}')
  # `docker save --platform` needs Docker 28 (API 1.48); an older one stores one platform of an image only.
  if docker save --help | grep -- --platform > /dev/null; then
    docker save --platform "$platform" --output "$archive" "$1" >&2
  else
    docker save --output "$archive" "$1" >&2
  fi
}

record_of() { # IMAGE: the file in a node with the id of the image that was loaded
  echo "/var/lib/swarmgame/$(basename "${1%:*}").id"
}

lacks() { # NODE IMAGE ID
  [ "$(docker exec "$1" cat "$(record_of "$2")" 2> /dev/null)" != "$3" ] ||
    ! docker exec "$1" crictl inspecti "$2" > /dev/null 2>&1
}

"$root/hack/images.sh" build
nodes=$(kind get nodes --name "$name")
for image in $("$root/hack/images.sh" list); do # the names are the chart's defaults
  id=$(docker image inspect --format '{{.Id}}' "$image")
  missing=
  for node in $nodes; do ! lacks "$node" "$image" "$id" || missing="$missing,$node"; done
  if [ -z "$missing" ]; then
    echo "$image is present" >&2
    continue
  fi
  echo "loading $image" >&2
  save "$image"
  kind load image-archive --name "$name" --nodes "${missing#,}" "$archive" >&2
  rm -f "$archive"
  for node in ${missing//,/ }; do
    record=$(record_of "$image")
    docker exec "$node" mkdir -p "$(dirname "$record")" >&2
    printf '%s' "$id" | docker exec --interactive "$node" cp /dev/stdin "$record" >&2
  done
done
