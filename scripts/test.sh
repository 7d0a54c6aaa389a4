#!/usr/bin/env bash
# Runs the tests: units without a server, then the tests inside a server, then the black-box tests on whole clusters.
#
# Usage: test.sh units|server|all [arguments for the test runner]
# The black-box tests build nothing: they get the server's pg_config, the model folder and a scratch folder from here.
. "$(dirname "$0")/common.sh"
what=${1:-all}
shift || true
cd "$ROOT"

if [ "$what" = units ] || [ "$what" = all ]; then
    cargo test --locked --no-default-features -- "$@"
fi
if [ "$what" = units ]; then exit; fi

library=$("$ROOT/scripts/build.sh" dev pg_test)
pg_config=$("$ROOT/scripts/server.sh" test)
"$ROOT/scripts/install.sh" "$library" "$pg_config" >/dev/null

# A short path: the name of a Unix socket has at most 107 bytes.
scratch=$(mktemp -d /tmp/situ-XXXXXX)
chmod 755 "$scratch"
stop_all() {
    # Clusters are stopped by the tests themselves; this is for a test program that was killed.
    for pid in "$scratch"/*/data/postmaster.pid; do
        if [ -f "$pid" ]; then kill -QUIT "$(head -1 "$pid")" 2>/dev/null || true; fi
    done
    rm -rf "$scratch" 2>/dev/null || { sleep 1; rm -rf "$scratch"; }
}
trap stop_all EXIT
if [ "$(id -u)" = 0 ]; then chown "$SERVER_USER" "$scratch"; fi

export SITU_TEST_SERVER=$pg_config SITU_TEST_SCRATCH=$scratch SITU_TEST_USER=$SERVER_USER
export SITU_TEST_MODELS=$("$ROOT/scripts/models.sh")
export PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$(build_pg_config)}
cargo test --locked --no-default-features --features "pg$PG pg_test" --no-fail-fast \
    --test in_server --test cluster -- "$@"
