#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs the operators' tests under them, on every
# instruction set of this machine. Usage: tests/kernels/sanitize.sh [python]   (default: .venv/bin/python)
# About two minutes on two cores: the one test of thousands of tokens is left out, and random shapes are fewer.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
python=$(command -v "$python")
build=build/sanitize
cxx=${CXX:-g++}

cmake=cmake
command -v cmake >/dev/null || cmake="$python -m cmake"
$cmake -S . -B "$build" -DJRT_EVAL_SANITIZE=ON -DSKBUILD_PLATLIB_DIR="$PWD/$build" -DPython_EXECUTABLE="$python" \
  -DCMAKE_CXX_COMPILER="$cxx" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
$cmake --build "$build" --parallel 2

# The module is loaded under its own name before pytest starts, so that it is found before an installed one.
export LD_PRELOAD="$("$cxx" -print-file-name=libasan.so):$("$cxx" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 TORCHDYNAMO_DISABLE=1
export JRT_EVAL_TEST_EXAMPLES=${JRT_EVAL_TEST_EXAMPLES:-10}
exec "$python" - "$build"/csrc/_kernels.*.so <<'PYTHON'
import importlib.util
import sys

import pytest

spec = importlib.util.spec_from_file_location("jrt_eval._kernels", sys.argv[1])
assert spec and spec.loader
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
files = [f"tests/kernels/test_{part}.py" for part in ("taylor", "others", "recurrences", "gradients", "properties")]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "cpu and not torch and not long_sequence", *files]))
PYTHON
