"""A camera: GStreamer's RTSP server.

Usage: server.py PORT VIDEO[+AUDIO] [--size WxH] [--rate FPS] [--bitrate KBITS] [--address IP]
                 [--credentials USER PASSWORD] [--tls FILE] [--cameras N] [--back-channel CODEC FILE]

VIDEO: h264, h264-b (with B-frames), h265, mjpeg; AUDIO: pcma, aac, opus. Prints its port when it listens. On SIGUSR1 the
video becomes 160 lines high, in the middle of the stream; on SIGUSR2 it stays away, and with the next one it comes back,
while the audio goes on. What clients send to the back channel (ONVIF) in CODEC, pcmu or pcma, is written to FILE as it comes.
"""
import argparse
import re
import signal

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("port")
parser.add_argument("media")
parser.add_argument("--size", default="320x180")
parser.add_argument("--rate", type=int, default=10)
parser.add_argument("--bitrate", type=int, default=0, help="kbit/s")
parser.add_argument("--address", default="127.0.0.1")
parser.add_argument("--credentials", nargs=2)
parser.add_argument("--tls", help="file with certificate and key")
parser.add_argument("--cameras", type=int, default=1, help="paths /cam0, /cam1 and so on besides /cam")
parser.add_argument("--back-channel", nargs=2, metavar=("CODEC", "FILE"))
arguments = parser.parse_args()

width, height = arguments.size.split("x")
gop = arguments.rate
bitrate = f"bitrate={arguments.bitrate}" if arguments.bitrate else ""
ENCODERS = {
    "h264": f"x264enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} {bitrate} ! video/x-h264,profile=baseline "
    "! rtph264pay name=pay0 pt=96 config-interval=-1",
    "h264-b": f"x264enc speed-preset=veryfast bframes=2 b-adapt=false rc-lookahead=5 key-int-max={gop} "
    "! video/x-h264,profile=main ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "h265": f"x265enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} ! rtph265pay name=pay0 pt=96 "
    "config-interval=-1",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}
TONE = "audiotestsrc is-live=true samplesperbuffer={samples} ! audio/x-raw,rate={rate},channels=1 ! "
AUDIO_ENCODERS = {
    "pcma": TONE.format(samples=160, rate=8000) + "alawenc ! rtppcmapay name=pay1 pt=8",
    "aac": TONE.format(samples=1024, rate=44100) + "avenc_aac ! rtpmp4gpay name=pay1 pt=97",
    "opus": TONE.format(samples=960, rate=48000) + "opusenc ! rtpopuspay name=pay1 pt=98",
}
video, _, audio = arguments.media.partition("+")
video_source = (
    f"videotestsrc is-live=true pattern=ball ! videoscale ! capsfilter name=size "
    f"caps=video/x-raw,width={width},height={height},framerate={arguments.rate}/1,format=I420 ! valve name=shutter ! "
)

Gst.init(None)
server = GstRtspServer.RTSPOnvifServer() if arguments.back_channel else GstRtspServer.RTSPServer()
server.set_address(arguments.address)
server.set_service(arguments.port)
factory = GstRtspServer.RTSPOnvifMediaFactory() if arguments.back_channel else GstRtspServer.RTSPMediaFactory()
launch = f"( {video_source}{ENCODERS[video]} {AUDIO_ENCODERS[audio] if audio else ''} )"
if arguments.back_channel:
    # A client of the back channel alone leaves the other streams without a sink, which must not stop them.
    launch = re.sub(r"! (rtp\w+pay) ", r"! tee allow-not-linked=true ! \1 ", launch)
factory.set_launch(launch)
# The back channel belongs to the client that asks for it.
factory.set_shared(not arguments.back_channel)
if arguments.back_channel:
    codec, file = arguments.back_channel
    factory.set_media_gtype(GstRtspServer.RTSPOnvifMedia.__gtype__)
    number = {"pcmu": 0, "pcma": 8}[codec]
    factory.set_backchannel_launch(
        f'( capsfilter caps="application/x-rtp,media=audio,payload={number},clock-rate=8000,'
        f'encoding-name={codec.upper()}" name=depay_backchannel ! rtp{codec}depay '
        f'! filesink location="{file}" buffer-mode=unbuffered async=false sync=false )'
    )
medias = []
factory.connect("media-configure", lambda _, media: medias.append(media))
auth = GstRtspServer.RTSPAuth() if arguments.credentials or arguments.tls else None
if arguments.tls:
    auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(arguments.tls))
if arguments.credentials:
    user, password = arguments.credentials
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.set_realm("camera")
    auth.add_digest(user, password, token)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)

if auth:
    server.set_auth(auth)


def change_size():
    caps = Gst.Caps.from_string(f"video/x-raw,width=240,height=160,framerate={arguments.rate}/1,format=I420")
    for media in medias:
        media.get_element().get_by_name("size").set_property("caps", caps)
    return True


def close_shutter():
    for media in medias:
        shutter = media.get_element().get_by_name("shutter")
        shutter.set_property("drop", not shutter.get_property("drop"))
    return True


GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, change_size)
GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR2, close_shutter)
mounts = server.get_mount_points()
mounts.add_factory("/cam", factory)
for number in range(arguments.cameras if arguments.cameras > 1 else 0):
    mounts.add_factory(f"/cam{number}", factory)
if server.attach(None) == 0:
    raise SystemExit("cannot listen")
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
