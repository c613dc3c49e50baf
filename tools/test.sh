#!/usr/bin/env bash
# Installs what the tests need and runs them all. Every stage runs even after one has failed,
# so that one run shows everything; the exit code is non-zero if any stage failed.
#
#   tools/test.sh                    everything
#   tools/test.sh interop [ARGS]     only the black-box suite; ARGS go to pytest
set -uo pipefail
cd "$(dirname "$0")/.."

SUITE=engine/tests/interop
failed=()
timings=()
# All that the stages write, for the number of tests in the last line.
written=$(mktemp)
trap 'rm -f "$written"' EXIT

# note NAME SECONDS STATUS: a line of the table.
note() {
    timings+=("$(printf '%5d s  %-18s %s' "$2" "$1" "$([ "$3" = 0 ] && echo ok || echo "FAILED ($3)")")")
    [ "$3" = 0 ] || failed+=("$1")
}

stage() {
    local name=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s\n' "$name"
    "$@" 2>&1 | tee -a "$written" || status=$?
    note "$name" $((SECONDS - start)) $status
    return $status
}

# How many tests said so (`passed`, `failed`), by the closing lines of cargo's and pytest's runs.
tests() {
    grep -aE '^(test result:|=+ .* in [0-9.]+s)' "$written" | grep -oE "[0-9]+ $1" |
        awk '{ sum += $1 } END { print sum + 0 }'
}

# The table of all stages, and one line that says whether all passed. It ends the output.
verdict() {
    printf '\n=== stages\n'
    printf '%s\n' "${timings[@]}"
    local said="$(tests passed) passed, $(tests failed) failed in ${SECONDS}s"
    if [ ${#failed[@]} = 0 ]; then
        echo "=== $said: all ${#timings[@]} stages passed ==="
    else
        echo "=== $said: FAILED ${failed[*]} (${#failed[@]} of ${#timings[@]} stages) ==="
        return 1
    fi
}

# A stage that others run beside: `beside NAME COMMAND...` begins it, `join` waits for it and shows
# what it wrote. One at a time.
beside() {
    beside_name=$1 beside_log=$(mktemp)
    shift
    (
        start=$SECONDS status=0
        "$@" || status=$?
        echo "$((SECONDS - start)) $status" >"$beside_log.end"
    ) >"$beside_log" 2>&1 &
    beside_job=$!
}
join() {
    local seconds=0 status=1
    wait "$beside_job"
    printf '\n=== %s\n' "$beside_name"
    cat "$beside_log"
    read -r seconds status <"$beside_log.end"
    rm -f "$beside_log" "$beside_log.end"
    note "$beside_name" "$seconds" "$status"
}

# The gateway as it is shipped, by itself: so its parts are those that `micro` has compiled
# already. The two programs that stand around it are optimised and no more: their profile costs
# half of what a release build does.
programs() {
    cargo build --release --locked -p ringway --bin ringway && around
}
around() {
    cargo build --profile around --locked -p ringway-tools --bin ringway-worker --bin ringway-stand-in
}
export RINGWAY_WORKER_BIN=${RINGWAY_WORKER_BIN:-$PWD/target/around/ringway-worker}
export RINGWAY_STAND_IN_BIN=${RINGWAY_STAND_IN_BIN:-$PWD/target/around/ringway-stand-in}
# Tests marked `alone` measure time, memory or load: they get the machine to themselves.
interop_parallel() {
    .venv/bin/python -m pytest "$SUITE" -m 'not alone' -n 4 --dist loadfile "$@"
}
# What is written for `ringway dev`, with a worker process or a function that is dialled ($1);
# a grpcio server has no /echo.
interop_worker() {
    local kind=$1
    shift
    RINGWAY_TEST_WORKER=$kind .venv/bin/python -m pytest \
        "$SUITE"/test_{grpcio,sessions,answers,stop,observed,programs}.py \
        -m 'not alone' -n 4 --dist loadfile \
        -k 'not curl_echo and not curl_one_mebibyte and not cookie_jar' "$@"
}
# Everything again on two cores: what belongs together lands apart.
interop_cores() {
    RINGWAY_TEST_CORES=2 interop_parallel "$@"
}
# One file a subject again, on hosts without io_uring: calls and streams, frames, sessions, slow
# peers, attacks, the end.
interop_epoll() {
    local files=()
    for subject in grpcio relay sessions slow_peers attacks stop; do
        files+=("$SUITE/test_$subject.py")
    done
    RINGWAY_TEST_IO=epoll .venv/bin/python -m pytest "${files[@]}" -m 'not alone' -n 4 \
        --dist loadfile "$@"
}
interop_alone() {
    .venv/bin/python -m pytest "$SUITE" -m alone --durations=15 "$@"
}

stage install bash tools/install-test-tools.sh || { verdict; exit 1; }

if [ "${1:-}" = interop ]; then
    shift
    stage build programs || { verdict; exit 1; }
    exec .venv/bin/python -m pytest "$SUITE" "$@"
fi

# In a tree that nobody has built in yet nothing is gained by what incremental builds keep.
[ -d target/debug/incremental ] || export CARGO_INCREMENTAL=0
stage format cargo fmt --all --check
stage ruff .venv/bin/python -m ruff check --quiet --no-cache --select F,E9 bench engine tools
stage clippy cargo clippy --locked --workspace --all-targets -- -D warnings
stage unit cargo test --locked --workspace --no-fail-fast
# It compiles with one processor for most of its time, and counts instructions, which do not
# depend on what else runs. The build waits until it has compiled; that of the programs around the
# gateway has a folder of its own and need not.
beside micro bash tools/micro.sh
stage around around
# Of the HTTP/2 library alone; the black-box suite asks the same of the gateway.
stage h2spec env H2SPEC="$PWD/.tools/bin/h2spec" \
    cargo test --locked --workspace --test h2_spec -- --ignored
# The reader of these pages works on the code: private items are shown, and may be linked to.
stage doc env RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' \
    cargo doc --locked --workspace --no-deps --document-private-items --quiet
stage fuzz bash tools/fuzz.sh 5
if stage build programs; then
    # Nothing may run beside what measures.
    join
    stage interop-parallel interop_parallel
    stage interop-cores interop_cores
    stage interop-worker interop_worker process
    stage interop-dial interop_worker dial
    stage interop-epoll interop_epoll
    stage interop-alone interop_alone
else
    join
fi
verdict
