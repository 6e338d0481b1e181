# make demo   run lm_eval on read-twice tasks and show the result as a table and a plot   (DATA_DIR=... for real documents)
# make test   run the tests   (TESTS=tests/kernels for some of them, JOBS=8 for more processes)
# make lint   ruff, mypy and the layers of the package
# make docs   build the documentation site into site/
# Each first sets up what it needs in .venv. Without a C++ compiler, jrt-eval is installed without kernels.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TESTS  ?= tests
JOBS   ?= 2

.PHONY: demo test lint docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/jrt-eval demo --output runs/demo $(if $(DATA_DIR),--data-dir $(DATA_DIR))

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/typecheck.py
	$(BIN)/python .ci/layers.py

docs: $(VENV)/.installed
	$(BIN)/python .ci/site.py

# The first C++ compiler that compiles C++17, or nothing.
CXX17 = $$(for each in $$CXX c++ g++ clang++; do \
  echo 'int main() {}' | $$each -std=c++17 -x c++ -o /dev/null - >/dev/null 2>&1 && echo $$each && break; done)

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo "jrt-eval needs Python 3.10 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing). Run: make PYTHON=python3.12 $(or $(MAKECMDGOALS),demo)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module. Run: apt-get install python3-venv (Debian, Ubuntu), or make PYTHON=... with another Python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@if [ -z "$(CXX17)" ]; then \
	  echo "no C++ compiler: jrt-eval is installed without kernels, and PyTorch computes everything (for kernels: apt-get install g++, then make clean)"; \
	  export JRT_EVAL_PURE=1; \
	fi; \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist runs
