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

stage() {
    local name=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s\n' "$name"
    "$@" || status=$?
    timings+=("$(printf '%4ds  %-18s %s' $((SECONDS - start)) "$name" \
        "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")")")
    [ $status = 0 ] || failed+=("$name")
    return $status
}

verdict() {
    printf '\n=== stages\n'
    printf '%s\n' "${timings[@]}"
    [ ${#failed[@]} = 0 ] || echo "failed: ${failed[*]}"
}

# Each by itself: so the gateway's parts are those that `micro` has compiled already.
programs() {
    cargo build --release --locked -p ringway --bin ringway &&
        cargo build --release --locked -p ringway-tools --bin ringway-worker --bin ringway-stand-in
}
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
    .venv/bin/python -m pytest "$SUITE" -m alone "$@"
}

stage install bash tools/install-test-tools.sh || { verdict; exit 1; }

if [ "${1:-}" = interop ]; then
    shift
    stage build programs || { verdict; exit 1; }
    exec .venv/bin/python -m pytest "$SUITE" "$@"
fi

stage format cargo fmt --all --check
stage clippy cargo clippy --locked --workspace --all-targets -- -D warnings
stage unit cargo test --locked --workspace --no-fail-fast
# Of the HTTP/2 library alone; the black-box suite asks the same of the gateway.
stage h2spec env H2SPEC="$PWD/.tools/bin/h2spec" \
    cargo test --locked --workspace --test h2_spec -- --ignored
stage fuzz bash tools/fuzz.sh 5
stage micro bash tools/micro.sh
# The reader of these pages works on the code: private items are shown, and may be linked to.
stage doc env RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' \
    cargo doc --locked --workspace --no-deps --document-private-items --quiet
if stage build programs; then
    stage interop-parallel interop_parallel
    stage interop-cores interop_cores
    stage interop-worker interop_worker process
    stage interop-dial interop_worker dial
    stage interop-epoll interop_epoll
    # The verdict comes before the last stage so that pytest's closing line ends the output.
    verdict
    stage interop-alone interop_alone
else
    verdict
fi

[ ${#failed[@]} = 0 ]
