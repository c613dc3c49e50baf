#!/bin/bash
# What `try-deb.sh` runs inside: try VERSION-BEFORE VERSION-NOW ARCHITECTURE
set -euo pipefail
OLD=$1 NEW=$2 ARCH=$3
export DEBIAN_FRONTEND=noninteractive
CONFIG=/etc/ringway/ringway.toml
ID=11111111-1111-4111-8111-111111111111
trap 'echo "FAILED at line $LINENO"; journalctl --no-pager -n 60 -u "ringway*"' ERR

say() { echo "-- $*"; }
fail() { echo "FAILED: $*"; journalctl --no-pager -n 60 -u 'ringway*'; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: $2, expected $3"; }
of() { systemctl show -P "$2" "$1"; }
# Waits until a command is true: within SECONDS COMMAND...
within() {
    local most=$((SECONDS + $1))
    shift
    until "$@"; do [ $SECONDS -lt $most ] || fail "not in time: $*"; sleep 0.1; done
}
code() { curl -s -o /dev/null -w '%{http_code}' -m 10 "$@" || true; }
call() { code -H 'authorization: Bearer client' -H "function-id: $ID" http://127.0.0.1:10081/live; }
answers() { [ "$(call)" = 200 ]; }
ready() { [ "$(code http://127.0.0.1:10083/ready)" = 200 ]; }
# Every file that a package may have to do with: kind, mode, owner, name, content.
files() {
    find /etc /usr /opt /srv /var/lib /lib/systemd -xdev \
        \( -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd/random-seed \
        -o -path /var/lib/systemd/catalog -o -path /var/lib/systemd/timers \
        -o -path /var/lib/private -o -path '/etc/*-' -o -path /etc/ld.so.cache \
        -o -path /etc/passwd -o -path /etc/group -o -path /etc/shadow -o -path /etc/gshadow \) \
        -prune -o -printf '%y %m %u:%g %p %l\n' -a -type f -exec sha256sum {} + | sort
}

files >/packages/before

say "install $OLD"
apt-get install -y -qq "/packages/ringway_${OLD}-1_$ARCH.deb" \
    "/packages/ringway-worker_${OLD}-1_$ARCH.deb" >/packages/apt 2>&1 || fail "$(cat /packages/apt)"
is "configuration" "$(stat -c '%a %U:%G' $CONFIG)" "640 root:ringway"
is "user" "$(getent passwd ringway | cut -d: -f7)" /usr/sbin/nologin
is "started by itself" "$(of ringway ActiveState)" inactive
is "enabled by itself" "$(systemctl is-enabled ringway || true)" disabled
[ -s /usr/share/man/man1/ringway.1.gz ] && [ -s /usr/share/man/man1/ringway-worker.1.gz ] ||
    fail "no man pages: $(ls /usr/share/man/man1 | head)"
bash -c '. /usr/share/bash-completion/completions/ringway && complete -p ringway' >/dev/null ||
    fail "no completions"
ringway --version | head -n 3

say "a configuration without a function: refused once, not again and again"
systemctl start ringway 2>/dev/null && fail "it started"
sleep 2.5
is "exit code" "$(of ringway ExecMainStatus)" 78
is "starts" "$(of ringway NRestarts)" 0
journalctl -u ringway | grep -q 'write a \[\[function\]\]' || fail "it does not say what is missing"

say "start"
cat >>$CONFIG <<TOML
[[tenant]]
name = "acme"
client_keys = ["client"]
[[function]]
id = "$ID"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["acme"]
worker_keys = ["worker"]
[session]
park = "never"
TOML
ringway check --config $CONFIG
systemctl reset-failed ringway
systemctl start ringway
is "state" "$(of ringway ActiveState)" active
ready || fail "active but not ready"
of ringway StatusText
is "user of the process" "$(ps -o user= -p "$(of ringway MainPID)")" ringway
journalctl -u ringway | grep -q 'io_uring cannot be used' && fail "no io_uring in its sandbox"
# As many as the unit asks for, or as this root was given.
awk '/^Max open files/ { exit !($4 == $5 && $4 > 1024) }' "/proc/$(of ringway MainPID)/limits" ||
    fail "few files: $(grep 'Max open files' "/proc/$(of ringway MainPID)/limits")"

say "a worker, whose key is a credential of its unit"
echo worker >/etc/ringway/worker-live.key
chmod 600 /etc/ringway/worker-live.key
cat >/etc/ringway/worker-live.env <<ENV
GATEWAY=http://127.0.0.1:10086
FUNCTION=$ID
VERSION=22222222-2222-4222-8222-222222222222
TARGET=127.0.0.1:10083
SLOTS=4
ENV
systemctl start ringway-worker@live
is "worker" "$(of ringway-worker@live StatusText)" "serving 0 sessions of 4 at most"
within 10 answers

say "a worker whose key is refused: once, and never active"
sed 's/^VERSION=.*/VERSION=33333333-3333-4333-8333-333333333333/' /etc/ringway/worker-live.env >/etc/ringway/worker-lost.env
cp /etc/ringway/worker-live.key /etc/ringway/worker-lost.key
systemctl start ringway-worker@lost 2>/dev/null && fail "it is active"
is "exit code, starts" "$(of ringway-worker@lost ExecMainStatus) $(of ringway-worker@lost NRestarts)" "78 0"
rm /etc/ringway/worker-lost.*

say "reload"
systemctl reload ringway
within 5 sh -c "journalctl -u ringway | grep -q 'configuration was read again'"
is "state" "$(of ringway ActiveState)" active
answers || fail "no answer after the reload"

say "restart behind sockets: nobody is refused"
systemctl stop ringway
systemctl -q enable --now ringway.socket
systemctl start ringway
within 10 answers
(
    refused=0 calls=0
    while [ ! -e /packages/enough ]; do
        # 401 is an answer too; 000 is none.
        [ "$(code http://127.0.0.1:10081/nobody)" != 000 ] || refused=$((refused + 1))
        calls=$((calls + 1))
    done
    echo "$refused $calls" >/packages/refused
) &
callers=$!
for _ in 1 2 3; do systemctl restart ringway; sleep 0.3; done
touch /packages/enough
wait $callers
read -r refused calls </packages/refused
is "refused of $calls calls over three restarts" "$refused" 0
echo "$calls calls over three restarts, none refused"

say "a process that stands still is begun anew"
mkdir -p /run/systemd/system/ringway.service.d
printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n' >/run/systemd/system/ringway.service.d/try.conf
systemctl daemon-reload
systemctl restart ringway
before=$(of ringway MainPID)
kill -STOP "$before"
begun_anew() { [ "$(of ringway NRestarts)" = 1 ] && [ "$(of ringway ActiveState)" = active ]; }
within 20 begun_anew
journalctl -u ringway | grep -q 'Watchdog timeout' || fail "not by the watchdog"
within 10 answers
rm -r /run/systemd/system/ringway.service.d
systemctl daemon-reload
systemctl -q disable --now ringway.socket
systemctl restart ringway
within 10 answers

say "upgrade to $NEW: what runs goes on"
before=$(of ringway MainPID)
apt-get install -y -qq "/packages/ringway_${NEW}-1_$ARCH.deb" \
    "/packages/ringway-worker_${NEW}-1_$ARCH.deb" >/packages/apt 2>&1 || fail "$(cat /packages/apt)"
is "process" "$(of ringway MainPID)" "$before"
grep -q 'systemctl restart ringway' /packages/apt || fail "it does not say what is to be done"
grep -q 'name = "acme"' $CONFIG || fail "the configuration was replaced"
is "configuration" "$(stat -c '%a %U:%G' $CONFIG)" "640 root:ringway"
answers || fail "no answer after the upgrade"
systemctl restart ringway
within 10 answers

say "drain"
systemctl stop ringway
is "result" "$(of ringway Result) $(of ringway ExecMainStatus)" "success 0"
journalctl -u ringway | grep -q 'draining' || fail "no drain"

say "purge"
systemctl start ringway
within 10 ready
rm /etc/ringway/worker-live.*
apt-get purge -y -qq ringway ringway-worker >/packages/apt 2>&1 || fail "$(cat /packages/apt)"
pgrep -x ringway && fail "it still runs"
files >/packages/after
if ! diff /packages/before /packages/after; then fail "the file system is not what it was"; fi
echo "nothing is left but the user: $(getent passwd ringway)"
echo "all of it worked"
