# `make demo` and `make test` need only Python >= 3.11, git and make; both set everything up and may be run again.
#
#   make test EXTRAS=test-all   with all packages that some test needs: none is skipped for want of one
#   make test-lowest            with the lowest versions that pyproject.toml allows
#   make test-highest           with the newest
#   make test-gpu-versions      with those of constraints-gpu.txt, on Python 3.12 and a CPU
#   make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,parquet,dev
BIN = $(VENV)/bin
comma = ,
STAMP = $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS)
PIP_OPTIONS =

# Without an NVIDIA GPU, the CPU build of torch: it is 200 MB instead of several GB.
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo test test-extras test-slow test-lowest test-highest test-gpu-versions gpu-wheels coverage mutants lint docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --retries 1 "$$($(BIN)/python tools/bounds.py show torch)" $(TORCH_INDEX)
	$(PIP) -e '.[$(EXTRAS)]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/demo.py

# A worker a core, one thread each: small networks gain nothing from more threads and lose much where they compete.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

# Slow tests of what only an extra brings: with EXTRAS=test-all, all of them run.
test-extras: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'extra and not gpu'

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

# What the tests let pass: minutes a module, hours for all; goes on where it was stopped (docs/internals/testing.md).
SAMPLE ?= 20
MODULES ?=
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py --sample $(SAMPLE) $(MODULES)

# The linter is of one version for all, so that it is not run here.
test-lowest: constraints-lowest.txt
	$(MAKE) .venv-lowest/tested VENV=.venv-lowest PIP_OPTIONS='-c constraints-lowest.txt'
	$(PYTHON) tools/bounds.py record

test-highest:
	$(MAKE) .venv-highest/tested VENV=.venv-highest PIP_OPTIONS='--upgrade --upgrade-strategy eager'

# The versions of the GPU machines that docs/internals/gpu.md is about.
PYTHON312 ?= python3.12
test-gpu-versions:
	$(MAKE) .venv-gpu/tested VENV=.venv-gpu PYTHON=$(PYTHON312) PIP_OPTIONS='-c constraints-gpu.txt'

# What such a machine lacks, and the project itself, into build/gpu-wheels.
GPU_WHEELS = annotated-types av braceexpand donfig et-xmlfile google-crc32c msgspec numcodecs openpyxl pydantic \
  pydantic-core typing-inspection webdataset zarr
GPU_PLATFORMS = manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
gpu-wheels:
	rm -rf build/gpu-wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(addprefix --platform ,$(GPU_PLATFORMS)) -c constraints-gpu.txt -d build/gpu-wheels $(GPU_WHEELS)
	$(PYTHON) -m pip wheel --quiet --no-deps -w build/gpu-wheels .
	du -sm build/gpu-wheels

.PHONY: $(VENV)/tested
$(VENV)/tested: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

constraints-lowest.txt: pyproject.toml
	$(PYTHON) tools/bounds.py write

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a static site in build/site; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-lowest .venv-highest .venv-gpu demo
