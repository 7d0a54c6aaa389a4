#!/usr/bin/env bash
# Makes this checkout's own copy of the embedded server, and prints the path of its pg_config.
#
# Usage: server.sh NAME        (NAME: test, demo; each copy has its own extension files)
# A copy of its own lets two checkouts, or the tests and a running demo, have different libraries installed.
. "$(dirname "$0")/common.sh"
name=${1:?usage: server.sh NAME}
layout=($(server_layout "$PG"))
from=$SITU_CACHE/${layout[0]}
copy=$SITU_RUN/server/$name-$PG
package=${layout[1]%%/*}
[ -x "$from/${layout[1]}/bin/postgres" ] || fail "no server in $from: run scripts/deps.sh build first"

mkdir -p "$SITU_RUN/server"
chmod 755 "$SITU_RUN" "$SITU_RUN/server"
exec 9>"$SITU_RUN/server/.lock"
flock 9
if [ ! -x "$copy/${layout[1]}/bin/postgres" ]; then
    note "copying PostgreSQL $PG to $copy"
    rm -rf "$copy" "$copy.new"
    mkdir -p "$copy.new/${layout[1]}"
    # The programs find their libraries by relative paths: the folders keep their places to each other.
    cp -a "$from/$package.libs" "$copy.new/"
    cp -a "$from/${layout[1]}/." "$copy.new/${layout[1]}/"
    chmod -R a+rX "$copy.new"
    mv "$copy.new" "$copy"
fi
echo "$copy/${layout[1]}/bin/pg_config"
