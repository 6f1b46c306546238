# `make help` lists the targets. Set VENV to use an existing environment: make VENV=~/envs/torch test
#
# PyPI's torch for Linux brings CUDA along (gigabytes). For the CPU build, let pip see PyTorch's CPU index:
#   make run PIP_ARGS="--extra-index-url <PyTorch's CPU index>"
# The pin in constraints.txt matches both builds, and pip prefers the CPU one when it sees it.

VENV     ?= .venv
PYTHON   ?= python3
PIP_ARGS ?=
MODEL    ?= models.resnet
WORKERS  ?= 2

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --no-input install -q -c constraints.txt $(PIP_ARGS)
PINS    := pyproject.toml constraints.txt
BASE    := $(VENV)/.torch-capture
TEST    := $(VENV)/.torch-capture-test
BENCH   := $(VENV)/.torch-capture-bench

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: run test test-all lint format bench clean help

run: $(BASE)  ## install, then capture, optimise, run and prove MODEL (default models.resnet)
	$(PY) -m capture $(MODEL) --optimize

test: $(TEST)  ## install with the test extra, then run the tests
	$(PY) -m pytest -n $(WORKERS)

test-all: $(TEST)  ## the same with the slow tests
	$(PY) -m pytest -n $(WORKERS) -m ""

lint: $(TEST)  ## style, format, types of capture/ir, and the floors that imports may cross
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(TEST)  ## rewrite the sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(BENCH)  ## install with the bench extra, then measure MODEL against eager and the peers
	$(PY) -m capture bench $(MODEL)

clean:  ## remove what builds, tests and runs have written; the environment stays
	rm -rf build dist *.egg-info capture-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.*' -prune -exec rm -rf {} +

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

$(PY):
	$(PYTHON) -m venv $(VENV)

# A stamp says which extras an environment holds, so that a second `make` installs nothing.
$(BASE): $(PINS) | $(PY)
	$(PIP) -e .
	@touch $@

$(TEST): $(PINS) | $(PY)
	$(PIP) -e '.[test]'
	@touch $@ $(BASE)

$(BENCH): $(PINS) | $(PY)
	$(PIP) -e '.[bench]'
	@touch $@ $(BASE)
