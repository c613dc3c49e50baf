#!/usr/bin/env bash
# Tries the packages in a root of its own, with systemd as its first process and no network but its
# loopback: install, refuse to start without a function, start, serve, reload, restart behind
# sockets, a stall, drain, upgrade, purge. In the end the file system is what it was.
#
#   try-deb.sh FOLDER OLD NEW     the folder has the packages of both versions; needs root
set -euo pipefail
FOLDER=$1 OLD=$2 NEW=$3
ARCH=$(dpkg --print-architecture)
HERE=$(cd "$(dirname "$0")" && pwd)
# The longest that all of it may take, in seconds.
MOST=300

root=$(mktemp -d "${TMPDIR:-/tmp}/ringway-deb.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
command -v systemd-nspawn >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        systemd-container >/dev/null

# A root that was made before may be given: mmdebstrap takes a minute.
if [ -n "${RINGWAY_TRY_ROOT:-}" ]; then
    cp -a "$RINGWAY_TRY_ROOT/." "$root/"
else
    . /etc/os-release
    mmdebstrap --quiet --variant=minbase \
        --include=systemd,systemd-sysv,dbus,ca-certificates,procps,curl "$VERSION_CODENAME" "$root"
fi
chmod 755 "$root"
mkdir -p "$root/packages"
cp "$FOLDER"/ringway{,-worker}_{"$OLD","$NEW"}*_"$ARCH".deb "$root/packages/"
install -m 755 "$HERE/try-inside.sh" "$root/packages/try"
cat >"$root/etc/systemd/system/try.service" <<UNIT
[Unit]
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
StandardOutput=file:/packages/out
StandardError=inherit
ExecStart=/packages/try $OLD $NEW $ARCH
UNIT
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../try.service "$root/etc/systemd/system/graphical.target.wants/"

# nspawn forbids io_uring, as container runtimes do.
timeout "$MOST" systemd-nspawn --quiet --directory="$root" --boot --register=no --keep-unit \
    --private-network --machine=ringway-try --console=pipe \
    --system-call-filter='io_uring_setup io_uring_enter io_uring_register' \
    >"$root/console" 2>&1 </dev/null || true
cat "$root/packages/out" 2>/dev/null || tail -n 30 "$root/console"
grep -qx 'all of it worked' "$root/packages/out"
