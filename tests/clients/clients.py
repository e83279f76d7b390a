"""Installed clients against a real gateway: GStreamer's WHIP and WHEP elements, and FFmpeg's WHIP muxer.

Usage: python clients.py GATEWAY_BINARY        (root: it makes two network namespaces)

    FFMPEG          an ffmpeg with the `whip` muxer and libx264 (8.0 or newer)
    GST_LAUNCH      gst-launch-1.0 of GStreamer 1.24 or newer
    GST_PLUGIN_PATH where whipclientsink and whepclientsrc (gst-plugins-rs, `webrtc`) and its RTP plugin are
    CLIENT_WRAPPER  a command to put before each client, such as `chroot /srv/newer-suite`

Prints a table, and fails when a client does.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

from link import Link

TOKEN = "token-of-the-clients-test"
FFMPEG = os.environ.get("FFMPEG", "ffmpeg")
GST_LAUNCH = os.environ.get("GST_LAUNCH", "gst-launch-1.0")
WRAPPER = shlex.split(os.environ.get("CLIENT_WRAPPER", ""))

# Seconds that a client may take until its first frame, on any machine.
PATIENCE = 60
# Frames that a viewer has to decode in the cases without loss.
ENOUGH = 150

# The clip that is sent over the lossy link: its frames are known one by one.
SIZE, RATE, SECONDS = (640, 360), 25, 20
CLIP_FRAMES = RATE * SECONDS
# The link: loss on the way to the gateway, delay each way in seconds, and how much of the frames has to be whole.
LOSS, DELAY, WHOLE = 0.03, 0.020, 0.99
WATCHED = 40


class Client:
    """A process in a namespace. What it writes to `{pipe}` of its command is read here."""

    def __init__(self, namespace, *command):
        reader, writer = os.pipe()
        environment = [f"{name}={os.environ[name]}" for name in ("GST_PLUGIN_PATH",) if name in os.environ]
        command = [argument.replace("{pipe}", str(writer)) for argument in command]
        full = ["ip", "netns", "exec", namespace, *WRAPPER, "env", *environment, *command]
        self.log = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            full, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, pass_fds=(writer,)
        )
        os.close(writer)
        self.output = os.fdopen(reader, "rb")

    def said(self):
        """The end of what it wrote to its log."""
        self.log.seek(0)
        lines = [line for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "rror:" in line]
        return (errors or lines or ["nothing"])[-1][:200]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()


class Viewer(Client):
    """whepclientsrc, decoding. Frames are read from it as I420, of any size."""

    def __init__(self, namespace, url, size, audio=True):
        caps = f"video/x-raw,format=I420,width={size[0]},height={size[1]}"
        video = ["ws.", "!", "video/x-raw", "!", "queue", "!", "videoconvert", "!", "videoscale", "!", caps]
        sound = ["ws.", "!", "audio/x-raw", "!", "queue", "!", "fakesink", "sync=false"] if audio else []
        super().__init__(
            namespace,
            GST_LAUNCH,
            *["whepclientsrc", "name=ws", 'stun-server=""', f"signaller::whep-endpoint={url}"],
            *video,
            *["!", "fdsink", "fd={pipe}", "sync=false"],
            *sound,
        )
        self.frame_bytes = size[0] * size[1] * 3 // 2
        self.first = None
        self.hashes = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while len(frame := self.output.read(self.frame_bytes)) == self.frame_bytes:
            self.first = self.first or time.monotonic() - self.started
            self.hashes.append(hashlib.md5(frame, usedforsecurity=False).digest())

    def wait(self, frames, seconds):
        deadline = time.monotonic() + seconds
        while len(self.hashes) < frames and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
        return len(self.hashes)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.thread.join(10)
        super().stop()


class Gateway:
    """A gateway in the namespace `a` of a link."""

    def __init__(self, binary, link):
        self.base = f"http://{link.ip_a}:8080"
        self.namespace = link.a
        environment = {
            **os.environ,
            "MILLSTREAM_HTTP__LISTEN": f"{link.ip_a}:8080",
            "MILLSTREAM_WEBRTC__LISTEN": f"{link.ip_a}:8189",
            "MILLSTREAM_WEBRTC__ANNOUNCE": link.ip_a,
            "MILLSTREAM_AUTH__PUBLISH_TOKEN": TOKEN,
            "MILLSTREAM_AUTH__API_TOKEN": TOKEN,
            "MILLSTREAM_LIMITS__DRAIN_SECONDS": "0",
            "MILLSTREAM_LOG__FORMAT": "json",
        }
        self.folder = tempfile.TemporaryDirectory()
        config = os.path.join(self.folder.name, "clients.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write('[streams."test"]\npipeline = "test"\n')
        command = ["ip", "netns", "exec", link.a, binary, "serve", "--config", config]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=self.log)

    def get(self, path):
        """What the gateway answers, as text; empty if it is an error. This process is in neither namespace."""
        fetch = (
            "import sys, urllib.request as u\n"
            "r = u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
            "sys.stdout.write(u.urlopen(r, timeout=5).read().decode())"
        )
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", fetch, self.base + path, TOKEN]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def wait_ready(self):
        deadline = time.monotonic() + PATIENCE
        while not self.get("/api/v1/streams") and time.monotonic() < deadline:
            time.sleep(0.2)

    def wait_live(self, stream):
        """Until the stream has video that can be sent."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            shown = json.loads(self.get(f"/api/v1/streams/{stream}") or "{}")
            if shown.get("live") and (shown.get("video") or {}).get("width"):
                return True
            if self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"the gateway ended: {self.log.read().decode(errors='replace')[-600:]}")
            time.sleep(0.2)
        return False

    def metric(self, name, stream):
        for line in self.get("/metrics").splitlines():
            if line.startswith(name) and f'stream="{stream}"' in line:
                return int(float(line.split()[-1]))
        return 0

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


def run_client(*command, **options):
    """Runs a client to its end, in no namespace."""
    return subprocess.run([*WRAPPER, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False, **options)


def version(*command):
    """The first line that a program writes of itself; `None` when it is not there."""
    try:
        lines = run_client(*command, text=True).stdout.splitlines()
    except FileNotFoundError:
        return None
    return lines[0] if lines else None


def versions():
    """Of FFmpeg, of GStreamer, and of its WebRTC plugin."""
    ffmpeg = version(FFMPEG, "-version")
    gstreamer = version(GST_LAUNCH, "--version")
    inspect = GST_LAUNCH.replace("gst-launch", "gst-inspect")
    environment = [f"GST_PLUGIN_PATH={os.environ.get('GST_PLUGIN_PATH', '')}"]
    plugin = version("env", *environment, "sh", "-c", f"{shlex.quote(inspect)} rswebrtc | grep -i version")
    shorten = lambda line, at: line.split()[at] if line and len(line.split()) > at else None
    return shorten(ffmpeg, 2), shorten(gstreamer, 2), shorten(plugin, 1)


class Row:
    """A line of the table."""

    def __init__(self, program, release, done):
        self.cells = [program, release, done, "-", "-", "-"]
        self.passed = False

    def result(self, passed, text, viewer=None, frames=None):
        if viewer is not None and viewer.first is not None:
            self.cells[3] = f"{viewer.first * 1000:.0f} ms"
        if frames is not None:
            self.cells[4] = str(frames)
        self.cells[5] = ("pass: " if passed else "FAIL: ") + text
        self.passed = passed
        print(" | ".join(self.cells), flush=True)
        return self


def watches(gateway, link, release, stream, row):
    """A viewer behind the link has to decode frames of a stream."""
    if not gateway.wait_live(stream):
        return row.result(False, "the stream is not live")
    viewer = Viewer(link.b, f"{gateway.base}/whep/{stream}", (320, 180))
    try:
        frames = viewer.wait(ENOUGH, PATIENCE)
    finally:
        viewer.stop()
    said = "decoded" if frames >= ENOUGH else viewer.said()
    return row.result(frames >= ENOUGH, said, viewer, frames)


def gstreamer_watches_h264(gateway, link, release):
    row = Row("whepclientsrc", release, "watches H.264 and Opus")
    return watches(gateway, link, release, "test", row)


def gstreamer_publishes_and_watches_vp8(gateway, link, release):
    row = Row("whipclientsink, whepclientsrc", release, "publishes VP8 and mono, watches it")
    publisher = Client(
        link.b,
        GST_LAUNCH,
        *["whipclientsink", "name=ws", 'stun-server=""', "video-caps=video/x-vp8"],
        *[f"signaller::whip-endpoint={gateway.base}/whip/vp8", f"signaller::auth-token={TOKEN}"],
        *["videotestsrc", "is-live=true", "!", "video/x-raw,width=640,height=360,framerate=25/1", "!", "ws."],
        *["audiotestsrc", "is-live=true", "!", "ws."],
    )
    try:
        row = watches(gateway, link, release, "vp8", row)
        if not row.passed:
            print(f"  the publisher said: {publisher.said()}")
        return row
    finally:
        publisher.stop()


def make_clip():
    """The clip, and the hash of each of its decoded frames by number."""
    path = f"/tmp/millstream-clients-{os.getpid()}.mp4"
    source = f"testsrc2=size={SIZE[0]}x{SIZE[1]}:rate={RATE}:duration={SECONDS}"
    encoding = "-c:v libx264 -profile:v baseline -preset ultrafast -b:v 1500k -g 50 -bf 0 -pix_fmt yuv420p".split()
    sound = ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={SECONDS}", "-c:a", "libopus", "-ac", "2"]
    made = run_client(FFMPEG, "-v", "error", "-y", "-f", "lavfi", "-i", source, *sound, *encoding, path)
    if made.returncode:
        sys.exit(f"no clip can be made: {made.stderr.decode(errors='replace')[-300:]}")
    raw = run_client(FFMPEG, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1").stdout
    length = SIZE[0] * SIZE[1] * 3 // 2
    frames = (raw[at : at + length] for at in range(0, len(raw), length))
    return path, {hashlib.md5(frame, usedforsecurity=False).digest(): number for number, frame in enumerate(frames)}


def whole_frames(hashes, numbers):
    """How many frames are as they were encoded, and how many there were from the first of them to the last."""
    known = [numbers[value] for value in hashes if value in numbers]
    if not known:
        return 0, 0
    # The clip is sent again and again; no gap is as long as it.
    span = sum((later - earlier) % CLIP_FRAMES for earlier, later in zip(known, known[1:]))
    return len(known), span + 1


def ffmpeg_publishes_over_loss(binary, release, clip, numbers):
    done = f"publishes H.264 and Opus, {LOSS:.0%} lost, {2 * DELAY * 1000:.0f} ms round trip"
    row = Row("ffmpeg", release, done)
    link = Link(delay=DELAY)
    gateway = Gateway(binary, link)
    publisher = viewer = None
    try:
        gateway.wait_ready()
        publisher = Client(
            link.b,
            *[FFMPEG, "-v", "warning", "-re", "-stream_loop", "-1", "-i", clip, "-c", "copy"],
            *["-f", "whip", "-authorization", TOKEN, f"{gateway.base}/whip/ffmpeg"],
        )
        if not gateway.wait_live("ffmpeg"):
            return row.result(False, publisher.said())
        # Beside the gateway: what is lost there is lost on the way from the publisher.
        viewer = Viewer(link.a, f"{gateway.base}/whep/ffmpeg", SIZE)
        viewer.wait(1, PATIENCE)
        # FFmpeg never repeats the end of its DTLS handshake: with loss from the beginning it often does not connect.
        link.set_loss("b", LOSS)
        time.sleep(WATCHED)
        asked = gateway.metric("millstream_source_nacked_packets_total", "ffmpeg")
    finally:
        for process in (viewer, publisher, gateway):
            if process is not None:
                process.stop()
        link.close()
    whole, due = whole_frames(viewer.hashes, numbers)
    passed = due >= WATCHED * RATE // 2 and whole >= WHOLE * due
    text = f"{whole} of {due} frames whole ({whole / max(due, 1):.1%}), {link.packets_lost()} packets lost, {asked} asked for"
    if due == 0:
        text += f"; it said: {publisher.said()}"
    return row.result(passed, text, viewer, len(viewer.hashes))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = os.path.abspath(sys.argv[1])
    # A busy machine must not look like a slow client.
    os.nice(-10)
    ffmpeg, gstreamer, plugin = versions()
    missing = [name for name, found in (("FFMPEG", ffmpeg), ("GST_LAUNCH", gstreamer), ("GST_PLUGIN_PATH", plugin)) if not found]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}. {__doc__}")
    print("program | version | what was done | first frame | frames | result")
    release = f"{gstreamer}, plugin {plugin}"
    rows = []
    link = Link()
    gateway = Gateway(binary, link)
    try:
        rows.append(gstreamer_watches_h264(gateway, link, release))
        rows.append(gstreamer_publishes_and_watches_vp8(gateway, link, release))
    finally:
        gateway.stop()
        link.close()
    clip, numbers = make_clip()
    try:
        rows.append(ffmpeg_publishes_over_loss(binary, ffmpeg, clip, numbers))
    finally:
        run_client("rm", "-f", clip)
    sys.exit(0 if all(row.passed for row in rows) else 1)


if __name__ == "__main__":
    main()
