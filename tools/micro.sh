#!/usr/bin/env bash
# Counts the instructions of the hot paths and fails if one has risen by more than 5 %. Needs
# valgrind (tools/install-test-tools.sh).
#
#   tools/micro.sh                   compare with bench/micro/accepted.json
#   tools/micro.sh --accept          accept what is counted now
#   tools/micro.sh --only relay --out DIR    some cases; keep callgrind's profiles
set -euo pipefail
cd "$(dirname "$0")/.."

# Flags of the environment would make another program than the one that was counted.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
# Built alone, whatever else is there: the features of a package, and with them its code, are
# those that all packages of one build ask for.
cargo build --release --locked --quiet -p ringway-micro
exec "${CARGO_TARGET_DIR:-target}/release/ringway-micro" \
    --compiler "$(rustc --version | cut -d' ' -f1,2)" "$@"
