# make demo    a few minutes: real data becomes a model that answers HTTP
# make check   format, lint, types, import rules, fast tests
# make test    every test, but for the fast ones if they have passed and no file is newer
# make bench   measurements behind docs/benchmarks that need no folder and no hour
# make clean   remove the environment and what tools left behind
#
# Each installs what it needs into .venv. TORCH_INDEX_URL=URL takes PyTorch from another package
# index, such as one of CPU builds; PYTHON=python3.12 makes the environment with another Python.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
TORCH := torch==2.14.1 torchvision==0.29.1
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tests without a cluster have no part in one another; those on one share it, and its CPUs. They run
# in a process of their own, as one that has joined and left dozens of clusters may crash when the
# interpreter ends, after every test has passed.
PARALLEL := --numprocesses auto --dist loadfile
ON_RAY := --numprocesses 1
FAST := unit and not program and not slow
FAST_PASSED := $(VENV)/.fast-tests-passed
FILES = $(shell find * -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*')
# What demo needs: the development environment serves as well, if there is one.
RUNTIME = $(if $(wildcard $(DEV)),$(DEV),$(CORE))

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

demo: $(RUNTIME)
	@$(BIN)/python docs/demo.py

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(RUN_FAST)

test: $(FAST_PASSED)
	$(BIN)/pytest -m "unit and (program or slow)" $(PARALLEL)
	$(BIN)/pytest -m "not unit" $(ON_RAY)

$(FAST_PASSED): $(DEV) $(FILES)
	$(RUN_FAST)

# As old as its beginning: what is changed meanwhile was not tested.
define RUN_FAST
	@touch $(FAST_PASSED).began
	$(BIN)/pytest -q -m "$(FAST)" $(PARALLEL)
	@mv $(FAST_PASSED).began $(FAST_PASSED)
endef

bench: $(DEV)
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

define install
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(if $(TORCH_INDEX_URL),$(PIP) install --no-deps --index-url "$(TORCH_INDEX_URL)" $(TORCH))
	$(PIP) install -c requirements.lock $(TORCH) -e "$(1)"
endef

$(CORE): pyproject.toml requirements.lock | $(BIN)/python
	$(call install,.)
	@touch $@

$(DEV): pyproject.toml requirements.lock | $(BIN)/python
	$(call install,.[dev$(comma)openvino])
	@touch $@ $(CORE)

comma := ,
