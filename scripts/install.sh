#!/usr/bin/env bash
# Installs a built library with its control file and SQL into a server, or removes them.
#
# Usage: install.sh LIBRARY PG_CONFIG
#        install.sh --uninstall PG_CONFIG
#   DESTDIR   a folder that is put before every path, for packages
#
# Every file is written beside its place and renamed into it: a running server keeps the library it has mapped.
# Files that would not change are left alone. Prints "changed" when something was installed or removed, else "unchanged".
#
# It does not source common.sh, which is about running servers: here nothing is started, and no user is made.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
note() { printf '%s\n' "==> $*" >&2; }
fail() { printf '%s\n' "error: $*" >&2; exit 1; }

usage="usage: install.sh LIBRARY PG_CONFIG, or install.sh --uninstall PG_CONFIG"
library=${1:?$usage}
pg_config=${2:-}
[ -n "$pg_config" ] || fail "no pg_config: PG_CONFIG=/path/to/bin/pg_config says which server is meant"
[ -x "$pg_config" ] || fail "$pg_config is no program: PG_CONFIG=/path/to/bin/pg_config says which server is meant"
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$ROOT/situ.control")
libraries=${DESTDIR:-}$("$pg_config" --pkglibdir)
extension=${DESTDIR:-}$("$pg_config" --sharedir)/extension
state=unchanged

if [ "$library" = --uninstall ]; then
    for file in "$libraries/situ.so" "$extension/situ.control" "$extension"/situ--*.sql; do
        if [ -e "$file" ]; then
            rm -f "$file" || fail "cannot remove $file: run as a user who may write there"
            state=changed
        fi
    done
    case $state in
        changed) note "removed situ from $libraries and $extension" ;;
        *) note "no situ in $libraries and $extension" ;;
    esac
    echo "$state"
    exit
fi

[ -f "$library" ] || fail "no library $library: make build makes it"
if [ -n "${DESTDIR:-}" ]; then
    mkdir -p "$libraries" "$extension"
elif [ ! -f "$extension/vector.control" ]; then
    note "warning: pgvector is not installed in this server; situ requires it"
fi
for folder in "$libraries" "$extension"; do
    [ -d "$folder" ] || fail "no folder $folder: is $pg_config of a server with its development files? See make deps"
    [ -w "$folder" ] || fail "cannot write to $folder: run as a user who may (sudo), or give DESTDIR"
done

# The parts are numbered, and concatenated in that order.
sql=$(mktemp)
trap 'rm -f "$sql"' EXIT
{
    echo '\echo Use "CREATE EXTENSION situ CASCADE" to load this file. \quit'
    for part in "$ROOT"/sql/[0-9][0-9]_*.sql; do
        [ -e "$part" ] || fail "no SQL parts in sql/"
        cat "$part"
        echo
    done
} >"$sql"

place() {
    if ! cmp -s "$1" "$2"; then
        cp "$1" "$2.new"
        chmod "$3" "$2.new"
        mv -f "$2.new" "$2"
        state=changed
    fi
}
place "$library" "$libraries/situ.so" 755
place "$sql" "$extension/situ--$version.sql" 644
for script in "$ROOT"/sql/situ--*--*.sql; do
    if [ -e "$script" ]; then place "$script" "$extension/$(basename "$script")" 644; fi
done
place "$ROOT/situ.control" "$extension/situ.control" 644
note "$state: situ $version in $libraries"
echo "$state"
