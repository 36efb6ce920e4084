# Each target does its own set-up: on a fresh machine `make test` is the first and only command.
#
#   make test PYTHON=python3.12        another Python          make test PYTEST_ARGS="-k nms -x"
#   make test VENV=/tmp/venv           another environment     make test MASKRCNN_BUILD=cpu
#   make test WORKERS=1                fewer or more processes (default: as cores and memory allow)
#   make setup VENV=.venv-oldest TORCH="torch==2.11.* torchvision==0.26.*"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
PYTEST_ARGS ?=
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# One process per 3 GB of the machine or its container (cgroup v2, v1): the tests that take most need
# 3.0 GB with the process that starts them.
LIMITS := /proc/meminfo /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes
WORKERS ?= $(shell cat $(LIMITS) 2>/dev/null | awk -v most=$(CORES) ' \
  /^MemTotal:/ { bytes = $$2 * 1024 } /^[0-9]+$$/ && $$1 < bytes { bytes = $$1 } \
  END { if (most > 4) most = 4; if (bytes && bytes < most * 3e9) most = int(bytes / 3e9); \
        print most < 1 ? 1 : most }')
ifeq ($(origin CXX),default)
CXX := c++
endif
export CXX

BIN := $(VENV)/bin
# One thread per worker: with more, workers wait for each other's cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
CSRC := $(shell find csrc -type f \( -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' \) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: docs help setup test test-fast test-matrix fuzz sanitize soak cuda-report demo lint format clean check

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/built ## virtual environment, dependencies, extension

test: setup ## all tests; set MASKRCNN_DATA to a data folder to test on real data too
	$(PYTEST) $(PYTEST_ARGS)

test-fast: setup ## each test function once, without the slow ones
	$(PYTEST) --fast $(PYTEST_ARGS)

MATRIX_ARGS ?=
test-matrix: setup ## the operators' tests under other instruction sets, threads, compilers, versions
	$(BIN)/python tools/test_matrix.py $(MATRIX_ARGS)

FUZZ_SECONDS ?= 300
FUZZ_TARGETS ?= pickle safetensors torch torch-legacy rle polygon
fuzz: setup ## FUZZ_SECONDS of input to the C++ ops and to each reader of files; findings go to fuzz-findings/
	$(BIN)/python -m tests.fuzz.ops --seconds $(FUZZ_SECONDS)
	for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) --seed $$(date +%s) || exit 1; \
	done

SANITIZERS ?= address thread valgrind
sanitize: setup ## tests of the C++ code under AddressSanitizer and UBSan, ThreadSanitizer, valgrind
	PYTHON=$(BIN)/python tools/sanitize.sh $(SANITIZERS)

soak: setup ## many predictions, training steps and kills; memory must not grow
	$(BIN)/python -m tests.faults.soak
	$(BIN)/python -m tests.faults.kills --kills 50

cuda-report: $(VENV)/installed ## registers, spills and shared memory of each CUDA kernel; needs nvcc
	$(BIN)/python tools/cuda_report.py

demo: setup ## from nothing to a picture
	$(BIN)/python tools/demo.py

docs: setup $(VENV)/docs ## the documentation site, in docs/_build/html; trains the tour's small model once
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(VENV)/installed ## what continuous integration checks before the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CSRC),$(BIN)/clang-format --dry-run --Werror $(CSRC))

format: $(VENV)/installed ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(if $(CSRC),$(BIN)/clang-format -i $(CSRC))

clean: ## remove the environment and everything built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f maskrcnn_scratch/*.so
	find maskrcnn_scratch tests tools -name __pycache__ -prune -exec rm -rf {} +

# The machine: each check says in one line what is missing and how to get it (0.3 s at every call).
fail = { echo "error: $(1)" >&2; exit 1; }
check:
	@command -v $(PYTHON) >/dev/null || $(call fail,$(PYTHON) not found; install Python 3.10 or newer$(,) or name one: make PYTHON=python3.12)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  $(call fail,$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.10 or newer is needed: make PYTHON=python3.12)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  $(call fail,$(PYTHON) has no venv module; install it (Debian and Ubuntu: python3-venv))
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  $(call fail,the headers of $(PYTHON) are missing; install them (Debian and Ubuntu: python3-dev))
	@command -v $(firstword $(CXX)) >/dev/null || \
	  $(call fail,C++ compiler $(CXX) not found; install g++ or clang++$(,) or name one: make CXX=clang++)
	@printf '#include <span>\n' | $(CXX) -std=c++20 -fsyntax-only -x c++ - 2>/dev/null || \
	  $(call fail,$(CXX) knows no C++20; g++ 11 or clang++ 14 or newer is needed: make CXX=g++-12)
, := ,

$(VENV)/bin/python: | check
	$(PYTHON) -m venv $(VENV)

# torch comes first: setup.py builds against it.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" ninja $(TORCH)
	MASKRCNN_BUILD=none $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[test,dev]'
	@touch $@

$(VENV)/docs: pyproject.toml | $(VENV)/installed
	MASKRCNN_BUILD=none $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[docs]'
	@touch $@

$(VENV)/built: $(VENV)/installed setup.py $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
