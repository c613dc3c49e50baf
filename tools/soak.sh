#!/usr/bin/env bash
# Checks that take too long for the test suite. Each part is run by name, prints what it saw, and
# ends with a line "PART: ok" or "PART: FAILED". A part is a function `soak_PART` below; its words
# in the program's names use "-" where the function has "_".
#
#   tools/soak.sh               the list of parts
#   tools/soak.sh PART [ARGS]   one of them
#   tools/soak.sh all           one after the other
#
# A part uses the release programs, which are built first, or those named by RINGWAY_BIN.
set -uo pipefail
cd "$(dirname "$0")/.."

# ---- what several parts need ----

# Builds the release programs unless RINGWAY_BIN names the gateway under test, as for the black-box
# suite.
programs() {
    [ -z "${RINGWAY_BIN:-}" ] || return 0
    export RINGWAY_BIN=$PWD/target/release/ringway
    cargo build --release --locked -p ringway --bin ringway &&
        cargo build --release --locked -p ringway-tools --bin ringway-worker --bin ringway-stand-in
}

# Installs a Go program into .tools/bin unless it is there: go_tool NAME MODULE@VERSION
go_tool() {
    [ -x ".tools/bin/$1" ] || GOBIN="$PWD/.tools/bin" GOFLAGS=-mod=mod go install "$2"
}

# A server of grpc-go that echoes.
GO_GRPC=$PWD/.tools/bin/gogrpc
go_grpc_server() {
    mkdir -p .tools/bin
    (cd engine/tests/interop/gogrpc && go build -o "$GO_GRPC" .)
}

# One of the long runs over several gateways: cluster NAME [COUNT]
cluster() { .venv/bin/python engine/tests/interop/soak_cluster.py "$@" "$GO_GRPC"; }

# ---- parts ----

# Streams and parked tunnels that are silent for 20 minutes (or ARGS seconds), before real gRPC
# servers with their defaults: nobody is told off for PINGs. RINGWAY_WORKER_BIN names the worker
# program if it is not beside the gateway's.
soak_quiet_streams() {
    go_grpc_server || return
    .venv/bin/python engine/tests/interop/quiet_streams.py "${1:-1200}" "$GO_GRPC"
}

# 100 000 requests to a function whose server refuses TCP: neither ports nor descriptors run out.
soak_refused_dials() { .venv/bin/python engine/tests/interop/soak_wasteful.py refused-dials; }

# 1 000 calls a second, each cancelled after 150 ms, for ten seconds on one connection.
soak_short_deadlines() { .venv/bin/python engine/tests/interop/soak_wasteful.py short-deadlines; }

# What it costs to reset 10 000 streams after 101 ms, against as many calls that finish.
soak_patient_resets() { .venv/bin/python engine/tests/interop/soak_wasteful.py patient-resets; }

# Whether a WebSocket's end frees its worker at once: sessions a second by WebSocket and by gRPC, with
# twenty users and twenty slots of ringway-worker. Arguments: see tools/soak/websockets.py.
soak_websockets() {
    go_tool k6 go.k6.io/k6@v1.4.0 || return
    go build -o .tools/bin/soak-talker tools/soak/talker.go || return
    python3 tools/soak/websockets.py .tools/bin/k6 .tools/bin/soak-talker "$@"
}

# Sessions a second over four ways to one function: each user of k6 connects, calls once and closes,
# again and again. A table; it fails if ringway-worker hands out less than 0.95 x what
# `dev --target` does. Arguments: [--seconds 10] [--rounds 3] [--users 1,5,50,200]
soak_sessions() {
    go_tool k6 go.k6.io/k6@v1.4.0 || return
    mkdir -p .tools/bin
    go build -o .tools/bin/soak-echo tools/soak/echo.go || return
    python3 tools/soak/sessions.py .tools/bin/k6 .tools/bin/soak-echo "$@"
}

# The simulator's night: so many fresh seeds of each kind in one piece. Prints where they began.
#   tools/soak.sh simulator [RUNS]
soak_simulator() {
    local runs=${1:-100000} profile=${RINGWAY_SIM_PROFILE:-release} log kind failed=0
    log=$(mktemp)
    for kind in every_seed_keeps every_seed_brings every_seed_relays; do
        echo "simulator: $kind, $runs fresh seeds"
        RINGWAY_SIM_RUNS=$runs cargo test -q --profile "$profile" -p ringway --test sim \
            "$kind" -- --nocapture >"$log" 2>&1 || failed=1
        grep -E '(fixed|fresh) seeds|^seed |^replay|test result' "$log" || tail -n 40 "$log"
    done
    rm -f "$log"
    return $failed
}

# 500 sessions, one of which is cut every 10 ms for a minute: everybody comes back to its worker.
soak_cuts() {
    RINGWAY_TEST_LONG_CUTS=1 .venv/bin/python -m pytest -q engine/tests/interop/test_cuts.py -k five_hundred
}

# Whether the simulator finds what is broken on purpose: one line of the gateway at a time, in a scratch
# worktree of HEAD. Prints the seed that finds each. By default those of the reactor, where it takes
# wrongly what the kernel told; or those named, or "all".
#   tools/soak.sh sim-faults [NAME...]
soak_sim_faults() {
    [ $# -gt 0 ] || set -- reactor
    [ "$1" != all ] || shift
    tools/mutate.sh "$@"
}

# Clients that fill 20 000 files leave the probe, the workers and the dials theirs.
soak_files() {
    RINGWAY_TEST_MANY_FILES=1 .venv/bin/python -m pytest -q -n 1 engine/tests/interop/test_files.py -k twenty_thousand
}

# What a new session costs a gateway by NATS and NVIDIA's API, against one by its own control plane:
# CPU at 200 a second, latency and where it goes. Fails above twice as much.
#   tools/soak.sh nvcf-cost [--rate 200] [--seconds 10] [--rounds 5]
soak_nvcf_cost() {
    .venv/bin/python engine/tests/interop/soak_nvcf_cost.py target/release/ringway-bench "$@"
}

# 120 clients at 20 slots for 12 s each, with the default wait and with one of 120 s; the gateway in
# `nvcf` mode is killed in the middle. RINGWAY_WORKER_BIN and RINGWAY_STAND_IN_BIN name those
# programs if they are not beside the gateway's.
soak_restarts() {
    RINGWAY_TEST_LONG_RESTARTS=1 .venv/bin/python -m pytest -q engine/tests/interop/test_nvcf_restart.py -k long_stays
}

# All that is installed, made and tried: the .debs in a root of their own, the image under a runtime,
# the static build against the dynamic one. It builds both in release, which takes long.
soak_package() { bash tools/package.sh try; }

# 100 calls a second on 50 sessions, 50 parked ones and 10 new sessions a second at a gateway in `nvcf`
# mode, with one fault of the table (engine/tests/interop/nvcf_faults.py) each minute, drawn from a
# seed. Nobody notices, and memory, descriptors, tables and latencies stay flat.
# RINGWAY_WORKER_BIN and RINGWAY_STAND_IN_BIN as for `restarts`.
#   tools/soak.sh nvcf-faults [SECONDS] [SEED]
soak_nvcf_faults() {
    .venv/bin/python engine/tests/interop/soak_nvcf_faults.py "$@"
}

# What a core looks at nothing else for (engine/tests/interop/soak_stalls.py). RINGWAY_BENCH_BIN names
# the bench if it is not beside the gateway.
stalls() { .venv/bin/python engine/tests/interop/soak_stalls.py "$@"; }

# What closed sessions leave behind: 90 s (or ARGS seconds) of connections with session, worker and one
# call at full speed. The last tenth costs at most 1.05 x the first, and memory stays.
soak_closed_sessions() { stalls closed-sessions "$@"; }

# Calls beside a scrape, and a list of all sessions, each second, with 8 000 (or ARGS) sessions that
# rest: p99.9 is at most 1.2 x what it is without, and no turn takes over 5 ms.
soak_scrapes() { stalls scrapes "$@"; }

# 10 000 functions and 1 000 tenants: a new session costs at most 1.1 x what it costs with four, and a
# reload beside 8 000 (or ARGS) sessions stalls no core.
soak_tables() { stalls tables "$@"; }

# 5 000 (or ARGS) clients that are cut at once and come back stall no core.
soak_comeback() { stalls comeback "$@"; }

# 5 000 (or ARGS) clients that come at once stall no core.
soak_storm() { stalls storm "$@"; }

# A log that nobody reads, beside new sessions at full speed: it stalls no core, and takes no sessions.
soak_blocked_log() { stalls blocked-log "$@"; }

# Three gateways in `nvcf` mode on hosts of their own behind balancers that know nothing (root). 1 000
# times a lost client comes back at any of them: no worker is asked, and nobody but its gateway.
#   tools/soak.sh cluster-returns [COUNT]
soak_cluster_returns() { go_grpc_server && cluster returns "$@"; }

# 100 times one of them is replaced, in turns, under 500 calls a second and 200 streams that end by
# themselves, with every session relayed: no call fails.
#   tools/soak.sh cluster-restarts [COUNT]
soak_cluster_restarts() { go_grpc_server && cluster restarts "$@"; }

# 1 000 times one of them is killed under load: sessions of the others notice nothing, nothing that it
# had queued is left, and the others hold what they held.
#   tools/soak.sh cluster-kills [COUNT]
soak_cluster_kills() { go_grpc_server && cluster kills "$@"; }

# What it costs to reach the wrong gateway: CPU of relayed calls, set-ups, returns, bad preludes.
# Fails above the targets (docs/many-gateways.md). `ringway-bench` has to be built.
#   tools/soak.sh cluster-cost [--rounds 5] [--seconds 2] [--samples 400] [--flood 5]
soak_cluster_cost() { .venv/bin/python engine/tests/interop/soak_cluster_cost.py "$@"; }

# ---- running them ----

parts() {
    declare -F | sed -n 's/^declare -f soak_//p' | tr _ -
}

run() {
    local part=$1 status=0
    shift
    # The simulator and the packages build what they need.
    case $part in
    simulator | package) ;;
    *) programs || status=$? ;;
    esac
    [ $status != 0 ] || "soak_${part//-/_}" "$@" || status=$?
    if [ $status = 0 ]; then echo "$part: ok"; else echo "$part: FAILED ($status)"; fi
    return $status
}

case ${1:-} in
'')
    echo "parts:"
    parts | sed 's/^/  /'
    ;;
all)
    failed=0
    for part in $(parts); do run "$part" || failed=1; done
    exit $failed
    ;;
*)
    if ! parts | grep -qx -- "$1"; then
        echo "no part is named $1; the parts are:" >&2
        parts | sed 's/^/  /' >&2
        exit 2
    fi
    run "$@"
    ;;
esac
