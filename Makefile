# All commands of the project; `make help` lists them. The first target that needs it builds .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NODE   := $(shell command -v node)
GO     := $(shell command -v go)
COMMA  := ,
CLUSTER := PYTHONPATH=hack/native-cluster $(BIN)/python -m native_cluster
E2E    ?= auto
# After five failures the cluster is broken, and the other tests would fail as well.
WHOLE  := --maxfail 5
# A layer of tests is all folders of its name.
layer   = $(wildcard */tests/$(1) hack/*/tests/$(1))
RUN    := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q --durations=15 --durations-min=5
.DEFAULT_GOAL := help
.PHONY: help install toolchain demo demo-control examples test test-fast test-attacks test-swarm test-contracts test-gpu lint types
.PHONY: generate check-generated bench bench-table slither clean
.PHONY: kind-up kind-load kind-down images images-push
.PHONY: cluster-prepare cluster-build cluster-tools cluster-tools-api cluster-tools-kind cluster-load cluster-up cluster-down
.PHONY: e2e e2e-api e2e-cluster

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[worker,chain,operator,smol,dev]'
	@touch $@

install: $(READY) ## the virtual environment, with exact versions

toolchain: contracts/node_modules/.ready ## forge, anvil and solc, from npm

contracts/node_modules/.ready: contracts/package-lock.json
	cd contracts && npm install --no-package-lock --no-audit --no-fund
	@touch $@

demo: $(READY) ## four peers learn together on this machine, for about two minutes
	$(BIN)/swarmgame run examples/01-quickstart/game.yaml --name demo --fresh

demo-control: $(READY) ## the same with shuffled rewards: the reward does not rise
	$(BIN)/swarmgame run examples/01-quickstart/game.yaml --name control --fresh --set game.rewards.use=control:ShuffledRewards

examples: $(READY) ## the examples of own games and trainers, with the check that each learned: about ten minutes
	for game in 05-own-game/game 05-own-game/roles 06-own-trainer/game 07-lora-ranks-join/game; do \
	  name=$$(sed -n 's/^  name: //p' examples/$$game.yaml) && \
	  $(BIN)/swarmgame run examples/$$game.yaml --fresh && $(BIN)/python examples/check.py runs/$$name || exit 1; done

test: lint types test-fast test-attacks test-swarm $(if $(NODE),test-contracts) ## every test that needs no cluster: unit, oracle, attacks, processes, and with Node contracts
	@[ -n '$(NODE)' ] || [ -z "$$CI" ] || { echo 'contracts: Node is missing, and a skipped layer is a failure here'; exit 1; }
	@echo 'layers run: unit, oracle, attacks, processes$(if $(NODE),$(COMMA) contracts). Not run: $(if $(NODE),,contracts (Node is missing); )gpu (make test-gpu, on a CUDA device); api, cluster (make e2e)'

test-fast: $(READY) ## unit and oracle, four minutes
	$(RUN) -n 2 $(call layer,unit) $(call layer,oracle)

test-swarm: $(READY) ## processes: real peers and sockets, 15 minutes
	$(RUN) -n 2 --dist worksteal $(call layer,processes)

test-attacks: $(READY) ## untrusted answers against the sandbox, one minute; ATTACKS=--all-scorers for every scorer
	$(RUN) -n 2 --dist worksteal $(call layer,attacks) $(ATTACKS)

test-contracts: $(READY) toolchain ## forge, anvil, and swarms with a local chain (Node), four minutes
	$(RUN) -n 2 --dist loadfile $(call layer,contracts)

test-gpu: $(READY) ## tests on a CUDA device, and every sampler on it
	$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch sees no CUDA device here")'
	$(RUN) $(call layer,gpu)
	$(RUN) worker/tests/oracle/inference/test_sampler_contract.py

lint: $(READY) ## ruff, the import rules, and plain words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python hack/plain_words.py

types: $(READY) ## mypy --strict
	$(BIN)/mypy

generate: $(READY) ## write the CRD and the reference pages from the code
	$(BIN)/python -m swarmgame_api.crd
	$(BIN)/python -m swarmgame_api.reference
	$(BIN)/python -m swarmgame.observability.metric_definitions > docs/reference/metrics.md
	$(BIN)/python -m swarmgame.observability.diagnostics.reference > docs/reference/warnings.md
	$(BIN)/python -m swarmgame.cli.reference > docs/reference/cli.md
	$(BIN)/swarmgame env list --markdown > docs/reference/environments.md
	$(BIN)/swarmgame components list --markdown > docs/reference/components.md
	$(BIN)/python -m swarmgame_operator.settings
	$(BIN)/python -m swarmgame_operator.metrics
	$(BIN)/python -m swarmgame_operator.condition_reference
	$(BIN)/python charts/generate.py

check-generated: generate ## fail when a generated file is not current, and show the difference
	git diff --exit-code -- crds/swarmgame.yaml docs/reference charts

bench: $(READY) ## every benchmark (about two hours); JSON in benchmarks/results
	for script in generation step_vs_trl trl_overhead ppo_step round_vs_genrl overlap rollout_archive sandbox time_to_first_round smollm exchange_vs_genrl exchange_scaling soak architectures attacks influence; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(MAKE) bench-table

bench-table: $(READY) ## write docs/benchmarks.md and the README's figures from the JSON
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/attack_table.py

slither: $(READY) ## static analysis of the contract, in its own environment
	$(BIN)/python contracts/slither.py

kind-up: ## make a kind cluster: export KUBECONFIG=$(make -s kind-up); KUBERNETES=1.34 chooses the version
	@hack/kind/up.sh

kind-load: ## build the project's images and load them into the kind cluster
	@hack/kind/load.sh

kind-down: ## remove it; Docker's images stay
	@hack/kind/down.sh

images: ## build the project's images with Docker
	@hack/images.sh build

images-push: ## build and push them: make images-push REGISTRY=registry.example.com/team; writes images.yaml for helm
	@hack/images.sh push $(REGISTRY)

cluster-tools-api: $(READY) ## build etcd, kube-apiserver, kube-controller-manager and kubectl with Go (six minutes, once)
	$(CLUSTER) tools api

cluster-tools-kind: $(READY) ## build kind with Go (once)
	$(CLUSTER) tools kind

cluster-tools: $(READY) ## build these, kind, and the tools of a node and of the chart's tests (twenty minutes, once)
	$(CLUSTER) tools

# On kind and other clusters the tests need no Go. It builds the API server of the layer api.
e2e: $(if $(GO)$(filter native,$(E2E)),e2e-api) e2e-cluster ## tests on an API server (with Go) and on a cluster; E2E=kind|native|current chooses it
	@[ -n '$(GO)' ] || [ -z "$$CI" ] || { echo 'api: Go is missing, and a skipped layer is a failure here'; exit 1; }
	@[ -n '$(GO)' ] || echo 'layers run: cluster. Not run: api (Go is missing, which builds the API server)'

e2e-api: cluster-tools-api ## schemas, server-side apply, RBAC and charts on a real API server, five minutes
	$(CLUSTER) tools charts
	$(RUN) -n 2 --dist loadfile $(call layer,api) e2e/api

ifeq ($(E2E),auto)
e2e-cluster: ## games on a cluster, 20 minutes: kind where Docker can run it, else the native cluster
	cluster=$$(hack/e2e-cluster.sh) && $(MAKE) e2e-cluster E2E=$$cluster
else ifeq ($(E2E),native)
e2e-cluster: cluster-build
	$(CLUSTER) load
	trap '$(CLUSTER) down' EXIT; $(CLUSTER) up && $(RUN) e2e --ignore=e2e/api --cluster=native $(WHOLE)
else
e2e-cluster: $(READY)
	$(RUN) e2e --ignore=e2e/api --cluster=$(E2E) $(WHOLE)
endif

cluster-build: $(READY) contracts/node_modules/.ready cluster-prepare ## build the native cluster's tools and images, into the cache
	$(CLUSTER) tools api node charts & tools=$$!; $(CLUSTER) images && wait $$tools # images wait for the network, tools for the processor

cluster-prepare: ## install Debian's packages for the native cluster, as root
	hack/native-cluster/prepare.sh

cluster-load: $(READY) contracts/node_modules/.ready ## build the project's images and load them into the native cluster
	$(CLUSTER) load

cluster-up: $(READY) ## start the native cluster on this host, as root: eval "$(make -s cluster-up)"
	$(CLUSTER) up

cluster-down: $(READY) ## stop it; only the images stay
	$(CLUSTER) down

clean: ## remove what was built here, but not runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
