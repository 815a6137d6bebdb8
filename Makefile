# `make demo` and `make test` set up everything they need; Python 3.11 or newer, pip and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# jax keeps what it compiled; a second demo starts faster.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo test lint types gpu gpu-train clean
help:
	@echo "make demo   prune a tiny model on generated data, from start to end (runs/demo)"
	@echo "make test   the whole test suite: no network, no GPU"
	@echo "make lint   ruff, formatting and rules"
	@echo "make types  pyright"
	@echo "make gpu    on a machine with a Hopper GPU: kernels and whole models checked and timed, into benchmarks/results"
	@echo "make gpu-train  there too: training steps beside torch's, memory, saves"
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

# The environment must hold jax for CUDA: pip install '.[gpu,test]' where it does not yet. The products take half of ten
# minutes, what decides most first; started again, they go on where they stopped. Their times pick the whole models'
# products.
RESULTS := benchmarks/results
GPU_SECONDS ?= 300
gpu:
	JAX_PLATFORMS=cuda $(PYTHON) -m pallas_kernels.block_sparse_matmul.bench --out $(RESULTS)/gpu_products.json \
	  --seconds $(GPU_SECONDS) --table $(RESULTS)/gpu_costs.json
	for length in 128 384; do \
	  $(PYTHON) benchmarks/whole_model.py --dtype bfloat16 --batch 32 --length $$length \
	    --table $(RESULTS)/gpu_costs.json --json $(RESULTS)/gpu_whole_model_$$length.json || exit 1; done
	$(PYTHON) benchmarks/kernel_times.py --json $(RESULTS)/gpu_kernel_times.json
	$(PYTHON) -m pytest -n0 -m gpu

# Needs torch as well.
gpu-train:
	for name in train_vs_torch train_memory train_io; do \
	  JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false $(PYTHON) benchmarks/$$name.py --json $(RESULTS)/gpu_$$name.json || exit 1; done

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
