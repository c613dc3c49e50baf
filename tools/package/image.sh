#!/usr/bin/env bash
# Makes a container image of the static programs, without a network: the OCI layout
# target/package/image, tagged `ringway:VERSION`. `skopeo copy oci:target/package/image:VERSION ...`
# brings it into a registry. Needs the Debian package umoci.
#
# It has the gateway, certificates of the authorities, and nothing else; it runs as user 1000, needs
# no argument, and writes nowhere.
set -euo pipefail
cd "$(dirname "$0")/../.."

PROGRAMS=${PROGRAMS:-$PWD/target/package/musl}
LAYOUT=$PWD/target/package/image
ROOT=$PWD/target/package/image-root
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# The same sources make the same image.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
WHEN=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

for program in ringway ringway-worker; do
    if [ ! -x "$PROGRAMS/$program" ]; then
        echo "error: no $PROGRAMS/$program; build it: tools/package.sh musl" >&2
        exit 1
    fi
done

rm -rf "$LAYOUT" "$ROOT"
mkdir -p "$ROOT"/{etc/ssl/certs,etc/ringway,usr/bin}
install -m 755 "$PROGRAMS/ringway" "$PROGRAMS/ringway-worker" "$ROOT/usr/bin/"
install -m 644 /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/"
printf 'root:x:0:0::/:/nologin\nringway:x:1000:1000::/:/nologin\n' >"$ROOT/etc/passwd"
printf 'root:x:0:\nringway:x:1000:\n' >"$ROOT/etc/group"
# musl looks names up in files and with DNS; without this file it would too.
printf 'hosts: files dns\n' >"$ROOT/etc/nsswitch.conf"
find "$ROOT" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

umoci init --layout "$LAYOUT"
umoci new --image "$LAYOUT:$VERSION"
umoci insert --history.created "$WHEN" --history.created_by tools/package/image.sh --image "$LAYOUT:$VERSION" "$ROOT" /
umoci config --image "$LAYOUT:$VERSION" --created "$WHEN" \
    --config.user 1000:1000 --config.workingdir / \
    --config.entrypoint /usr/bin/ringway \
    --config.env PATH=/usr/bin --config.env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    --config.exposedports 10081/tcp --config.exposedports 10083/tcp \
    --config.exposedports 10086/tcp --config.stopsignal SIGTERM \
    --config.label org.opencontainers.image.title=ringway \
    --config.label org.opencontainers.image.version="$VERSION" \
    --config.label org.opencontainers.image.revision="$COMMIT" \
    --config.label org.opencontainers.image.licenses=Apache-2.0
umoci gc --layout "$LAYOUT"
rm -rf "$ROOT"
echo "image: $LAYOUT:$VERSION, $(du -sh "$LAYOUT" | cut -f1)"
