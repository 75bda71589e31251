# Every target builds .venv on first use and needs only Python >= 3.10 with venv.
PYTHON ?= python3
VENV ?= .venv
PY := $(CURDIR)/$(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=

.PHONY: help demo test test-full check format bench gpu clean

help:
	@echo "make demo       train on the Palmer penguins, export to ONNX, verify, show"
	@echo "make test       the whole test suite (kernels in Triton's interpreter where there is no GPU)"
	@echo "make test-full  and the exhaustive sweeps"
	@echo "make check      ruff and mypy"
	@echo "make bench      time the loss against eager, torch.compile and a copy of the same bytes"
	@echo "make gpu        tests and benchmarks on this machine's GPU, with the python3 on the PATH"

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/fused-loss demo

# PyTorch threads are held to one per worker: the suite runs one worker a core.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-full: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# mypy cannot see the mapping of setup.py in a checkout: it reads a tree of links shaped like the wheel.
check: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/fused_loss
	cd build/typed/fused_loss && ln -s ../../../fused_loss/* . && \
		for folder in kernels export bench; do ln -s ../../../$$folder $$folder; done
	cd build/typed && $(PY) -m mypy --config-file ../../pyproject.toml -p fused_loss

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(INSTALLED)
	$(VENV)/bin/fused-loss bench

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis $(VENV)
