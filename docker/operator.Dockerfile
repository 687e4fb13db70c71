# The operator and the chain's gateway: no torch, no compiler, no process that runs as root.
# hack/images.sh builds it, on amd64 and arm64, with this host's package index and certificates as secrets, which no image
# contains. A BASE_IMAGE with tini needs no Debian mirror.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS requirements
WORKDIR /project
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python3 requirements.py operator,chain > /requirements.txt

FROM ${BASE_IMAGE}
ENV PATH=/opt/swarmgame/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN command -v tini || (apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/swarmgame && printf 'swarmgame:x:65532:\n' >> /etc/group && printf 'swarmgame:x:65532:65532::/tmp:/usr/sbin/nologin\n' >> /etc/passwd
COPY --from=requirements /requirements.txt /opt/swarmgame/
COPY constraints.txt /opt/swarmgame/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-cache-dir --quiet --constraint /opt/swarmgame/constraints.txt --requirement /opt/swarmgame/requirements.txt hatchling
COPY pyproject.toml README.md /project/
COPY contracts/artifacts/SwarmCoordinator.json /project/contracts/artifacts/
COPY crds/swarmgame_common /project/crds/swarmgame_common
COPY crds/swarmgame_api /project/crds/swarmgame_api
COPY contracts/swarmgame_chain /project/contracts/swarmgame_chain
COPY worker/swarmgame /project/worker/swarmgame
COPY operator/swarmgame_operator /project/operator/swarmgame_operator
RUN pip install --no-cache-dir --quiet --no-index --no-deps --no-build-isolation /project
USER 65532:65532
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/swarmgame/bin/swarmgame-operator"]
