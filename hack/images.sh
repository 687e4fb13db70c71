#!/usr/bin/env bash
# Build the project's images with BuildKit, and push them to a registry. One code path for kind, the native cluster and
# registries.
#
#   hack/images.sh list                      the images' names, one a line
#   hack/images.sh build [NAME…]             operator, worker, chain; default: all
#   hack/images.sh push REGISTRY [NAME…]     build, push, and write images.yaml: values for helm, by digest
#
# Settings of this host reach a build and no image: PIP_CONFIG_FILE and NPM_CONFIG_USERCONFIG (package indices),
# SSL_CERT_FILE (certificates), HTTP_PROXY, HTTPS_PROXY, NO_PROXY. BASE_IMAGE, BUILD_IMAGE and NODE_IMAGE replace the base
# images; ANVIL names a folder with anvil's program in bin/, instead of npm; BUILD_NETWORK is the network of build steps;
# PLATFORMS (linux/amd64,linux/arm64) pushes an image for several platforms.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
docker=${DOCKER:-docker}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
all=(operator worker chain)
export DOCKER_BUILDKIT=1
export BUILDX_NO_DEFAULT_ATTESTATIONS=1 # an attestation is one more platform in an image, which kind cannot load

fail() {
  echo "error: $1" >&2
  exit 1
}

name_of() { # the chart's default name of an image
  echo "ghcr.io/swarmgame/$1:$version"
}

require_docker() {
  command -v "$docker" > /dev/null || fail "there is no docker command: https://docs.docker.com/engine/install/"
  "$docker" info > /dev/null 2>&1 || fail "no Docker daemon answers: start Docker, or set DOCKER_HOST"
  local major
  major=$("$docker" --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')
  # Since 23 BuildKit is in the plugin buildx; before, in docker itself.
  if [ "${major:-23}" -ge 23 ] && ! "$docker" buildx version > /dev/null 2>&1; then
    fail "docker has no BuildKit, which the Dockerfiles need: install the plugin docker-buildx"
  fi
}

settings() { # one argument a line: build arguments and secrets that have a value on this host
  local name value file
  for name in BASE_IMAGE BUILD_IMAGE NODE_IMAGE HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    value=${!name:-}
    [ -z "$value" ] || printf '%s\n' --build-arg "$name=$value"
  done
  local home=${HOME:-/}
  for file in "${PIP_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-$home/.config}/pip/pip.conf" "$home/.pip/pip.conf" \
    /etc/pip.conf "$root/docker/pip.conf"; do
    [ ! -f "$file" ] || { printf '%s\n' --secret "id=pip,src=$file" && break; }
  done
  for file in "${NPM_CONFIG_USERCONFIG:-}" "$home/.npmrc"; do
    [ ! -f "$file" ] || { printf '%s\n' --secret "id=npm,src=$file" && break; }
  done
  for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    [ ! -f "$file" ] || { printf '%s\n' --secret "id=ca,src=$file" && break; }
  done
  [ -z "${BUILD_NETWORK:-}" ] || printf '%s\n' "--network=$BUILD_NETWORK"
}

run_build() { # NAME COMMAND…: run docker's build command for an image
  local name=$1 context=$root
  shift
  local line arguments=(--file "$root/docker/$name.Dockerfile")
  while IFS= read -r line; do arguments+=("$line"); done < <(settings)
  if [ "$name" = chain ] && [ -n "${ANVIL:-}" ]; then
    [ -f "$ANVIL/bin/anvil" ] || fail "$ANVIL/bin/anvil does not exist: run \`make toolchain\` (it needs Node)"
    context=$ANVIL
    arguments+=(--build-arg ANVIL=folder)
  fi
  # Docker's own output goes to stderr: a caller may read this script's stdout.
  "$docker" "$@" "${arguments[@]}" "$context" >&2
}

build() {
  local name
  for name in "$@"; do
    echo "building $(name_of "$name")" >&2
    run_build "$name" build --tag "$(name_of "$name")"
  done
}

push() { # REGISTRY NAME…
  local registry=${1%/} name digest target file metadata operator='' games=''
  shift
  file=$root/images.yaml
  metadata=$(mktemp)
  # shellcheck disable=SC2064 # the path of now
  trap "rm -f '$metadata'" EXIT
  for name in "$@"; do
    target=$registry/$name:$version
    echo "building and pushing $target" >&2
    if [ -n "${PLATFORMS:-}" ]; then
      run_build "$name" buildx build --platform "$PLATFORMS" --push --metadata-file "$metadata" --tag "$target"
      digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$metadata")
    else
      run_build "$name" build --tag "$target"
      "$docker" push "$target" >&2
      digest=$("$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$target" |
        sed -n "s|^$registry/$name@||p")
    fi
    [ -n "$digest" ] || fail "$target was pushed, but Docker names no digest of it"
    case $name in
      operator) operator="image: {repository: $registry/$name, digest: \"$digest\"}" ;;
      *) games="$games"$'\n'"  ${name}Image: {repository: $registry/$name, digest: \"$digest\"}" ;;
    esac
  done
  {
    echo "# Images by digest, written by hack/images.sh push: helm upgrade --install … --values images.yaml"
    [ -z "$operator" ] || echo "$operator"
    [ -z "$games" ] || echo "games:$games"
  } > "$file.part"
  mv "$file.part" "$file"
  echo "$file"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  list) for name in "${all[@]}"; do name_of "$name"; done ;;
  build)
    require_docker
    [ $# -gt 0 ] || set -- "${all[@]}"
    build "$@"
    ;;
  push)
    [ $# -gt 0 ] || fail "push needs a registry: make images-push REGISTRY=registry.example.com/team"
    require_docker
    registry=$1
    shift
    [ $# -gt 0 ] || set -- "${all[@]}"
    push "$registry" "$@"
    ;;
  *) fail "usage: hack/images.sh list | build [NAME…] | push REGISTRY [NAME…]" ;;
esac
