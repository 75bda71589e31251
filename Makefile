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

# Nothing is installed: the python3 on the PATH must hold torch, triton, pytest, pytest-xdist,
# hypothesis, onnx, rich. What only a GPU can show is tested first and by few workers, since some of it
# takes tens of gigabytes; then the rest, by one a core. Half of GPU_SECONDS after the start the tests are
# interrupted, and say what has failed by then; a stage that PYTEST_ARGS leave without a test (exit 5) has
# not failed. The benchmark runs even so, in the time that is left: a case is written once it is measured.
ONLY_GPU := tests/test_kernels_gpu.py tests/test_kernels_gpu_options.py
gpu: export PYTHONSAFEPATH = 1
gpu: export PYTHONPATH := $(CURDIR)/$(TREE):$(PYTHONPATH)
gpu: tree
	mkdir -p $(OUT) && rm -f $(OUT)/tests.log
	end=$$(( $$(date +%s) + $(GPU_SECONDS) )); failed=0; set -o pipefail; \
	try() { \
		left=$$(( end - $(GPU_SECONDS) / 2 - $$(date +%s) )); \
		timeout -s INT -k 20 $$(( left > 1 ? left : 1 )) \
			env OMP_NUM_THREADS=1 python3 -m pytest --dist worksteal --tb=short "$$@" $(PYTEST_ARGS) 2>&1 \
			| tee -a $(OUT)/tests.log || [ $$? = 5 ] || failed=1; \
	}; \
	try -n 4 -m gpu $(ONLY_GPU); \
	try -n auto -m "gpu and not slow" $(addprefix --ignore=,$(ONLY_GPU)); \
	python3 -m fused_loss bench --suite gpu --out $(OUT) --limit $$(( end - $$(date +%s) )) \
		&& exit $$failed

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis $(VENV)
