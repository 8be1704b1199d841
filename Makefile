# make quickstart [ARGS=--exit] [GPU=1] [TORCH_INDEX="--index-url URL"] [PYTHON=python3.12]
# `make help` lists the targets. The environment lives in .venv and is brought up to date only when pyproject.toml,
# constraints.txt or tools/install_torch.py changes.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
GPU ?=
TORCH_INDEX ?=
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test slow chaos check format docs bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /: /'

setup: $(VENV)/.installed-dev ## .venv with the development tools, for editors and pre-commit

quickstart: $(VENV)/.installed-core ## the main job: contribute, train, serve, attribute, pay, prove
	@$(BIN)/openledger quickstart $(ARGS)

test: $(VENV)/.installed-dev ## the whole suite with reduced counts, checks included
	@$(PYTEST) -m "not slow" $(ARGS)

slow: $(VENV)/.installed-dev ## the whole suite with full counts
	@$(PYTEST) --hypothesis-profile full $(ARGS)

chaos: $(VENV)/.installed-dev ## the part of it that kills processes and nodes
	@$(PYTEST) -m chaos $(ARGS)

check: $(VENV)/.installed-dev ## ruff, mypy, import contracts, tests of docs and manifests
	@$(PYTEST) tests/repo $(ARGS)

format: $(VENV)/.installed-dev ## let ruff format and mend what it can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

docs: $(VENV)/.installed-dev ## bring the reference up to date, check links, commands and code
	@$(BIN)/python tools/write_reference.py
	@$(PYTEST) tests/repo/test_repo_docs.py $(ARGS)

bench: $(VENV)/.installed-core ## print the figures of README's performance table
	@set -e; for file in benchmarks/bench_*.py; do $(BIN)/python $$file; done

clean: ## remove .venv, caches and build output; keeps work directories
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.installed-dev: $(VENV)/.installed-core
	@echo "Installing the development tools"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-core: pyproject.toml constraints.txt tools/install_torch.py $(VENV)/.created
	@echo "Installing dependencies (a few minutes the first time)"
	@$(BIN)/python tools/install_torch.py $(if $(GPU),--gpu) --index '$(TORCH_INDEX)'
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "OpenLedger needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "OpenLedger needs Python 3.11 or newer, and $(PYTHON) is not"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks the venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
