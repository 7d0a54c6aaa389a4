#!/usr/bin/env bash
# Measurements against peers, in the demo's server with the release build.
#
# Usage: bench.sh index
. "$(dirname "$0")/common.sh"
what=${1:?usage: bench.sh index}
cd "$ROOT"
"$ROOT/scripts/deps.sh" demo
library=$("$ROOT/scripts/build.sh" release)
pg_config=$("$ROOT/scripts/server.sh" demo)
"$ROOT/scripts/models.sh" >/dev/null
if [ "$("$ROOT/scripts/install.sh" "$library" "$pg_config")" = changed ]; then
    "$ROOT/scripts/cluster.sh" restart
else
    "$ROOT/scripts/cluster.sh" start
fi
SITU_BENCH_SOCKET=$("$ROOT/scripts/cluster.sh" socket)
export SITU_BENCH_SOCKET PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$(build_pg_config)}
# Of the library only the server matters here: the client's own speed is that of the development profile.
cargo bench --locked --quiet --profile dev --no-default-features --features "pg$PG pg_test" --bench "$what"
