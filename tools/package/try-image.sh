#!/usr/bin/env bash
# Runs the image under runc as a cluster would: user 1000, no arguments, no capability, nothing to
# write to, 1 024 descriptors until it asks for more. With the package's seccomp profile io_uring
# drives it; with the same profile less its three calls, epoll does and says so.
#
#   try-image.sh LAYOUT:TAG     needs root, umoci, runc
set -euo pipefail
IMAGE=$1
HERE=$(cd "$(dirname "$0")" && pwd)
SPACE=ringway-try-$$
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringway-image.XXXXXX")

# shellcheck disable=SC2317
clean_up() {
    runc delete -f "$SPACE" 2>/dev/null || true
    ip netns delete "$SPACE" 2>/dev/null || true
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
fail() {
    echo "FAILED: $*" >&2
    tail -n 30 "$folder/log" >&2
    exit 1
}
is() { [ "$2" = "$3" ] || fail "$1: $2, expected $3"; }
get() { ip netns exec "$SPACE" curl -s -m 5 "$@" || true; }
code() { get -o /dev/null -w '%{http_code}' "$@"; }

umoci unpack --image "$IMAGE" "$folder/bundle"
ip netns add "$SPACE"
ip -n "$SPACE" link set lo up

# try_one NAME BACKEND CALLS-THAT-ARE-FORBIDDEN
try_one() {
    local name=$1 backend=$2 forbidden=$3 pid runner
    python3 "$HERE/bundle.py" "$folder/bundle/config.json" "$HERE/seccomp.json" \
        "/run/netns/$SPACE" "$forbidden"
    runc run --bundle "$folder/bundle" "$SPACE" \
        >"$folder/out" 2>"$folder/log" </dev/null &
    runner=$!
    for _ in $(seq 100); do
        grep -q '^ready ' "$folder/out" && break
        kill -0 $runner 2>/dev/null || fail "$name: it ended"
        sleep 0.1
    done
    grep '^ready ' "$folder/out" || fail "$name: not ready in 10 s"
    pid=$(runc state "$SPACE" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
    is "$name: users" "$(awk '/^Uid|^Gid/ { printf "%s ", $2 }' "/proc/$pid/status")" "1000 1000 "
    is "$name: seccomp, new privileges" \
        "$(awk '/^Seccomp:|^NoNewPrivs:/ { printf "%s ", $2 }' "/proc/$pid/status")" "1 2 "
    is "$name: capabilities" "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")" \
        0000000000000000
    is "$name: descriptors it may open, of those it may have" \
        "$(awk '/^Max open files/ { print $4 }' "/proc/$pid/limits")" \
        "$(awk '/^Max open files/ { print $5 }' "/proc/$pid/limits")"
    # The data cores answer this one, the control thread the others.
    is "$name: /info" "$(code http://127.0.0.1:10081/info)" 200
    is "$name: /live" "$(code http://127.0.0.1:10083/live)" 200
    # Neither NATS nor the API is there.
    is "$name: /ready" "$(code http://127.0.0.1:10083/ready)" 503
    get http://127.0.0.1:10083/metrics | grep "^ringway_io_backend.*\"$backend\".* 2$" ||
        fail "$name: not on $backend"
    case $backend in
    epoll) grep 'io_uring cannot be used' "$folder/log" | cut -c 1-160 || fail "$name: says nothing" ;;
    *) ! grep -q 'io_uring cannot be used' "$folder/log" || fail "$name: no io_uring" ;;
    esac
    runc kill "$SPACE" TERM
    local ended=0
    wait $runner || ended=$?
    is "$name: exit code" $ended 0
    runc delete -f "$SPACE" 2>/dev/null || true
    echo "$name: ok"
}

try_one "with io_uring" io_uring ""
try_one "without io_uring" epoll "io_uring_setup io_uring_enter io_uring_register"
