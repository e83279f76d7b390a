#!/usr/bin/env bash
# Installs what is missing, and only that, for the groups named: `run` (building and running), `test` (all tests).
# For Debian and Ubuntu; elsewhere it names what to install. Rust is left to you: see `need_rust`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# Packages to install: need COMMAND PACKAGE...
packages=()
need() {
  have "$1" || packages+=("${@:2}")
}

# Packages of GStreamer: need_plugins PLUGIN:PACKAGE..., where packages are named gstreamer1.0-PACKAGE.
need_plugins() {
  local plugin
  for plugin in "$@"; do
    compgen -G "/usr/lib/*/gstreamer-1.0/libgst${plugin%:*}.so" >/dev/null || packages+=("gstreamer1.0-${plugin#*:}")
  done
}

need_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if ! have cargo; then
    say "Rust $wanted or newer is missing. Get it from https://rustup.rs and run this again."
    exit 1
  fi
  found=$(rustc --version | cut -d' ' -f2)
  if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
    say "Rust $found is too old; $wanted or newer is needed. With rustup: rustup update stable"
    exit 1
  fi
}

for group in "${@:-run}"; do
  case $group in
    run)
      need_rust
      # The cryptography (aws-lc) is C and assembler: a C compiler and the C library's headers are all it needs.
      need cc gcc libc6-dev
      need pkg-config pkg-config
      # The build takes hls.js from npm.
      need node nodejs
      need npm npm
      # GStreamer: its library to build with, its plugins for pipelines, and a font for the test picture.
      pkg-config --exists gstreamer-app-1.0 2>/dev/null || packages+=(libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev)
      need_plugins videotestsrc:plugins-base pango:x rtp:plugins-good videoparsersbad:plugins-bad x264:plugins-ugly libav:libav
      compgen -G '/usr/share/fonts/truetype/*/*.ttf' >/dev/null || packages+=(fonts-dejavu-core)
      ;;
    test)
      need systemd-analyze systemd
      need chromium chromium
      need firefox-esr firefox-esr
      need node nodejs
      need npm npm
      need ffmpeg ffmpeg
      need curl curl
      need python3 python3
      # The fuzzer is C++.
      need c++ g++
      # Debian keeps what makes a virtual environment in a package of its own.
      python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
      # The cameras of tests/sources/rtsp: GStreamer's RTSP server, by Debian's own Python.
      /usr/bin/python3 -c 'import gi; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null ||
        packages+=(python3-gi gir1.2-gst-rtsp-server-1.0)
      need_plugins x265:plugins-bad
      # RTSPS.
      compgen -G '/usr/lib/*/gio/modules/libgiognutls.so' >/dev/null || packages+=(glib-networking)
      need openssl openssl
      # A server of RTMP, and networks of their own for cameras.
      compgen -G '/usr/lib/nginx/modules/ngx_rtmp_module.so' >/dev/null || packages+=(nginx-core libnginx-mod-rtmp)
      need ip iproute2
      # The relay of tests/browser/connectivity.test.js.
      need turnserver coturn
      # What scrapes the metrics in tests/operations, and knows the conventions of their names.
      need promtool prometheus
      # The address that changes in tests/browser/network.test.js.
      need nft nftables
      ;;
    *)
      say "unknown group '$group'; there are: run, test"
      exit 2
      ;;
  esac
done

[ ${#packages[@]} -gt 0 ] || exit 0
if ! have apt-get; then
  say "please install: ${packages[*]} (or what your system calls them)"
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  have sudo || { say "please install as root: apt-get install ${packages[*]}"; exit 1; }
  as_root=(sudo)
fi
say "installing ${packages[*]}"
log=$(mktemp)
# A machine that has just started may be installing updates of its own.
patience=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
if ! { "${as_root[@]}" apt-get "${patience[@]}" update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get "${patience[@]}" install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log"
  say "apt-get failed; its whole output is in $log"
  exit 1
fi
rm -f "$log"
