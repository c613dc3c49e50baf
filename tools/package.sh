#!/usr/bin/env bash
# Makes what is installed, and tries it. Results are in target/package.
#
#   tools/package.sh PART...
#
#   musl        both programs static (tools/package/musl.sh)
#   tarball     them, with units, pages and completions, as one file
#   deb         ringway_VERSION_ARCH.deb and ringway-worker_VERSION_ARCH.deb
#   image       a container image as an OCI layout (tools/package/image.sh)
#   try-deb     installs, starts, drains, upgrades and purges in a root of its own (mmdebstrap)
#   try-image   runs the image under a container runtime, with io_uring and without
#   try-musl    benchmark rows of the static build against those of the dynamic one
#   try         all three, after making what they need
#
# The .debs and the benchmark take the dynamic programs of RINGWAY_PROFILE (release).
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=$PWD/target/package
PROFILE=${RINGWAY_PROFILE:-release}
DYNAMIC=$PWD/target/$PROFILE
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
CARGO_DEB=3.8.0

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs Debian packages unless their programs are there: needs PROGRAM PACKAGE...
needs() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "$@" >/dev/null
}

dynamic_programs() {
    cargo build --profile "$PROFILE" --locked -p ringway --bin ringway
    cargo build --profile "$PROFILE" --locked -p ringway-tools --bin ringway-worker
}

# Pages and completions, made by the programs of a folder: share FOLDER
share() {
    local shell
    rm -rf "$OUT/share"
    mkdir -p "$OUT/share/man" "$OUT/share/man-worker"
    "$1/ringway" man "$OUT/share/man"
    "$1/ringway-worker" man "$OUT/share/man-worker"
    for program in ringway ringway-worker; do
        for shell in bash zsh fish; do
            "$1/$program" completions $shell >"$OUT/share/$program.$shell"
        done
        mv "$OUT/share/$program.zsh" "$OUT/share/_$program"
    done
}

part_musl() {
    needs musl-gcc musl-tools
    bash tools/package/musl.sh
}

part_tarball() {
    local name="ringway-$VERSION-$(uname -m)-linux-musl" root
    root=$OUT/$name
    share "$OUT/musl"
    rm -rf "$root" && mkdir -p "$root"/{bin,systemd,man/man1,completions}
    install -m 755 "$OUT"/musl/ringway "$OUT"/musl/ringway-worker "$root/bin/"
    install -m 644 tools/package/systemd/* "$root/systemd/"
    install -m 644 "$OUT"/share/man/*.1 "$OUT"/share/man-worker/*.1 "$root/man/man1/"
    install -m 644 "$OUT"/share/{ringway,ringway-worker}.{bash,fish} \
        "$OUT"/share/_ringway "$OUT"/share/_ringway-worker "$root/completions/"
    mkdir -p "$root/docs/reference"
    install -m 644 docs/*.md "$root/docs/"
    install -m 644 docs/reference/*.md "$root/docs/reference/"
    install -m 644 LICENSE README.md docs/nvcf.env tools/package/seccomp.json \
        tools/package/deb/ringway.toml "$root/"
    # The same sources make the same file.
    tar -C "$OUT" --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | gzip -9n >"$OUT/$name.tar.gz"
    rm -rf "$root"
    ls -l "$OUT/$name.tar.gz"
}

# deb [VERSION]
part_deb() {
    local version=${1:-$VERSION} deb=.tools/cargo-deb/bin/cargo-deb
    if [ "$($deb --version 2>/dev/null)" != "cargo-deb $CARGO_DEB" ]; then
        cargo install --quiet --locked --root .tools/cargo-deb cargo-deb --version "$CARGO_DEB"
    fi
    [ -n "${PACKAGED:-}" ] || dynamic_programs
    share "$DYNAMIC"
    for package in ringway ringway-worker; do
        $deb --no-build --locked --profile "$PROFILE" ${FAST:+--fast} \
            -p "${package/worker/tools}" --deb-version "$version-1" -o "$OUT/"
    done
}

part_image() {
    needs umoci umoci
    bash tools/package/image.sh
}

part_try_deb() {
    needs mmdebstrap mmdebstrap
    dynamic_programs
    rm -f "$OUT"/*.deb
    # Two versions of one program: what is tried is how they follow each other.
    FAST=yes PACKAGED=yes part_deb 0.0.9
    FAST=yes PACKAGED=yes part_deb
    as_root bash tools/package/try-deb.sh "$OUT" 0.0.9 "$VERSION"
}

part_try_image() {
    needs umoci umoci
    needs runc runc
    as_root bash tools/package/try-image.sh "$OUT/image:$VERSION"
}

part_try_musl() {
    python3 tools/package/try_musl.py "$DYNAMIC" "$OUT/musl"
}

part_try() {
    part_musl
    part_tarball
    part_image
    part_try_image
    part_try_deb
    cargo build --profile "$PROFILE" --locked -p ringway-bench
    part_try_musl
}

mkdir -p "$OUT"
if [ $# = 0 ]; then
    sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
    exit 2
fi
for part in "$@"; do
    if ! declare -F "part_${part//-/_}" >/dev/null; then
        echo "error: no part is named $part; \`tools/package.sh\` lists them" >&2
        exit 2
    fi
    "part_${part//-/_}" || { status=$?; echo "$part: FAILED ($status)"; exit $status; }
    echo "$part: ok"
done
