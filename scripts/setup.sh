#!/usr/bin/env bash
# Installs the system packages that the build needs, where they are missing.
# Nothing is touched where they are there; where apt may not be used, says what to do.
#
#     scripts/setup.sh          for building
#     scripts/setup.sh tests    for the tests too: Chromium, which the page is driven in
set -euo pipefail

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v c++ >/dev/null || missing+=(g++)
command -v clang >/dev/null || missing+=(clang)
# bindgen, which reads llama.cpp's header, loads libclang at build time.
ldconfig -p 2>/dev/null | grep -q 'libclang' || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null \
    || missing+=(libclang-dev)

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing; install Rust 1.94 or newer from https://rustup.rs, then run make again" >&2
    exit 1
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
    command -v python3 >/dev/null || missing+=(python3)
    missing+=(python3-pip)
fi
# The JPEG decoder builds without an assembler too, but decodes slower then.
optional=()
command -v nasm >/dev/null || optional+=(nasm)

may_install=()
if command -v apt-get >/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        may_install=(env)
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        may_install=(sudo env)
    fi
fi
if [ ${#may_install[@]} -gt 0 ]; then
    missing+=("${optional[@]}")
fi

install() {
    echo "setup: installing $*" >&2
    "${may_install[@]}" apt-get update -qq
    "${may_install[@]}" DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Not every distribution has it, and without it the page's test says that it was skipped.
if [ "${1:-}" = tests ] && [ -z "${QBRIDGE_CHROMIUM:-}" ] && [ ! -e /usr/bin/chromium ] \
    && [ ${#may_install[@]} -gt 0 ]; then
    install chromium || echo "setup: Chromium cannot be installed; the page is not tested in a browser" >&2
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: these are missing, and there is no apt-get here to install them: ${missing[*]}" >&2
    exit 1
fi
if [ ${#may_install[@]} -eq 0 ]; then
    echo "setup: these packages are missing and need root to install; run this, then make again:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y ${missing[*]} ${optional[*]}" >&2
    exit 1
fi
install "${missing[@]}"
