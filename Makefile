# Every target builds .venv on first use and needs only Python >= 3.10 with venv.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PY := $(CURDIR)/$(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
TREE := build/tree
OUT ?= bench/results/new
GPU_SECONDS ?= 450
SHELL := /bin/bash

.PHONY: help demo test test-full check tree format bench gpu clean

help:
	@echo "make demo       train on the Palmer penguins, export to ONNX, verify, show"
	@echo "make test       the whole test suite (kernels in Triton's interpreter where there is no GPU)"
	@echo "make test-full  and the exhaustive sweeps"
	@echo "make check      ruff and mypy"
	@echo "make bench      time the loss against eager, torch.compile and a copy of the same bytes"
	@echo "make gpu        tests and benchmarks on this machine's GPU, with the python3 on the PATH"

$(INSTALLED): setup.py pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[all]'
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/fused-loss demo

# PyTorch threads are held to one per worker: the suite runs one worker a core.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-full: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

check: $(INSTALLED) tree
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	cd $(TREE) && $(PY) -m mypy --config-file ../../pyproject.toml -p fused_loss

# Links in the shape of the wheel: mypy cannot see the mapping of setup.py in a checkout, and a
# machine without a network imports the package from here.
tree:
	rm -rf $(TREE) && mkdir -p $(TREE)/fused_loss
	cd $(TREE)/fused_loss && ln -s ../../../fused_loss/* . && \
		for folder in kernels export bench; do ln -s ../../../$$folder $$folder; done

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(INSTALLED)
	$(VENV)/bin/fused-loss bench

# Nothing is installed: the python3 on the PATH must hold torch, triton, pytest, hypothesis, onnx,
# rich. Tests and benchmark share GPU_SECONDS; a case is written as soon as it is measured. The
# benchmark runs even where a test fails; the target fails with it.
gpu: export PYTHONSAFEPATH = 1
gpu: export PYTHONPATH := $(CURDIR)/$(TREE):$(PYTHONPATH)
gpu: tree
	mkdir -p $(OUT)
	end=$$(( $$(date +%s) + $(GPU_SECONDS) )); set -o pipefail; \
		timeout $$(( $(GPU_SECONDS) / 2 )) python3 -m pytest -m gpu $(PYTEST_ARGS) 2>&1 \
			| tee $(OUT)/tests.log; tests=$$?; \
		python3 -m fused_loss.cli bench --suite gpu --out $(OUT) --limit $$(( end - $$(date +%s) )) \
			&& exit $$tests

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis $(VENV)
