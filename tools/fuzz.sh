#!/usr/bin/env bash
# Fuzzes every parser of proto for a short while: SECONDS each (8 unless told), two at a time.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]
#
# Needs what the workspace needs and a C++ compiler: libFuzzer is built from source, and the
# coverage it steers by is a flag of the stable compiler (proto is safe Rust, so no sanitizer is
# missed). An input that breaks something stays in proto/fuzz/artifacts: mend it, and move it to
# proto/fuzz/findings/TARGET, where `cargo test -p ringway-proto` tries it for ever.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-8}
shift || true
if [ $# -gt 0 ]; then
    targets=("$@")
else
    targets=()
    for file in proto/fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/target/fuzz
export RUSTFLAGS='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares'
# With a target named, build scripts are built without these flags.
cargo build --release --quiet --manifest-path proto/fuzz/Cargo.toml --target "$host"

# Runs one target: kept inputs first, then new ones made from them. What it finds interesting is
# written to target/, not to the seeds.
fuzz() {
    local target=$1 work=$CARGO_TARGET_DIR/corpus/$1 dirs=() status=0
    mkdir -p "$work" "proto/fuzz/artifacts/$target"
    for dir in "proto/fuzz/seeds/$target" "proto/fuzz/findings/$target"; do
        [ -d "$dir" ] && dirs+=("$dir")
    done
    "$CARGO_TARGET_DIR/$host/release/$target" "$work" "${dirs[@]}" \
        -dict=proto/fuzz/http.dict -artifact_prefix="proto/fuzz/artifacts/$target/" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=2048 \
        -print_final_stats=1 >"$work.log" 2>&1 || status=$?
    printf '%-12s %s\n' "$target" "$([ $status = 0 ] && echo ok || echo FAILED): $(
        sed -n 's/^stat::number_of_executed_units: */inputs /p' "$work.log")"
    [ $status = 0 ] || { tail -n 40 "$work.log"; return 1; }
}

failed=0
for ((at = 0; at < ${#targets[@]}; at += 2)); do
    pids=()
    for target in "${targets[@]:at:2}"; do fuzz "$target" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
done
exit $failed
