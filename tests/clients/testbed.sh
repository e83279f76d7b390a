#!/usr/bin/env bash
# Real clients in a folder of their own: programs that are newer than those of the distribution in use.
#
#   testbed.sh build ROOT [PART...]   installs what is missing of: base media gstreamer obs (all by default)
#   testbed.sh run ROOT COMMAND...    runs a command in it
#
# Only packages and sources of Debian, and crates: needs root, debootstrap, and 6 GB. A part that is done is not done again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=${TESTBED_SUITE:-forky}
# The newest suite that has the source of OBS's WHIP plugin, which Debian does not build.
plugin_suite=trixie plugin_version=30.2.3

run() {
  local root=$1
  shift
  # The mounts are those of this call alone, so that the folder can be removed at any time.
  exec unshare --mount --propagation private bash -c '
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t sysfs sysfs "$root/sys"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
  ' run "$root" "$@"
}

inside() { (run "$root" "$@"); }

install() { inside env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --quiet=2 "$@"; }

mirror() {
  local found
  found=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
  echo "${found:-http://deb.debian.org/debian}"
}

part_base() {
  command -v debootstrap >/dev/null || apt-get install --yes --no-install-recommends debootstrap
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$(mirror)" /usr/share/debootstrap/scripts/sid
  # Services that packages bring are not started.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  echo "deb-src $(mirror) $plugin_suite main" >"$root/etc/apt/sources.list.d/sources.list"
  cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null && inside update-ca-certificates
  inside apt-get update --quiet=2
}

part_media() {
  install ffmpeg gstreamer1.0-tools gstreamer1.0-plugins-{base,good,bad,ugly} gstreamer1.0-libav gstreamer1.0-nice \
    gstreamer1.0-rtsp gstreamer1.0-x simple-whip-client livemedia-utils mpv vlc-bin vlc-plugin-base
}

part_gstreamer() {
  install cargo rustc build-essential cmake pkg-config libclang-dev libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev \
    libgstreamer-plugins-bad1.0-dev libnice-dev libssl-dev
  local crate=$root/opt/gstrs
  mkdir -p "$crate/src"
  : >"$crate/src/lib.rs"
  cat >"$crate/Cargo.toml" <<'CRATE'
[package]
name = "gstrs"
version = "0.1.0"
edition = "2021"

[dependencies]
gst-plugin-webrtc = { version = "=0.15.4", default-features = false, features = ["whip", "whep", "rustls-aws-lc-rs"] }
gst-plugin-rtp = "=0.15.4"

[profile.release]
opt-level = 1
debug = 0
CRATE
  inside sh -ec '
    cd /opt/gstrs && cargo build --release --quiet
    mkdir -p /opt/gstplugins
    for name in webrtc rtp; do cp target/release/deps/libgstrs$name-*.so /opt/gstplugins/libgstrs$name.so; done
    strip /opt/gstplugins/*.so'
}

# OBS of this suite, and the plugin that publishes by WHIP: Debian builds OBS without it. libdatachannel comes with a crate.
part_obs() {
  install obs-studio obs-plugins xvfb xauth dbus dbus-x11 libgl1-mesa-dri libegl-mesa0 libgl1 procps build-essential cmake \
    pkg-config libobs-dev libcurl4-openssl-dev libssl-dev dpkg-dev cargo rustc libclang-dev
  local crate=$root/opt/obs-whip/datachannel
  mkdir -p "$crate/src"
  : >"$crate/src/lib.rs"
  cat >"$crate/Cargo.toml" <<'CRATE'
[package]
name = "datachannel"
version = "0.1.0"
edition = "2021"

[dependencies]
datachannel-sys = { version = "=0.23.0", features = ["vendored-libdatachannel", "media"] }
CRATE
  inside env VERSION="$plugin_version" bash -ec '
    cd /opt/obs-whip
    (cd datachannel && cargo build --release --quiet)
    # The archive is enough, and apt has checked it: some mirrors lack the file that describes it.
    apt-get source --quiet=2 --download-only "obs-studio=$VERSION+dfsg-3" || true
    tar xJf "obs-studio_$VERSION+dfsg.orig.tar.xz"
    sources=obs-studio-$VERSION-sources
    [ -d "$sources" ] || sources=$(dirname "$(find . -maxdepth 2 -name libobs)")
    mkdir -p include/util/curl data
    cp "$sources/libobs/util/curl/curl-helper.h" include/util/curl/
    cp -r "$sources/plugins/obs-webrtc/data/." data/
    datachannel=$(ls -d ~/.cargo/registry/src/*/datachannel-sys-0.23*/libdatachannel)
    built=$(dirname "$(find datachannel/target/release -name libdatachannel-static.a | head -n 1)")
    g++ -std=c++17 -O1 -fPIC -shared -DNDEBUG -DENABLE_HEVC -DRTC_STATIC=1 -DRTC_ENABLE_MEDIA=1 -DRTC_ENABLE_WEBSOCKET=0 \
      -I/usr/include/obs -Iinclude -I"$datachannel/include" "$sources"/plugins/obs-webrtc/*.cpp -o obs-webrtc.so \
      -Wl,--start-group "$built/libdatachannel-static.a" "$built/deps/usrsctp/usrsctplib/libusrsctp.a" \
      "$built/deps/libjuice/libjuice-static.a" "$built/deps/libsrtp/libsrtp2.a" -Wl,--end-group \
      -lobs -lcurl -lssl -lcrypto -Wl,--no-undefined -Wl,--exclude-libs,ALL'
}

case ${1:-} in
  run)
    shift
    run "$@"
    ;;
  build)
    root=${2:?a folder}
    shift 2
    mkdir -p "$root"
    for part in "${@:-base media gstreamer obs}"; do
      for part in $part; do
        [ -e "$root/.testbed-$part" ] && continue
        echo "testbed: $part" >&2
        "part_$part"
        touch "$root/.testbed-$part"
      done
    done
    # OBS is configured and started by a script of this project.
    cp "$here/obs.sh" "$root/opt/"
    ;;
  *)
    sed -n '2,7p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
