# `make demo` and `make test` need only Python >= 3.11, git and make; both set everything up and may be run again.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Without an NVIDIA GPU, the CPU build of torch: it is 200 MB instead of several GB.
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo test test-slow lint bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 'torch>=2.8,<2.14' $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,parquet,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/demo.py

# A worker a core, one thread each: small networks gain nothing from more threads and lose much where they compete.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not gpu'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo
