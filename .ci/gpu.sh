#!/usr/bin/env bash
# Test what of the GPU's kernels can be tested without a GPU, in an environment with NVIDIA's compiler.
# Usage: gpu.sh SCRATCH WHEEL makes that environment in a folder, and gpu.sh SCRATCH runs the tests
# there. Says why, and exits with 0, where the compiler cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# = 2 ]; then
    python3 -m venv "$1/gpu"
    "$1/gpu/bin/pip" install -q "$2[test,cuda]" nvidia-cuda-nvcc >"$1/gpu.log" 2>&1
    exit
fi
if ! "$1/gpu/bin/python" -c "import numba_cuda" 2>/dev/null; then
    echo "skipped: numba-cuda cannot be installed: $(tail -n 1 "$1/gpu.log")"
    exit 0
fi
"$1/gpu/bin/pip" install -q --no-deps -e .
"$1/gpu/bin/python" -m pytest -n auto tests/kernels/cuda tests/ladder/cuda tests/measure/test_gpu*.py
