# `make demo` and `make test` need only Python >= 3.11, git and make; both set everything up and may be run again.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Without an NVIDIA GPU, the CPU build of torch: it is 200 MB instead of several GB.
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo test test-slow coverage mutants lint bench clean

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

# What the tests run, code in processes that they start included: `make coverage TESTS=tests/store COVERED='*/store/*'`.
TESTS ?= tests
COVERED ?= *
coverage: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[coverage]'
	mkdir -p build/coverage && rm -f build/coverage/data*
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 0 $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --include='$(COVERED)'

# What the tests let pass: minutes a module, hours for all; goes on where it was stopped (docs/testing.md).
SAMPLE ?= 20
MODULES ?=
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py --sample $(SAMPLE) $(MODULES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo
