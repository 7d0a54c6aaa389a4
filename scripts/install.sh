#!/usr/bin/env bash
# Installs a built library with its control file and SQL into a server.
#
# Usage: install.sh LIBRARY PG_CONFIG
#
# Every file is written beside its place and renamed into it: a running server keeps the library it has mapped.
# Files that would not change are left alone. Prints "changed" when something was installed, else "unchanged".
. "$(dirname "$0")/common.sh"
library=${1:?usage: install.sh LIBRARY PG_CONFIG}
pg_config=${2:?usage: install.sh LIBRARY PG_CONFIG}
version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$ROOT/situ.control")
extension=$("$pg_config" --sharedir)/extension
[ -f "$library" ] || fail "no library $library"
[ -f "$extension/vector.control" ] || note "warning: pgvector is not installed in this server; situ requires it"

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

state=unchanged
place() {
    if ! cmp -s "$1" "$2"; then
        cp "$1" "$2.new"
        chmod "$3" "$2.new"
        mv -f "$2.new" "$2"
        state=changed
    fi
}
place "$library" "$("$pg_config" --pkglibdir)/situ.so" 755
place "$sql" "$extension/situ--$version.sql" 644
for script in "$ROOT"/sql/situ--*--*.sql; do
    if [ -e "$script" ]; then place "$script" "$extension/$(basename "$script")" 644; fi
done
place "$ROOT/situ.control" "$extension/situ.control" 644
note "$state: situ $version in $("$pg_config" --pkglibdir)"
echo "$state"
