# `make demo` and `make test` set up everything they need; Python 3.11 or newer, pip and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# jax keeps what it compiled; a second demo starts faster.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo test lint types clean
help:
	@echo "make demo   prune a tiny model on generated data, from start to end (runs/demo)"
	@echo "make test   the whole test suite: no network, no GPU"
	@echo "make lint   ruff, formatting and rules"
	@echo "make types  pyright"
	@echo "make clean  remove .venv, caches and builds"
	@echo "Another interpreter: make PYTHON=python3.12 test"

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/mlprune prune --config configs/demo.yaml -o runs/demo

test: $(VENV)/.installed
	$(BIN)/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mlprune_jax needs Python 3.11 or newer and '$(PYTHON)' is not;" \
	    "name one that is: make PYTHON=python3.12 test"; exit 1; }
	@# Some systems have pip but not the copy that venv wants to install.
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[test]' --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --editable '.[dev]' --constraint constraints.txt
	@touch $@
