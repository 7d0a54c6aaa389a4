#!/usr/bin/env bash
# Builds the library for one server version, and prints the path of the shared object.
#
# Usage: build.sh dev|release [extra feature ...]
#
# cargo writes the library of every feature set to the same file, and takes a file that is there for fresh even when
# another feature set wrote it last. So the file that a build left is remembered by its hash, and a file that is not
# the remembered one is removed first, which makes cargo link it anew.
. "$(dirname "$0")/common.sh"
profile=${1:?usage: build.sh dev|release [feature ...]}
shift
features="pg$PG $*"
features=${features% }
case $profile in
    dev) folder=debug ;;
    release) folder=release ;;
    *) fail "profile $profile: dev or release" ;;
esac
cd "$ROOT"
target=$(target_directory)
[ -n "$target" ] || fail "cargo metadata names no target directory"
library=$target/$folder/libsitu.so
stamp="$target/$folder/.situ-${features// /-}"

export PGRX_PG_CONFIG_PATH=${PGRX_PG_CONFIG_PATH:-$(build_pg_config)}
if [ ! -e "$library" ] || [ "$(sha256sum <"$library")" != "$(cat "$stamp" 2>/dev/null)" ]; then
    rm -f "$library" "$target/$folder/deps/libsitu.so"
fi
note "cargo build --profile $profile --features '$features'"
cargo build --locked --profile "$profile" --no-default-features --features "$features" --lib >&2
sha256sum <"$library" >"$stamp"
echo "$library"
