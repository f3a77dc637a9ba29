#!/usr/bin/env bash
# Puts a CUDA toolkit together out of Python packages, once, and prints the settings that a build
# with `--features cuda` needs. No GPU, no driver, nothing of the system's is touched.
#
#     eval "$(scripts/cuda-toolkit.sh CACHE_DIR)"
#     cargo build --release -p qbridge-cli --features cuda
#
# CUDA_COMPUTE_CAP is the GPU's compute capability, 90 (Hopper) unless it is set.
set -euo pipefail
cache=$1
here=$(cd "$(dirname "$0")" && pwd)

packages=$("$here/pip-target.sh" "$here/cuda-requirements.txt" "$cache")
root=$packages/nvidia/cu13
if [ ! -e "$root/.complete" ]; then
    # The linker looks for libNAME.so, the packages have libNAME.so.13.
    for library in "$root"/lib/lib*.so.*; do
        name=$(basename "$library")
        [ -e "$root/lib/${name%%.so.*}.so" ] || ln -s "$name" "$root/lib/${name%%.so.*}.so"
    done
    [ -e "$root/lib64" ] || ln -s lib "$root/lib64"
    chmod +x "$root"/bin/* "$root"/nvvm/bin/*

    # The driver's library comes with the driver. To link, a library with its names will do.
    mkdir -p "$root/lib/stubs"
    functions=$(printf '#include <cuda.h>\n#include <cudaProfiler.h>\n' | cc -E -P -I"$root/include" - 2>/dev/null \
        || printf '#include <cuda.h>\n' | cc -E -P -I"$root/include" -)
    grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' <<<"$functions" | tr -d ' (' | sort -u \
        | sed 's/.*/int &(void) { return 999; }/' >"$root/lib/stubs/libcuda.c"
    cc -shared -fPIC -w -fno-builtin -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so" "$root/lib/stubs/libcuda.c"

    # llama-cpp-sys-2 asks for static libraries, which the packages do not have. What would be in
    # them comes from the shared ones, which candle's crates link.
    for library in cublas_static cublasLt_static culibos; do
        rm -f "$root/lib/lib$library.a"
        ar rcs "$root/lib/lib$library.a"
    done
    touch "$root/.complete"
fi

capability=${CUDA_COMPUTE_CAP:-90}
cat <<END
export CUDA_HOME='$root' CUDA_PATH='$root' CUDA_ROOT='$root' CUDA_LIBRARY_PATH='$root' CUDAToolkit_ROOT='$root'
export CUDACXX='$root/bin/nvcc' NVCC='$root/bin/nvcc' PATH='$root/bin':"\$PATH"
export CUDA_COMPUTE_CAP=$capability CMAKE_CUDA_ARCHITECTURES=$capability
export LIBRARY_PATH='$root/lib:$root/lib/stubs'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
END
