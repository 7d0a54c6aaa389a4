#!/usr/bin/env bash
# The demo's private cluster: reachable through its socket only, in a folder of mode 700.
#
# Usage: cluster.sh start|restart|stop|remove|socket
. "$(dirname "$0")/common.sh"
command=${1:?usage: cluster.sh start|restart|stop|remove|socket}
home=$SITU_RUN/demo-$PG
data=$home/data
socket=$home/socket

# The path of a Unix socket has at most 107 bytes.
if [ $((${#socket} + 20)) -gt 107 ]; then
    socket=/tmp/situ-$(printf '%s' "$home" | sha256sum | cut -c1-12)
fi

server() { as_server "$bin/$1" "${@:2}"; }
running() { [ -f "$data/postmaster.pid" ] && (cd / && server pg_ctl status -D "$data" >/dev/null 2>&1); }

bin=$SITU_RUN/server/demo-$PG/$(set -- $(server_layout "$PG"); echo "$2")/bin

start() {
    if running; then return; fi
    if [ ! -s "$data/PG_VERSION" ]; then
        note "initdb: a cluster in $home, owned by $SERVER_USER"
        rm -rf "$data"
        mkdir -p "$home"
        if [ "$(id -u)" = 0 ]; then chown "$SERVER_USER:" "$home"; fi
        (cd / && server initdb -A trust -U postgres -E UTF8 --locale=C -D "$data" >/dev/null)
    fi
    if [ ! -d "$socket" ]; then (cd / && as_server mkdir -m 700 "$socket"); fi
    # Rewritten at every start, so that what this script says is what the server reads.
    {
        echo "# written by scripts/cluster.sh"
        echo "shared_preload_libraries = 'situ'"
        echo "situ.model_dir = '$SITU_RUN/models'"
        echo "listen_addresses = ''"
        echo "unix_socket_directories = '$socket'"
        echo "unix_socket_permissions = 0700"
        echo "shared_buffers = '256MB'"
        echo "maintenance_work_mem = '256MB'"
        echo "max_wal_size = '2GB'"
    } | as_server tee "$data/situ.conf" >/dev/null
    if ! grep -q "^include 'situ.conf'" "$data/postgresql.conf"; then
        echo "include 'situ.conf'" | as_server tee -a "$data/postgresql.conf" >/dev/null
    fi
    (cd / && server pg_ctl -w -s -l "$home/log" start -D "$data" >/dev/null 2>&1) || {
        tail -20 "$home/log" >&2
        fail "the server does not start; its log is $home/log"
    }
}

stop() {
    if running; then
        (cd / && server pg_ctl -w -s -m fast stop -D "$data")
        note "stopped the cluster in $home"
    fi
}

case $command in
    start) start ;;
    restart) stop; start ;;
    stop) stop ;;
    remove)
        stop
        rm -rf "$home"
        case $socket in /tmp/situ-*) rm -rf "$socket" ;; esac
        note "removed $home"
        ;;
    socket) echo "$socket" ;;
    *) fail "usage: cluster.sh start|restart|stop|remove|socket" ;;
esac
