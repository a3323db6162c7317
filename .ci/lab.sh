#!/usr/bin/env bash
# Get what the lab's tests want, and would else be skipped for: a linker for WebAssembly, and browsers.
# Usage: lab.sh SCRATCH: a folder for logs. Says why, and exits with 0, where one of them cannot be had.
set -uo pipefail

python -m pip install -q ziglang >"$1/ziglang.log" 2>&1 ||
    echo "no linker: ziglang cannot be installed: $(tail -n 1 "$1/ziglang.log")"
get() { # PACKAGE COMMAND...: one of the commands is to be there
    command -v "${@:2}" >/dev/null && return
    { [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y "$1"; } >"$1.log" 2>&1 ||
        echo "no browser: ${1##*/} cannot be installed: $(tail -n 1 "$1.log")"
}
cd "$1" || exit 0
get chromium chromium chromium-browser chrome
get firefox-esr firefox firefox-esr
exit 0
