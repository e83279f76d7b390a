#!/usr/bin/env bash
# Makes the Debian package: target/debian/millstream_*.deb. With `test`, installs it in a bare Debian 12 in a folder of its
# own, which needs root, and has the gateway show its test picture there, as the user of the package.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo-tool.sh deb 3.8.0
cargo build --release --locked
rm -f target/debian/*.deb
cargo deb --no-build --quiet
package=$(ls target/debian/*.deb)
echo "deb: $package, $(du -k "$package" | cut -f1) KiB"
[ "${1:-}" = test ] || exit 0

command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
root=$(mktemp -d)
# Its user has to get in.
chmod 755 "$root"
gateway=
finish() {
  [ -z "$gateway" ] || kill "$gateway" 2>/dev/null || true
  [ -z "$gateway" ] || wait "$gateway" 2>/dev/null || true
  umount "$root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$root"
}
trap finish EXIT
echo "deb: a bare Debian 12"
debootstrap --variant=minbase bookworm "$root" >/dev/null
# Nothing is started by the installation.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
cp "$package" "$root/millstream.deb"
mount -t proc proc "$root/proc"
chroot "$root" apt-get update -qq
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  /millstream.deb curl util-linux >/dev/null
chroot "$root" stat -c 'deb: %n %A %U:%G' /etc/millstream/millstream.toml

as_its_user() {
  chroot "$root" setpriv --reuid=millstream --regid=millstream --clear-groups env GST_REGISTRY=/tmp/gst.bin "$@"
}
as_its_user millstream check --config /etc/millstream/millstream.toml
port=$((20000 + RANDOM % 10000))
# The shell is replaced, so that its id is that of the gateway.
(exec chroot "$root" setpriv --reuid=millstream --regid=millstream --clear-groups env GST_REGISTRY=/tmp/gst.bin \
  MILLSTREAM_HTTP__LISTEN="127.0.0.1:$port" MILLSTREAM_WEBRTC__LISTEN="127.0.0.1:$((port + 10000))" \
  millstream serve --demo --config /etc/millstream/millstream.toml) >"$root/log" 2>&1 &
gateway=$!
for _ in $(seq 100); do
  playlist=$(chroot "$root" curl -fsS "http://127.0.0.1:$port/hls/demo/index.m3u8" 2>/dev/null) && break
  sleep 0.2
done
if ! grep -q 'CODECS="avc1' <<<"${playlist:-}"; then
  echo "deb: FAILED: no test picture; its log:" && cat "$root/log"
  exit 1
fi
echo "deb: installed, and shows its test picture"
