#!/usr/bin/env bash
# Compiles the CUDA kernels without a card for the architectures that are supported, with NVRTC from PyPI, and prints the
# registers, spills and shared memory of each kernel. Fails where one does not compile or spills.
#
# Usage: kernels.sh [architecture ...]   (default: sm_80 sm_86 sm_89 sm_90)
# The wheel and the reports lie in SITU_CACHE; a second run compiles what has changed.
. "$(dirname "$0")/common.sh"

wheel="nvidia_cuda_nvrtc-13.0.88"
hash=ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
case $(uname -m) in x86_64) ;; *) echo "SKIPPED: kernels: the pinned NVRTC is for x86_64"; exit ;; esac
libraries=$SITU_CACHE/nvrtc/nvidia/cu13/lib
mkdir -p "$SITU_CACHE/wheels"
exec 9>"$SITU_CACHE/.lock"
flock 9
if [ ! -e "$libraries/libnvrtc.so.13" ]; then
    file=$(ls "$SITU_CACHE/wheels/$wheel-"*.whl 2>/dev/null | head -1 || true)
    if [ -z "$file" ]; then
        note "downloading $wheel"
        if ! python3 -m pip download -q --no-deps --only-binary=:all: --platform manylinux_2_12_x86_64 \
            -d "$SITU_CACHE/wheels" nvidia-cuda-nvrtc==13.0.88 >&2; then
            echo "SKIPPED: kernels: NVRTC cannot be downloaded from here"
            exit
        fi
        file=$(ls "$SITU_CACHE/wheels/$wheel-"*.whl | head -1)
    fi
    if ! echo "$hash  $file" | sha256sum --check --status; then
        mv -f "$file" "$file.refused"
        fail "$wheel is not the file that was pinned (sha256 $hash): it is kept as $file.refused"
    fi
    python3 "$ROOT/scripts/unpack_wheel.py" "$file" "$SITU_CACHE/nvrtc"
fi
flock -u 9
if [ $# -eq 0 ]; then set -- sm_80 sm_86 sm_89 sm_90; fi
python3 "$ROOT/scripts/kernels.py" "$libraries" "$SITU_CACHE/kernels" "$@"
