#!/bin/sh
# Builds the stand-ins for libcuda, libnvrtc and libcublasLt that run the kernels on the processor, for tests.
#
# Usage: build.sh FOLDER. Prints the folder of the three libraries, a new one for each state of the sources.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || { echo "SKIPPED: no C++ compiler \"$compiler\"" >&2; exit 3; }
state=$(cat "$here"/*.h "$here"/*.cpp "$here"/build.sh "$here"/../*.cu "$here"/../*.cuh | sha256sum | cut -c1-16)
folder=$1/emulate-$state
if [ ! -e "$folder/libcublasLt.so" ]; then
    mkdir -p "$1"
    new=$(mktemp -d "$1/.emulate-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    # Fortified longjmp refuses to change stacks, which is how fibres work.
    flags="-std=c++17 -O2 -fPIC -shared -fno-strict-aliasing -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=0 -Wall -Wno-unknown-pragmas"
    # shellcheck disable=SC2086
    "$compiler" $flags -Wl,-soname,libcuda.so "$here/driver.cpp" "$here/matmul.cpp" -o "$new/libcuda.so"
    # The loader looks a library up by its soname, and a symbol in what a library needs: these two bring nothing of their own.
    for name in nvrtc cublasLt; do
        # shellcheck disable=SC2086
        "$compiler" $flags -Wl,-soname,lib$name.so -Wl,--no-as-needed -x c++ /dev/null -x none "$new/libcuda.so" \
            -Wl,-rpath,'$ORIGIN' -o "$new/lib$name.so"
    done
    mv -T "$new" "$folder" 2>/dev/null || [ -e "$folder/libcublasLt.so" ]
    trap - EXIT
fi
echo "$folder"
