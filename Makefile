# Everything is made from here; `make help` lists it. The first target that needs it builds .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUN    := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q
.DEFAULT_GOAL := help
.PHONY: help install toolchain demo demo-control test test-contracts test-fast lint types generate check-generated bench bench-table slither clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[worker,chain,dev]'
	@touch $@

install: $(READY) ## the virtual environment, with exact versions

toolchain: contracts/node_modules/.ready ## forge, anvil and solc, from npm

contracts/node_modules/.ready: contracts/package-lock.json
	cd contracts && npm install --no-package-lock --no-audit --no-fund
	@touch $@

demo: $(READY) ## four peers learn together for about two minutes, on this machine
	$(BIN)/swarmgame run examples/01-quickstart/game.yaml --name demo --fresh

demo-control: $(READY) ## the same with rewards shuffled within the batch: nothing is learnt
	$(BIN)/swarmgame run examples/01-quickstart/game.yaml --name control --fresh --set game.rewards.use=control:ShuffledRewards

test: lint types ## every test that needs no cluster and no Node: unit, oracle, processes
	$(RUN) -m unit -n 2
	$(RUN) -m oracle -n 2
	$(RUN) -m processes
	@$(RUN) --collect-only -m 'not unit and not oracle and not processes and not contracts' >/dev/null; \
	  if [ $$? -ne 5 ]; then echo 'a test has no layer: mark its module unit, oracle, processes or contracts'; exit 1; fi
	@echo 'layers run: unit, oracle, processes. Not run: contracts (make test-contracts, needs Node), what needs a CUDA device'

test-contracts: $(READY) toolchain ## forge, anvil, and swarms on a chain of their own
	$(RUN) -m contracts

test-fast: $(READY) ## the unit layer, under three minutes
	$(RUN) -m unit -n 2

lint: $(READY) ## ruff, and the layers of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## mypy --strict
	$(BIN)/mypy

generate: $(READY) ## reference pages that are made from the code
	$(BIN)/python -m swarmgame_api.reference
	$(BIN)/python -m swarmgame.runtime.catalogue > docs/reference/metrics.md
	$(BIN)/python -m swarmgame.cli.reference
	$(BIN)/swarmgame env list --markdown > docs/reference/environments.md

bench: $(READY) ## every benchmark (about half an hour); JSON under benchmarks/results
	for script in generation step_vs_trl round_vs_genrl exchange_vs_genrl exchange_scaling; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(MAKE) bench-table

bench-table: $(READY) ## the README's table, from the JSON
	$(BIN)/python benchmarks/table.py

slither: $(READY) ## static analysis of the contract, in an environment of its own
	$(BIN)/python contracts/slither.py

clean: ## removes what was built here, but not runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
