#!/bin/sh
# Sets up what is missing, then shows Breakout at work or tests it.
#
#   ./do lab [OPTIONS]   build, and run `breakout lab` (./do lab --help)
#   ./do test [OPTIONS]  install what tests need, and run every test (options go to `cargo test`)
#   ./do peers           install only what tests need
#
# On Debian and Ubuntu missing packages are installed with apt-get, elsewhere they are named.
# BREAKOUT_PROFILE=dev runs the lab with the build that tests use.
set -eu
cd "$(dirname "$0")"

target=${CARGO_TARGET_DIR:-$PWD/target}
peers=$target/peers
venv=$target/venv

main() {
    command=${1:-help}
    [ $# -eq 0 ] || shift
    case $command in
    lab) lab "$@" ;;
    test) all_tests "$@" ;;
    peers) install_peers ;;
    *)
        sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
        [ "$command" = help ] || exit 2
        ;;
    esac
}

lab() {
    install_linker
    say "building (the first time takes minutes)"
    profile=${BREAKOUT_PROFILE:-release}
    cargo build --locked --profile "$profile" --workspace --bin breakout >&2
    [ "$profile" != dev ] || profile=debug
    PATH=$peers/bin:$PATH exec "$target/$profile/breakout" lab "$@"
}

all_tests() {
    install_linker
    install_packages
    peers_beside_tests
    say "running every test"
    # With BREAKOUT_REQUIRE_ALL a test that would skip itself fails. More tests at a time than cores: most of their time is waiting.
    PATH=$peers/bin:$venv/bin:$PATH BREAKOUT_REQUIRE_ALL=1 RUST_TEST_THREADS="${RUST_TEST_THREADS:-8}" \
        cargo test --locked --workspace "$@"
}

# Builds missing peers while the tests are built: each build has a core to spare at times.
peers_beside_tests() {
    ! has_peers || return 0
    say "building tests, and beside them the peers they run against (the first time takes minutes)"
    # What is run in the background takes no notice of an interrupt.
    trap 'trap "" TERM; kill -TERM 0; exit 130' INT TERM
    cargo_peers &
    beside=$!
    built=0
    cargo test --locked --workspace --no-run || built=$?
    say "waiting for the peers' build"
    wait "$beside"
    trap - INT TERM
    [ "$built" -eq 0 ] || exit "$built"
}

install_linker() {
    command -v cargo >/dev/null || fail "cargo is missing: install it from https://rustup.rs"
    # Installs the toolchain, which two at once would each do.
    cargo --version >/dev/null
    command -v cc >/dev/null || apt_install "a linker, to build" gcc libc6-dev
}

# The programs of others that tests run against, each of one version.
install_peers() {
    install_packages
    cargo_peers
}

install_packages() {
    missing=
    for pair in wireguard-go:wireguard-go turnserver:coturn sipp:sip-tester nft:nftables ip:iproute2 clang:clang \
        dnsmasq:dnsmasq-base curl:curl python3:python3 dbus-daemon:dbus-daemon; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
    done
    python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
    # shellcheck disable=SC2086
    [ -z "$missing" ] || apt_install "peers and tools that tests run against" $missing

    if ! "$venv/bin/python3" -c 'import aiortc' 2>/dev/null; then
        say "installing the WebRTC caller (aiortc) into $venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --requirement crates/breakout/tests/peers/requirements.txt
    fi
    debian_peer openresolv
    debian_peer resolvconf
    debian_peer systemd-resolved libsystemd-shared
}

cargo_peers() {
    cargo_peer gotatun gotatun-cli 0.10.2
    cargo_peer boringtun-cli boringtun-cli 0.7.1
}

# apt_install WHY PACKAGE...
apt_install() {
    why=$1
    shift
    command -v apt-get >/dev/null || fail "missing: $* ($why); install them with this system's package manager"
    say "installing $* ($why)"
    case " $* " in
    *" coturn "*)
        # Tests start their own; the package's service would open a TURN server on this machine.
        ! command -v systemctl >/dev/null || as_root systemctl --quiet mask coturn.service
        ;;
    esac
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "$@" </dev/null >&2
}

apt_update() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null >&2
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
        return
    fi
    command -v sudo >/dev/null || fail "this needs root: $*"
    sudo "$@"
}

# debian_peer PACKAGE...: unpacks packages into a directory with the first one's name, unless it is there. Installed they
# would take over this machine's /etc/resolv.conf.
debian_peer() {
    ! [ -d "$peers/debian/$1" ] || return 0
    command -v apt-get >/dev/null || fail "missing: Debian's packages $*, which tests unpack and run"
    say "unpacking $*"
    debs=$(mktemp -d)
    new=$peers/debian/$1.new
    rm -rf "$new"
    mkdir -p "$new"
    (
        cd "$debs"
        apt-get -qq download "$@" >&2 || { apt_update && apt-get -qq download "$@" >&2; }
        for deb in *.deb; do dpkg -x "$deb" "$new"; done
    )
    rm -r "$debs"
    mv "$new" "$peers/debian/$1"
}

has_peers() { has_program gotatun && has_program boringtun-cli; }

has_program() { [ -x "$peers/bin/$1" ] || command -v "$1" >/dev/null; }

# cargo_peer PROGRAM CRATE VERSION: builds a program unless it is there.
cargo_peer() {
    if ! has_program "$1"; then
        say "building $2 $3, a WireGuard peer"
        cargo install --quiet --locked --root "$peers" --target-dir "$target/peers-build" --version "$3" "$2"
    fi
}

say() { echo "==> $*" >&2; }

fail() {
    say "$*"
    exit 3
}

main "$@"
