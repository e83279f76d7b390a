"""A gateway in a network namespace."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from programs import PATIENCE

TOKEN = "token-of-the-clients-test"


class Gateway:
    """A gateway in the namespace `a` of a link."""

    def __init__(self, binary, link, config='[streams."test"]\npipeline = "test"\n'):
        self.base = f"http://{link.ip_a}:8080"
        self.namespace = link.a
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "clients.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        self.command = ["ip", "netns", "exec", link.a, binary, "serve", "--config", path]
        self.environment = {
            **os.environ,
            "MILLSTREAM_HTTP__LISTEN": f"{link.ip_a}:8080",
            "MILLSTREAM_WEBRTC__LISTEN": f"{link.ip_a}:8189",
            "MILLSTREAM_WEBRTC__ANNOUNCE": link.ip_a,
            "MILLSTREAM_AUTH__PUBLISH_TOKEN": TOKEN,
            "MILLSTREAM_AUTH__API_TOKEN": TOKEN,
            "MILLSTREAM_LIMITS__DRAIN_SECONDS": "0",
            "MILLSTREAM_LOG__FORMAT": "json",
        }
        self.log = tempfile.TemporaryFile()
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.DEVNULL, stderr=self.log, start_new_session=True
        )

    def kill(self):
        """As a crash ends it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def get(self, path):
        """What the gateway answers, as text; empty if it is an error. This process is in neither namespace."""
        fetch = (
            "import sys, urllib.request as u\n"
            "r = u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
            "sys.stdout.write(u.urlopen(r, timeout=5).read().decode())"
        )
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", fetch, self.base + path, TOKEN]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def stream(self, name):
        """A stream of the API."""
        return json.loads(self.get(f"/api/v1/streams/{name}") or "{}")

    def wait_ready(self):
        deadline = time.monotonic() + PATIENCE
        while not self.get("/api/v1/streams") and time.monotonic() < deadline:
            time.sleep(0.2)

    def wait_live(self, name, seconds=PATIENCE):
        """Until the stream has video that can be sent."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            shown = self.stream(name)
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

    def terminate(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def stop(self):
        self.terminate()
        self.folder.cleanup()
