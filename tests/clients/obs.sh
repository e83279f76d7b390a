#!/usr/bin/env bash
# Runs OBS Studio without a screen, publishing by WHIP until it is ended. Needs the folder of testbed.sh.
#
#   obs.sh URL TOKEN X264_OPTIONS MEDIA     such as "keyint=60 bframes=0"; MEDIA is played in a loop
set -euo pipefail
url=$1 token=$2 x264=$3 media=$4
work=$(mktemp -d)
export HOME=$work XDG_RUNTIME_DIR=$work/run XDG_CONFIG_HOME=$work/.config
config=$XDG_CONFIG_HOME/obs-studio profile=$XDG_CONFIG_HOME/obs-studio/basic/profiles/whip
mkdir -p -m 700 "$XDG_RUNTIME_DIR"
mkdir -p "$profile" "$config/basic/scenes" "$config/plugins/obs-webrtc/bin/64bit" "$config/plugins/obs-webrtc/data"
cp /opt/obs-whip/obs-webrtc.so "$config/plugins/obs-webrtc/bin/64bit/"
cp -r /opt/obs-whip/data/. "$config/plugins/obs-webrtc/data/"
# No first-run wizard: the file has two names, before OBS 31 and since.
for name in global user; do
  cat >"$config/$name.ini" <<INI
[General]
FirstRun=true
Pre31Migrated=true
ConfirmOnExit=false
LastVersion=536870912
EnableAutoUpdates=false
[Basic]
Profile=whip
ProfileDir=whip
SceneCollection=whip
SceneCollectionFile=whip
ConfigOnNewProfile=false
[BasicWindow]
WarnBeforeStartingStream=false
WarnBeforeStoppingStream=false
INI
done
cat >"$profile/basic.ini" <<INI
[General]
Name=whip
[Video]
BaseCX=640
BaseCY=360
OutputCX=640
OutputCY=360
FPSType=0
FPSCommon=30
[Audio]
SampleRate=48000
[Output]
Mode=Simple
Reconnect=true
RetryDelay=2
MaxRetries=25
[SimpleOutput]
StreamEncoder=x264
StreamAudioEncoder=opus
VBitrate=1200
ABitrate=96
Preset=ultrafast
UseAdvanced=true
x264Settings=$x264
[Stream1]
EnableMultitrackVideo=false
INI
cat >"$profile/service.json" <<JSON
{"type": "whip_custom", "settings": {"server": "$url", "bearer_token": "$token"}}
JSON
cat >"$config/basic/scenes/whip.json" <<JSON
{"name": "whip", "current_scene": "Scene", "current_program_scene": "Scene", "scene_order": [{"name": "Scene"}], "sources": [
 {"id": "ffmpeg_source", "versioned_id": "ffmpeg_source", "name": "clip", "enabled": true, "volume": 1.0, "mixers": 255,
  "settings": {"is_local_file": true, "local_file": "$media", "looping": true, "hw_decode": false}},
 {"id": "scene", "versioned_id": "scene", "name": "Scene", "enabled": true, "settings": {"id_counter": 1, "custom_size": false,
  "items": [{"name": "clip", "id": 1, "visible": true, "pos": {"x": 0.0, "y": 0.0}, "scale": {"x": 1.0, "y": 1.0}}]}}]}
JSON
display=:$((100 + $$ % 30000))
Xvfb "$display" -screen 0 1024x600x24 -nolisten tcp >"$work/xvfb.log" 2>&1 &
xvfb=$!
obs=
finish() {
  trap - EXIT INT TERM
  # SIGINT ends the stream first, with a DELETE.
  [ -z "$obs" ] || pkill -INT -P "$obs" -x obs || kill -INT "$obs" 2>/dev/null || true
  for _ in $(seq 50); do [ -n "$obs" ] && kill -0 "$obs" 2>/dev/null && sleep 0.1; done
  [ -z "$obs" ] || kill -KILL "$obs" 2>/dev/null || true
  kill "$xvfb" 2>/dev/null || true
  grep -iE 'whip|error|version|started' "$work/obs.log" | tail -n 20 >&2 || true
  rm -rf "$work"
}
trap finish EXIT INT TERM
for _ in $(seq 50); do [ -S "/tmp/.X11-unix/X${display#:}" ] && break; sleep 0.1; done
export DISPLAY=$display LIBGL_ALWAYS_SOFTWARE=1 GALLIUM_DRIVER=llvmpipe LP_NUM_THREADS=1 QT_QPA_PLATFORM=xcb
dbus-run-session -- obs --multi --startstreaming --minimize-to-tray --profile whip --collection whip --disable-updater \
  --disable-missing-files-check >"$work/obs.log" 2>&1 &
obs=$!
wait "$obs"
