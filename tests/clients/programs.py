"""Real programs in a network namespace, and the frames that they show."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time

FFMPEG = os.environ.get("FFMPEG", "ffmpeg")
GST_LAUNCH = os.environ.get("GST_LAUNCH", "gst-launch-1.0")
WRAPPER = shlex.split(os.environ.get("CLIENT_WRAPPER", ""))
HERE = os.path.dirname(os.path.abspath(__file__))

# Seconds that a client may take until its first frame, on any machine.
PATIENCE = 60
# Of the frames that viewers show: they are counted, or compared with those of the clip.
SMALL = (320, 180)


class Client:
    """A process in a namespace. What it writes to `{pipe}` of its command is read here; `stdout=True` reads that."""

    def __init__(self, namespace, *command, stdout=False, wrapper=WRAPPER):
        reader, writer = os.pipe()
        environment = [f"{name}={os.environ[name]}" for name in ("GST_PLUGIN_PATH",) if name in os.environ]
        command = [argument.replace("{pipe}", str(writer)) for argument in command]
        full = ["ip", "netns", "exec", namespace, *wrapper, "env", *environment, *command]
        self.log = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            full,
            stdin=subprocess.DEVNULL,
            stdout=writer if stdout else self.log,
            stderr=self.log,
            pass_fds=(writer,),
            # A terminal that ends the test ends its clients in order.
            start_new_session=True,
        )
        os.close(writer)
        self.output = os.fdopen(reader, "rb")

    def said(self):
        """The end of what it wrote to its log."""
        self.log.seek(0)
        lines = [line for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "rror:" in line]
        return (errors or lines or ["nothing"])[-1][:200].replace("|", "/")

    def signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self):
        self.signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()


class Viewer(Client):
    """A client that writes its frames as I420 of `size`."""

    def __init__(self, namespace, size, *command, **options):
        super().__init__(namespace, *command, **options)
        self.frame_bytes = size[0] * size[1] * 3 // 2
        self.first = None
        self.last = None
        self.hashes = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while len(frame := self.output.read(self.frame_bytes)) == self.frame_bytes:
            self.last = time.monotonic() - self.started
            self.first = self.first or self.last
            self.hashes.append(hashlib.md5(frame, usedforsecurity=False).digest())

    def wait(self, frames, seconds):
        deadline = time.monotonic() + seconds
        while len(self.hashes) < frames and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
        return len(self.hashes)

    def stop(self):
        self.signal(signal.SIGINT)
        self.thread.join(10)
        super().stop()


def by_whep(namespace, url, size=SMALL, audio=True):
    """GStreamer's whepclientsrc."""
    caps = f"video/x-raw,format=I420,width={size[0]},height={size[1]}"
    video = ["ws.", "!", "video/x-raw", "!", "queue", "!", "videoconvert", "!", "videoscale", "!", caps]
    audio_branch = ["ws.", "!", "audio/x-raw", "!", "queue", "!", "fakesink", "sync=false"] if audio else []
    return Viewer(
        namespace,
        size,
        *[GST_LAUNCH, "whepclientsrc", "name=ws", 'stun-server=""', f"signaller::whep-endpoint={url}"],
        *video,
        *["!", "fdsink", "fd={pipe}", "sync=false"],
        *audio_branch,
    )


def by_hls(namespace, program, url):
    """A player of HLS: `ffmpeg`, `mpv`, `vlc` or `hlsdemux2`."""
    width, height = SMALL
    caps = f"video/x-raw,format=I420,width={width},height={height}"
    if program == "ffmpeg":
        scaled = ["-map", "0:v:0", "-vf", f"scale={width}:{height}", "-pix_fmt", "yuv420p", "-f", "rawvideo"]
        # No frame is written twice.
        scaled += ["-fps_mode", "passthrough"]
        return Viewer(namespace, SMALL, FFMPEG, "-v", "error", "-i", url, *scaled, "pipe:{pipe}")
    if program == "mpv":
        raw = ["--of=rawvideo", "--ovc=rawvideo", f"--vf=scale={width}:{height},format=yuv420p", "--no-audio"]
        return Viewer(namespace, SMALL, "mpv", "--no-config", "--msg-level=all=warn", "--o=pipe:{pipe}", *raw, url)
    if program == "vlc":
        # It refuses to run as root.
        chain = f"#transcode{{vcodec=I420,width={width},height={height},acodec=none}}:std{{access=file,mux=dummy,dst=-}}"
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp"]
        player = ["vlc", "-I", "dummy", "--no-sout-audio", "--quiet", "--sout", chain, url]
        return Viewer(namespace, SMALL, *user, *player, stdout=True)
    source = ["uridecodebin3", f"uri={url}", "name=d"]
    video = ["d.", "!", "video/x-raw", "!", "queue", "!", "videoconvert", "!", "videoscale", "!", caps]
    audio_branch = ["d.", "!", "audio/x-raw", "!", "queue", "!", "fakesink", "sync=true"]
    return Viewer(namespace, SMALL, GST_LAUNCH, *source, *video, "!", "fdsink", "fd={pipe}", "sync=true", *audio_branch)


def in_browser(namespace, browser, how, url, seconds):
    """What a browser of this machine shows within some seconds; `how` is `page` or `hls.js`."""
    script = os.path.join(HERE, "browser.mjs")
    command = ["ip", "netns", "exec", namespace, "node", script, browser, how, url, str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 3 * PATIENCE)
    try:
        return json.loads(run.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"version": None, "first": None, "frames": 0, "said": (run.stderr.strip() or "nothing")[-200:]}


def run_client(*command, **options):
    """Runs a client to its end, in no namespace."""
    return subprocess.run([*WRAPPER, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False, **options)


def version(*command):
    """The first line that a program writes of itself; `None` when it is not there."""
    try:
        done = run_client(*command, text=True)
    except FileNotFoundError:
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if lines and done.returncode == 0 else None


def package(name):
    """Version of a Debian package without its revision; `None` when it is not installed."""
    found = version("dpkg-query", "--show", "--showformat=${Version}", name)
    return found.split(":")[-1].split("-")[0].split("+")[0] if found else None


def versions():
    """Versions by program; `None` for one that is not there."""
    words = lambda line, at: line.split()[at] if line and len(line.split()) > at else None
    inspect = shlex.quote(GST_LAUNCH.replace("gst-launch", "gst-inspect"))
    environment = [f"GST_PLUGIN_PATH={os.environ.get('GST_PLUGIN_PATH', '')}"]
    gstreamer = words(version(GST_LAUNCH, "--version"), 2)
    plugin = words(version("env", *environment, "sh", "-c", f"{inspect} rswebrtc | grep -i version"), 1)
    has_obs = version("sh", "-c", "ls /opt/obs-whip/obs-webrtc.so")
    return {
        "ffmpeg": words(version(FFMPEG, "-version"), 2),
        "gstreamer": gstreamer,
        "rswebrtc": gstreamer and plugin and f"{gstreamer}, plugin {plugin}",
        "obs": has_obs and package("obs-studio"),
        "simple-whip-client": package("simple-whip-client"),
        "live555": package("livemedia-utils"),
        "mpv": package("mpv"),
        "vlc": package("vlc-bin"),
    }
