# `make help` says what there is. Every target sets up what it needs in $(VENV), once.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= $(shell nproc 2>/dev/null | awk '{print $$1 < 4 ? $$1 : 4}')
BENCH_ARGS ?=

BIN := $(VENV)/bin
VERSION_OF = $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])'

# The stamp says what was installed to its end: for these two files and this Python. PYTHON= counts when it was given,
# otherwise an environment keeps the Python it was made with.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
ifeq ($(origin PYTHON),file)
PYVERSION := $(shell $(call VERSION_OF,$(BIN)/python) 2>/dev/null || $(call VERSION_OF,$(PYTHON)))
else
PYVERSION := $(shell $(call VERSION_OF,$(PYTHON)))
endif
STAMP := $(VENV)/.installed-$(PYVERSION)-$(KEY)

# TORCH_INDEX has its own versions of torch's dependencies, so the pins wait for the second install there.
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),-c constraints.txt)

.PHONY: help setup demo test kernels lint style types format wheel gpu-check bench clean

help:
	@echo 'make demo       text from the model that ships with ostinato; needs no GPU'
	@echo 'make test       the tests                    PYTEST_ARGS="-k scheduler -x"'
	@echo 'make kernels    compile every Triton kernel for GPUs of three generations; needs none'
	@echo 'make lint       ruff, and mypy --strict on the package as it is installed'
	@echo 'make format     let ruff rewrite the code'
	@echo 'make wheel      dist/ostinato-*.whl'
	@echo 'make gpu-check  the tests that need a CUDA device, then speed against targets; fails where there is none'
	@echo '                                         GPU_CHECK_ARGS="--only decode" GPU_CHECK_TESTS=no'
	@echo 'make bench      the benchmarks               BENCH_ARGS="--only decode"'
	@echo 'make clean      remove $(VENV), builds and caches'
	@echo
	@echo 'Each of them first installs what it needs into $(VENV), torch included. Variables:'
	@echo '  PYTHON=python3.12   the Python to make $(VENV) with (3.11 or newer); another version makes it anew'
	@echo '  VENV=.venv          where to put it'
	@echo '  TEST_WORKERS=2      processes that share the tests; 0: one, with all threads'
	@echo '  TORCH_INDEX=URL     where to get torch from when it is installed first: a CPU-only build, say, which is a tenth'
	@echo '                      of the size. https://pytorch.org/get-started/locally/ lists the addresses'
	@echo 'gpu-check uses PYTHON itself when that already has a torch that sees a CUDA device: nothing is downloaded.'

setup: $(STAMP)

# An environment without a stamp is a broken half: begin again. A stamp goes before anything changes.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ostinato needs Python 3.11 or newer; $(PYTHON) is " + sys.version)'
	ls $(VENV)/.installed-$(PYVERSION)-* >/dev/null 2>&1 || $(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV)
	rm -f $(VENV)/.installed-*
	$(BIN)/python -m pip install --disable-pip-version-check '$(TORCH)' $(TORCH_FROM)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --editable '.[test,perf]'
	touch $@

# Uncompiled, so that it starts at once; without --execution it compiles first, which takes a while the first time.
demo: setup
	$(BIN)/ostinato generate demo "def read_lines(path):" --execution eager --temperature 0.7 --top-p 0.9 --seed 4 --max-tokens 128

# A worker has one thread: they share the cores. A file's tests stay together, since they share their engines.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Without a GPU: the compilers for it are part of Triton.
kernels: setup
	$(BIN)/python -m ostinato.layers.kernels.build --against tests/kernels/resources.json

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An editable install hides its types from mypy, so the wheel is unpacked for it.
types: wheel
	rm -rf build/typed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target build/typed dist/*.whl
	MYPYPATH=build/typed $(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# setuptools would pack what an earlier build left in build/.
wheel: setup
	rm -rf build dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	@ls dist

gpu-check:
	@PYTHON="$(PYTHON)" VENV_PYTHON="$(BIN)/python" tests/gpu_check

bench: setup
	$(BIN)/python -m ostinato.perf $(BENCH_ARGS)

clean:
	[ ! -f $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)
	rm -rf build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find engine graphs layers models perf tests -name __pycache__ -type d -prune -exec rm -rf {} +
