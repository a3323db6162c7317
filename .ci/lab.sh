#!/usr/bin/env bash
# Get what the lab's tests want, and would else be skipped for: a linker for WebAssembly, and a browser.
# Usage: lab.sh SCRATCH: a folder for logs. Says why, and exits with 0, where one of them cannot be had.
set -uo pipefail

python -m pip install -q ziglang >"$1/ziglang.log" 2>&1 ||
    echo "no linker: ziglang cannot be installed: $(tail -n 1 "$1/ziglang.log")"
if ! command -v chromium chromium-browser chrome >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium; } \
        >"$1/chromium.log" 2>&1 ||
        echo "no browser: chromium cannot be installed: $(tail -n 1 "$1/chromium.log")"
fi
exit 0
