#!/usr/bin/env bash
# Prints `GGML_AVX512=ON` and the like for what this machine's processor has beside AVX2, and `=OFF` for
# what it lacks: llama.cpp's build reads them. Its Rust package builds for AVX2 otherwise, where
# llama.cpp's own build takes all that is there. Prints nothing where that is not known.
set -euo pipefail

[ "$(uname -m)" = x86_64 ] && [ -r /proc/cpuinfo ] || exit 0
flags=" $(sed -n '/^flags/{s/.*: //p;q}' /proc/cpuinfo) "

has() {
    local flag
    for flag in "$@"; do
        [[ $flags == *" $flag "* ]] || return 1
    done
}

# What llama.cpp takes for granted.
has sse4_2 || echo GGML_SSE42=OFF
has avx || echo GGML_AVX=OFF
has avx2 || echo GGML_AVX2=OFF
has bmi2 || echo GGML_BMI2=OFF
has fma || echo GGML_FMA=OFF
has f16c || echo GGML_F16C=OFF

! has avx_vnni || echo GGML_AVX_VNNI=ON
if has avx512f avx512cd avx512vl avx512dq avx512bw; then
    echo GGML_AVX512=ON
    ! has avx512vbmi || echo GGML_AVX512_VBMI=ON
    ! has avx512_vnni || echo GGML_AVX512_VNNI=ON
    ! has avx512_bf16 || echo GGML_AVX512_BF16=ON
fi
