#!/usr/bin/env bash
# Installs what the test suite needs and nothing else: Debian packages, a few Go programs into
# .tools/bin and a Python environment into .venv. Safe to run again; quick when all is there.
# Needs: Debian, Rust, Go, Python 3.11 or newer; root or sudo for the Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."

H2SPEC=github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
HELM=helm.sh/helm/v3/cmd/helm@v3.16.4
# Tests in Rust and in Python start `.tools/bin/nats-server` of the repository's root (from a test
# of a crate: `concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/nats-server")`), never one of the
# system: Debian's lacks the auth callout.
NATS_SERVER=github.com/nats-io/nats-server/v2@v2.11.17
REQUIREMENTS=engine/tests/interop/requirements.txt

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

debian_packages() {
    local missing=()
    for package in nghttp2-client curl haproxy openssl iproute2 chromium-headless-shell valgrind \
        systemd; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    command -v c++ >/dev/null || missing+=(g++)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} = 0 ] && return
    echo "installing Debian packages: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null
}

# A program is current when the stamp beside it names the wanted version.
go_program() {
    local name=$1 wanted=$2 stamp=".tools/bin/.$1.version"
    if [ -x ".tools/bin/$name" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "building $wanted"
    mkdir -p .tools/bin
    GOBIN="$PWD/.tools/bin" GOFLAGS=-mod=mod go install "$wanted"
    echo "$wanted" >"$stamp"
}

python_environment() {
    if cmp -s "$REQUIREMENTS" .venv/.requirements && .venv/bin/python -c 'import grpc, pytest' \
        2>/dev/null; then
        return
    fi
    echo "creating .venv"
    # A half-made environment, or one whose interpreter has gone, is started anew.
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
    cp "$REQUIREMENTS" .venv/.requirements
}

debian_packages
go_program h2spec "$H2SPEC"
go_program grpcurl "$GRPCURL"
go_program nats-server "$NATS_SERVER"
go_program helm "$HELM"
python_environment
