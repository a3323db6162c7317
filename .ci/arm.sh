#!/usr/bin/env bash
# Run minires on an emulated 64-bit ARM, and hold its INT8 to the bits that this machine computes.
# Where the emulator can be had, the tests use it too: tests/arm and the microkernels' of ARM.
# Usage: arm.sh SCRATCH PYTHON: a folder for what is installed, and a Python that has minires.
# Says why and exits with 0 where the emulator or its Python cannot be had.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "$2")
mkdir -p "$1/arm"
cd "$1/arm"
skip() { echo "skipped: $*"; exit 0; }

[ "$(uname -m)" = x86_64 ] || skip "this machine is no x86-64"
[ "$(id -u)" = 0 ] || skip "only root can install an emulator"
command -v apt-get >/dev/null || skip "there is no apt-get"
if ! { command -v qemu-aarch64-static && command -v aarch64-linux-gnu-ld; } >/dev/null; then
    { apt-get -qq update && apt-get -qq install -y qemu-user-static binutils-aarch64-linux-gnu; } \
        >install.log 2>&1 || skip "the emulator cannot be installed: $(tail -n 1 install.log)"
fi

# A Python for ARM: Debian's packages, which are unpacked and not installed.
mkdir -p apt/lists/partial apt/cache/archives/partial debs sysroot
cat >apt/apt.conf <<CONF
APT::Architecture "arm64"; APT::Architectures { "arm64"; };
Dir::State::Status "/dev/null";
Dir::State::Lists "$PWD/apt/lists"; Dir::Cache "$PWD/apt/cache";
APT::Sandbox::User "root";
CONF
{
    export APT_CONFIG=$PWD/apt/apt.conf
    apt-get -qq update
    version=$(apt-cache depends python3 | sed -n 's/.*Depends: \(python3\.[0-9]*\)$/\1/p')
    mapfile -t packages < <(apt-cache depends --recurse --important "$version" libgomp1 libstdc++6 |
        grep '^[a-z0-9]')
    (cd debs && apt-get -qq download "${packages[@]}")
    unset APT_CONFIG
} >packages.log 2>&1 || skip "Debian's packages for ARM cannot be had: $(tail -n 1 packages.log)"
for package in debs/*.deb; do dpkg-deb -x "$package" sysroot; done

# And what minires and its tests need, as wheels for ARM.
wheels=(--implementation cp --python-version "${version#python}" --only-binary=:all:)
for tag in 2_28 2_27 2_17; do wheels+=(--platform "manylinux_${tag}_aarch64"); done
mapfile -t needs < <("$python" -c "import tomllib
print(*tomllib.load(open('$checkout/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')")
"$python" -m pip install -q --no-cache-dir --target site "${wheels[@]}" \
    --platform manylinux2014_aarch64 "${needs[@]}" pytest hypothesis >wheels.log 2>&1 ||
    skip "wheels for ARM cannot be had: $(tail -n 1 wheels.log)"

export MINIRES_OFFLINE=1 MINIRES_CACHE=$PWD/cache NUMBA_CACHE_DIR=$PWD/code
emulated() { # a CPU, and what its Python is to run
    qemu-aarch64-static -cpu "$1" -L sysroot -E PYTHONPATH="$PWD/site:$checkout" \
        "sysroot/usr/bin/$version" "${@:2}"
}
cat >logits.py <<'CODE'
"""Save the INT8 network's logits of an image: of one that is prepared already, if it is."""
import sys
from pathlib import Path

import numpy as np

import minires
from minires.kernels.isa import choose_isa

image, prepared, file, isa = sys.argv[1:]
assert not isa or choose_isa().name == isa, choose_isa().name
model = minires.resnet50("CIFAR10", "int8")
if not Path(prepared).exists():
    np.save(prepared, minires.preprocess(image, model.meta["preset"]))
np.save(file, model(np.load(prepared)))
CODE
cat >compare.py <<'CODE'
import numpy as np

x86, arm = np.load("x86.npy"), np.load("arm.npy")
assert x86.any() and np.array_equal(x86, arm), (x86, arm)
CODE
cat=$checkout/examples/images/cat.jpg
PYTHONPATH=$checkout "$python" logits.py "$cat" image.npy x86.npy ""
emulated neoverse-n1 logits.py "$cat" image.npy arm.npy neon-dotprod
"$python" compare.py
echo "neoverse-n1 by neon-dotprod: INT8 has the bits of x86"
# Compiling a network takes minutes there. tests/arm runs one for each set; here each CPU chooses.
for pair in cortex-a72:neon max:neon-mmla; do # a CPU, and its set
    emulated "${pair%:*}" -c "from minires.kernels.isa import choose_isa
assert choose_isa().name == '${pair#*:}', choose_isa().name"
    echo "${pair%:*} chooses ${pair#*:}"
done
emulated neoverse-n1 "$checkout/examples/classify.py" "$cat" --weights CIFAR10 --precision int8 |
    tee answer
sed -n 2p answer | grep -q '%  cat$'

# Of the tests those whose answers depend on the machine, and that ask for no other network than the
# one that is compiled already. All of them would take most of an hour.
some="several_threads or network_has and shape0 or nothing_outside and int8-1 and not simulated"
some+=" or little_else and mmla or test_cpu or test_isa or test_sync and not waited_for"
MINIRES_TEST_PRECISIONS=int8 emulated neoverse-n1 -m pytest -q -p no:cacheprovider \
    -o addopts=--import-mode=importlib -k "$some" \
    "$checkout"/tests/kernels/{test_engine,test_cpu,test_sync,isa/test_isa}.py \
    "$checkout/tests/measure/test_peak.py"
