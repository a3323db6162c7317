#!/usr/bin/env bash
# Test what of the GPU's kernels can be tested without a GPU, in an environment with NVIDIA's compiler.
# Usage: gpu.sh SCRATCH: a folder for the environment. Says why, and exits with 0, where the compiler
# cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -m venv "$1/gpu"
if ! "$1/gpu/bin/pip" install -q -e ".[test,cuda]" nvidia-cuda-nvcc >"$1/gpu.log" 2>&1; then
    echo "skipped: numba-cuda cannot be installed: $(tail -n 1 "$1/gpu.log")"
    exit 0
fi
"$1/gpu/bin/python" -m pytest -n auto tests/kernels/cuda tests/ladder/cuda tests/measure/test_gpu*.py
