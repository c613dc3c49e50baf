#!/usr/bin/env bash
# Builds both programs static, with musl, into target/package/musl: one file each that runs on any
# Linux of this architecture.
#
# With rustup the target comes from `rustup target add x86_64-unknown-linux-musl`. Where that cannot
# be had, Debian's compiler for browsers builds the standard library for it: its packages are
# unpacked into .tools/rust-web, and installed nowhere. Needs the Debian package musl-tools.
set -euo pipefail
cd "$(dirname "$0")/../.."

TARGET=x86_64-unknown-linux-musl
OUT=$PWD/target/package/musl
WEB=$PWD/.tools/rust-web
more=()

# The release that unpacks there, named by its stamp.
unpack_web() {
    local packages=(rustc-web libstd-rust-web-dev rust-web-src libunwind-16-dev) std llvm version
    version=$(apt-cache policy rustc-web | sed -n 's/^  Candidate: //p')
    if [ -z "$version" ] || [ "$version" = "(none)" ]; then
        echo "error: no $TARGET: neither rustup nor Debian (rustc-web) has it here;" \
            "run \`rustup target add $TARGET\`" >&2
        return 1
    fi
    [ "$(cat "$WEB/.version" 2>/dev/null)" = "$version" ] && return
    std=$(apt-cache depends libstd-rust-web-dev | sed -n 's/^  Depends: \(libstd-rust-web-.*\)/\1/p')
    llvm=$(apt-cache depends "$std" | sed -n 's/^  Depends: \(libllvm.*\)/\1/p')
    rm -rf "$WEB" && mkdir -p "$WEB/packages"
    (cd "$WEB/packages" && apt-get download -qq "${packages[@]}" "$std" "$llvm" 2>/dev/null)
    for package in "$WEB"/packages/*.deb; do dpkg -x "$package" "$WEB"; done
    rm -rf "$WEB/packages"
    # LLVM's unwinder was built for glibc, of which it needs one function more than musl has.
    mkdir -p "$WEB/unwind"
    cp "$WEB/usr/lib/llvm-16/lib/libunwind.a" "$WEB/unwind/"
    printf '%s\n' '#include <stdarg.h>' '#include <stdio.h>' \
        'int __fprintf_chk(FILE *to, int flag, const char *format, ...) {' \
        '    va_list list; (void)flag; va_start(list, format);' \
        '    int count = vfprintf(to, format, list); va_end(list); return count;' \
        '}' >"$WEB/unwind/chk.c"
    musl-gcc -O2 -c "$WEB/unwind/chk.c" -o "$WEB/unwind/chk.o"
    # This standard library's own builtins lack what C asks for to count bits; GCC's have it.
    (cd "$WEB/unwind" && ar x "$(musl-gcc -print-libgcc-file-name)" _popcountsi2.o _popcount_tab.o)
    ar r "$WEB/unwind/libunwind.a" "$WEB"/unwind/*.o 2>/dev/null
    echo "$version" >"$WEB/.version"
}

command -v musl-gcc >/dev/null || {
    echo "error: no C compiler for musl; install the Debian package musl-tools" >&2
    exit 1
}
flags="-C target-feature=+crt-static -C relocation-model=static"
if [ ! -d "$(rustc --print target-libdir --target $TARGET 2>/dev/null)" ]; then
    unpack_web
    export RUSTC=$WEB/usr/bin/rustc LD_LIBRARY_PATH=$WEB/usr/lib/x86_64-linux-gnu
    # Cargo builds the standard library only for compilers that allow what is not stable yet.
    export RUSTC_BOOTSTRAP=1
    flags+=" -C link-self-contained=no -L native=$WEB/unwind"
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
    more=(-Zbuild-std=std,panic_unwind)
fi
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS=$flags
export CC_x86_64_unknown_linux_musl=musl-gcc
export CARGO_TARGET_DIR=$PWD/target/musl
RINGWAY_COMMIT=${RINGWAY_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
export RINGWAY_COMMIT

cargo build --release --locked --target $TARGET "${more[@]}" -p ringway --bin ringway
cargo build --release --locked --target $TARGET "${more[@]}" -p ringway-tools --bin ringway-worker
mkdir -p "$OUT"
for program in ringway ringway-worker; do
    install -m 755 "$CARGO_TARGET_DIR/$TARGET/release/$program" "$OUT/$program"
    strip --strip-debug "$OUT/$program"
done
ls -l "$OUT"
