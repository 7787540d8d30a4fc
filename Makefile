# Every target does its own set-up in .venv; the second call is fast.
# The first Python on the path that runs and is new enough (a shim may exist for one that is not installed).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PARITY := .venv-parity
# One torch thread: on a few shared cores more threads are slower.
export OMP_NUM_THREADS ?= 1

# Files over the cores, in their own order: by number of tests, those of few and long ones would come last. A test that
# hangs for five minutes fails where it hangs.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder --timeout 300

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-parity lint types check clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(STAMP)  ## Make .venv with everything in it.

$(STAMP): pyproject.toml constraints.txt Makefile
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Error: no Python 3.11 or newer found. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Setting up $(VENV) (once; a few minutes)…" >&2
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[local,plots,service,web,dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## Watch a small model research a made-up world: plan, fail, remember, replan. No key, no network.
	$(BIN)/mia demo

test: $(STAMP)  ## Run the tests (some minutes on two cores).
	$(BIN)/python -m pytest $(SPREAD) --maxprocesses 4 --ignore tests/stories
	$(BIN)/python -m pytest $(SPREAD) --maxprocesses 2 tests/stories

test-slow: $(STAMP)  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -m slow --timeout 3600

test-parity: $(PARITY)/.installed  ## Compare the learning arithmetic with verl and TRL (in an environment of its own).
	MIA_TEST_PARITY=1 $(PARITY)/bin/python -m pytest tests/parity

$(PARITY)/.installed: pyproject.toml constraints.txt tests/parity/requirements.txt tests/parity/requirements-bare.txt
	"$(PYTHON)" -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[local,dev]" -r tests/parity/requirements.txt
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/parity/requirements-bare.txt
	@touch $@

lint: $(STAMP)  ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Check types, strictly.
	$(BIN)/mypy

check: lint types test  ## All that CI runs.

clean:  ## Remove .venv and caches.
	rm -rf $(VENV) $(PARITY) .pytest_cache .mypy_cache .ruff_cache
