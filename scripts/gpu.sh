#!/usr/bin/env bash
# Tests and measurements on a CUDA card. The card's machine needs neither cargo nor a network: what it runs is packed before.
#
# Usage: gpu.sh pack           build the tests and the bench into .gpu/ of the checkout
#        gpu.sh run [MODEL..]  on the card's machine: the tests on the card, then the bench
#        gpu.sh sanitize       the tests under compute-sanitizer: memory errors, then races
#        gpu.sh all            pack where there is cargo, then run
# Without a card each part says SKIPPED.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT"
packed=$ROOT/.gpu

# CUDA's libraries: where the system has them, the toolkit's, or those that come with Python packages.
find_libraries() {
    local folders
    folders=$(python3 - <<'PYTHON' 2>/dev/null || true
import glob, site, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
found = [f.rsplit("/", 1)[0] for root in roots for f in glob.glob(root + "/nvidia/*/lib/lib*.so*")]
print(":".join(dict.fromkeys(found)))
PYTHON
)
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64:/usr/local/cuda/lib64:$folders
}

pack() {
    mkdir -p "$packed"
    local binary
    built() { sed -n 's/.*Executable .*(\(.*\))$/\1/p' | head -1; }
    binary=$(cargo test --locked --no-default-features --lib --no-run 2>&1 | tee /dev/stderr | built)
    cp "$binary" "$packed/tests"
    binary=$(cargo bench --locked --profile dev --no-default-features --bench gpu --no-run 2>&1 | tee /dev/stderr | built)
    cp "$binary" "$packed/bench"
    strip "$packed/tests" "$packed/bench" 2>/dev/null || true
}

run() {
    find_libraries
    if [ ! -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null; then
        echo "SKIPPED: gpu: no CUDA card on this machine"
        return
    fi
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader || true
    local failed=0
    SITU_TEST_CUDA=card "$packed/tests" --nocapture cuda gpu || failed=1
    SITU_BENCH_PEER=$ROOT/benches/gpu_peer.py "$packed/bench" "$@" || failed=1
    return $failed
}

sanitize() {
    find_libraries
    command -v compute-sanitizer >/dev/null || { echo "SKIPPED: gpu: no compute-sanitizer"; return; }
    # The filters leave out the tests that load large weights: a sanitizer slows the card down a hundred times.
    for tool in memcheck racecheck synccheck initcheck; do
        echo "==> $tool"
        SITU_TEST_CUDA=card compute-sanitizer --tool "$tool" --error-exitcode 1 "$packed/tests" cuda::tests::attention \
            cuda::tests::rows || true
    done
}

what=${1:-all}
shift || true
case $what in
    pack) pack ;;
    run) run "$@" ;;
    sanitize) sanitize ;;
    all)
        if command -v cargo >/dev/null; then pack; fi
        run "$@"
        ;;
    *) echo "usage: gpu.sh pack|run|sanitize|all" >&2; exit 2 ;;
esac
