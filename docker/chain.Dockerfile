# anvil, for coordination mode Dev: a chain for one game. hack/images.sh builds it, on amd64 and arm64.
# The program comes from npm, or with --build-arg ANVIL=folder from the build's context, a package that `make toolchain`
# has installed: contracts/node_modules/@foundry-rs/anvil-linux-amd64. BuildKit runs only the stage that is used.
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
ARG NODE_IMAGE=docker.io/library/node:22-bookworm-slim
ARG ANVIL=npm

FROM ${NODE_IMAGE} AS anvil-npm
# The version in contracts/package.json.
ARG ANVIL_VERSION=1.7.1
WORKDIR /anvil
# Without scripts: they would only copy the program of the platform, which npm chooses by itself.
RUN --mount=type=secret,id=npm,target=/root/.npmrc --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt npm install --no-save --no-audit --no-fund --ignore-scripts @foundry-rs/anvil@${ANVIL_VERSION} \
    && mkdir bin && cp node_modules/@foundry-rs/anvil-linux-*/bin/anvil bin/anvil

FROM scratch AS anvil-folder
COPY bin/anvil /anvil/bin/anvil

FROM anvil-${ANVIL} AS anvil

FROM ${BASE_IMAGE}
COPY --from=anvil /anvil/bin/anvil /usr/local/bin/anvil
RUN printf 'swarmgame:x:65532:\n' >> /etc/group && printf 'swarmgame:x:65532:65532::/tmp:/usr/sbin/nologin\n' >> /etc/passwd
ENV HOME=/tmp
USER 65532:65532
EXPOSE 8545
ENTRYPOINT ["/usr/local/bin/anvil"]
CMD ["--host", "0.0.0.0", "--port", "8545", "--chain-id", "31337"]
