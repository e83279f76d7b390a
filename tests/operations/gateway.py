"""A gateway for the checks of this folder: with a stream that plays, one whose source fails, and a transcode."""

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
API_TOKEN = "token-of-the-operator"
# Pages name the address of a gateway that was started without a configuration.
DEFAULT_ADDRESS = "localhost:8080"
# Bounds how long a failure takes; nothing is judged by it.
PATIENCE = 60

CONFIGURATION = """
[http]
listen = "127.0.0.1:0"
[webrtc]
listen = "127.0.0.1:0"
# The viewer of the checks never connects.
connect_timeout = 60
[auth]
publish_token = "token-of-the-publisher"
api_token = "{token}"
[limits]
requests_per_second = 0
failures_per_second = 0
drain_seconds = 0
[api]
source_test_timeout = 1
[log]
format = "json"
[streams."live"]
pipeline = "file"
params = {{ path = "{clip}" }}
[streams."gone"]
rtsp = "rtsp://127.0.0.1:9/nothing"
"""


class Gateway:
    """A running gateway. `folder` takes its files."""

    def __init__(self, binary, folder):
        clip = folder / "clip.mp4"
        # B-frames and AAC are what browsers get only transcoded.
        source = ["-f", "lavfi", "-i", "testsrc=size=320x180:rate=25:duration=4", "-f", "lavfi", "-i", "sine=duration=4"]
        codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac"]
        subprocess.run(["ffmpeg", "-loglevel", "error", *source, *codecs, clip], check=True)
        config = folder / "millstream.toml"
        config.write_text(CONFIGURATION.format(token=API_TOKEN, clip=clip))
        config.chmod(0o600)
        self.log = []
        self.process = subprocess.Popen(
            [binary, "serve", "--config", config], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.address = self._listening_address()
        # Nobody else reads the log, and the gateway must not wait for that.
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def _listening_address(self):
        for line in self.process.stderr:
            self.log.append(line)
            fields = json.loads(line).get("fields", {})
            if fields.get("message") == "gateway listening":
                return fields["http"]
        raise SystemExit("the gateway did not start:\n" + "".join(self.log))

    @property
    def url(self):
        return f"http://{self.address}"

    def get(self, path):
        """Returns status and body."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {API_TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def watch(self, stream):
        """Sends the offer of a browser that decodes no AAC: the stream is transcoded for it."""
        offer = (PROJECT / "tests/data/offers/chromium-156-recvonly.sdp").read_bytes()
        headers = {"Content-Type": "application/sdp"}
        request = urllib.request.Request(f"{self.url}/whep/{stream}", data=offer, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert response.status == 201, response.status

    def stop(self):
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        assert code == 0, f"the gateway ended with {code}:\n" + "".join(self.log[-20:])


def wait_until(holds, what):
    """Waits until `holds` returns something true, and returns it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = holds()
        if result:
            return result
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE} s for {what}")
        time.sleep(0.2)


def environment(**more):
    """The environment of programs that are run, in which no proxy stands between them and the gateway."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **more}
