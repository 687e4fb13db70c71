# anvil, for coordination mode Dev: a chain for one game.
# The program comes from npm (make toolchain); the build's context is the package's folder:
# docker build -f docker/chain.Dockerfile -t ghcr.io/swarmgame/chain contracts/node_modules/@foundry-rs/anvil-linux-amd64
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
FROM ${BASE_IMAGE}
COPY bin/anvil /usr/local/bin/anvil
RUN printf 'swarmgame:x:65532:\n' >> /etc/group && printf 'swarmgame:x:65532:65532::/tmp:/usr/sbin/nologin\n' >> /etc/passwd
ENV HOME=/tmp
USER 65532:65532
EXPOSE 8545
ENTRYPOINT ["/usr/local/bin/anvil"]
CMD ["--host", "0.0.0.0", "--port", "8545", "--chain-id", "31337"]
