# Targets for people and for CI. `make` alone lists them.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
UV := $(BIN)/uv
CONSTRAINTS := --build-constraints requirements/build-constraints.txt
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help up test test-fast faults lint lock starter quality stream bench bench-quick gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: .venv/installed ## start Redis, the worker and the backend, and show a first prediction
	@exec $(BIN)/python -m toxicity up

test: lint .venv-label-studio/installed ## everything that CI runs: lint, types, all tests
	$(BIN)/python -m pytest

test-fast: .venv/installed-dev ## only the tests that need neither TensorFlow nor another process
	$(BIN)/python -m pytest -m "not tensorflow and not processes"

faults: .venv/installed-dev ## only the tests that make something fail for real, and a table of what was lost (nothing)
	$(BIN)/python -m pytest -m faults

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/uv-installed ## renew requirements.txt and the other pinned lists
	$(COMPILE) --overrides requirements/overrides.txt --upgrade requirements.in -o requirements.txt
	$(COMPILE) --overrides requirements/overrides.txt -c requirements.txt requirements/dev.in -o requirements/dev.txt
	$(COMPILE) -c requirements.txt --upgrade requirements/gpu.in -o requirements/gpu.txt
	$(COMPILE) --upgrade requirements/label-studio.in -o requirements/label-studio.txt

starter: .venv/installed ## make the starter weights: make starter DATA=train.csv [VALIDATE=validation.csv]
	@test -n "$(DATA)" || { echo "Say which Jigsaw-format CSV to learn from: make starter DATA=train.csv"; exit 2; }
	$(BIN)/python -m toxicity starter $(DATA) $(if $(VALIDATE),--validate $(VALIDATE))

quality: .venv/installed-dev ## how well it learns: make quality DATA=train.csv VALIDATE=validation.csv [OPTIONS="--variants ''"]
	@test -n "$(DATA)" -a -n "$(VALIDATE)" || { echo "Say which Jigsaw-format CSVs: make quality DATA=train.csv VALIDATE=validation.csv"; exit 2; }
	$(BIN)/python -m benchmarks.quality $(DATA) $(VALIDATE) $(OPTIONS)

stream: .venv/installed-dev ## how well it learns from annotations: make stream DATA=train.csv VALIDATE=validation.csv [OPTIONS="--batch 300"]
	@test -n "$(DATA)" -a -n "$(VALIDATE)" || { echo "Say which Jigsaw-format CSVs: make stream DATA=train.csv VALIDATE=validation.csv"; exit 2; }
	$(BIN)/python -m benchmarks.stream $(DATA) $(VALIDATE) $(OPTIONS)

bench: .venv/installed-dev .venv-peer/installed ## how fast it is beside a peer: make bench DATA=train.csv VALIDATE=validation.csv PEERS=folder
	@test -n "$(DATA)" -a -n "$(VALIDATE)" -a -n "$(PEERS)" || { echo "Say which Jigsaw-format CSVs, and the folder with hf_backend.py and hf_train.py: make bench DATA=train.csv VALIDATE=validation.csv PEERS=folder"; exit 2; }
	$(BIN)/python -m benchmarks.bench $(DATA) $(VALIDATE) --peers $(PEERS) --peer-python .venv-peer/bin/python $(OPTIONS)

bench-quick: ## the same with fewer comments and rounds, in a few minutes
	@$(MAKE) bench OPTIONS=--quick

gpu: .venv/installed ## put TensorFlow's GPU build (2.5 GB) in the place of the CPU build
	$(UV) pip uninstall --quiet --python $(BIN)/python tensorflow-cpu
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/gpu.txt
	$(BIN)/python -c "import tensorflow as tf; print('GPUs:', [gpu.name for gpu in tf.config.list_physical_devices('GPU')] or 'none seen')"

clean: ## remove the environments (not the data)
	rm -rf .venv .venv-label-studio .venv-peer

.venv/uv-installed:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: TensorFlow 2.21 has wheels for no other. Install one, or say PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
	@touch $@

# `pip install --no-deps` installs a list as it is; `pip sync` would also remove what the other lists brought.
.venv/installed: requirements.txt requirements/uv.txt | .venv/uv-installed
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes $(CONSTRAINTS) -r requirements.txt
	@touch $@

.venv/installed-dev: requirements/dev.txt | .venv/installed
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes $(CONSTRAINTS) -r requirements/dev.txt
	@touch $@

.venv-label-studio/installed: requirements/label-studio.txt | .venv/uv-installed
	$(UV) venv --quiet --clear --python $(BIN)/python .venv-label-studio
	$(UV) pip install --quiet --python .venv-label-studio/bin/python --no-deps --require-hashes -r requirements/label-studio.txt
	@touch $@

# The peer's list has no hashes: which build of PyTorch is taken (with CUDA or without) is left to how pip is configured here.
.venv-peer/installed: requirements/peer.in | .venv/uv-installed
	$(BIN)/python -m venv --clear .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/peer.in
	@touch $@
