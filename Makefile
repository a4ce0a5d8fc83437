# `make demo` and `make test` are all that a newcomer needs: each makes its own environment, .venv, when there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo needs the package alone, the tests more; a stamp remembers what is installed.
SOURCES := setup.py pyproject.toml README.md $(shell find nnunetv2_ext -name '*.py')
WORKERS ?= 2

# Waiting threads take the cores from working ones without these.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
# By default glibc returns every large block to the system, which clears it for the next one: a third of the tests' time.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.DEFAULT_GOAL := help

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	rm -rf build  # setuptools would pack modules that have since been removed
	$(BIN)/python -m pip install --disable-pip-version-check .
	@touch $@

$(VENV)/.test-installed: $(BIN)/python setup.py pyproject.toml
	rm -rf build
	$(BIN)/python -m pip install --disable-pip-version-check '.[test]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## set up, then train and predict on built-in data (under 10 minutes on two cores)
	$(BIN)/nnUNetv2_ext demo

test: $(VENV)/.test-installed $(VENV)/.installed lint  ## set up, then run everything that CI runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-fast: $(VENV)/.test-installed $(VENV)/.installed  ## the tests that take seconds, for use while developing
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not commands"

lint: $(VENV)/.test-installed  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.installed  ## measure cost, and write docs/benchmarks.md anew
	$(BIN)/python -m benchmarks.cost

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) nnunetv2_ext_demo build *.egg-info

.PHONY: help demo test test-fast lint benchmark clean
