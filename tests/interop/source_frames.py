"""Cameras and HLS origins that deviate: how many frames a WebRTC viewer of the gateway sees, beside how many ffmpeg
shows of the same input in the same time.

Usage: python source_frames.py GATEWAY_BINARY [CASE...]

A case is named by a part of its row and name, such as S1 or cookie. Prints a table, and fails where the viewer sees less
than 99 % of what ffmpeg shows.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

import cameras
import origins

# Frames are counted for so many seconds, so long after the first one: a group of pictures comes at once at the start.
COUNTED, SETTLED = int(os.environ.get("COUNTED", "30")), 3
ENOUGH = 0.99
# So many cases run at a time.
TOGETHER = int(os.environ.get("TOGETHER", "8"))
PATIENCE = 30


class Counter:
    """Frames of one kind, by the time at which they were seen."""

    def __init__(self):
        self.times = []

    def add(self):
        self.times.append(time.monotonic())

    def result(self):
        if not self.times:
            return 0
        begin = self.times[0] + SETTLED
        return sum(begin <= at < begin + COUNTED for at in self.times)


async def watch(http, base, stream, kinds):
    connection, counters, tasks = RTCPeerConnection(), {kind: Counter() for kind in kinds}, []

    async def count(track):
        try:
            while True:
                await track.recv()
                if track.kind in counters:
                    counters[track.kind].add()
        except MediaStreamError:
            pass

    connection.on("track", lambda track: tasks.append(asyncio.ensure_future(count(track))))
    for kind in ("audio", "video"):
        connection.addTransceiver(kind, "recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    headers = {"Content-Type": "application/sdp"}
    async with http.post(f"{base}/whep/{stream}", data=connection.localDescription.sdp, headers=headers) as response:
        body = await response.text()
        if response.status != 201:
            await connection.close()
            return counters
        try:
            await connection.setRemoteDescription(RTCSessionDescription(body, "answer"))
        except ValueError:
            # aiortc takes no answer that rejects a section.
            await connection.close()
            return counters
    started = time.monotonic()
    while time.monotonic() - started < SETTLED + COUNTED + PATIENCE:
        await asyncio.sleep(0.2)
        firsts = [counter.times[0] for counter in counters.values() if counter.times]
        waits = len(firsts) < len(counters) and time.monotonic() - started < PATIENCE
        if not waits and time.monotonic() > max(firsts, default=0) + SETTLED + COUNTED:
            break
    await connection.close()
    return counters


async def by_ffmpeg(url, kind):
    """Frames that ffmpeg shows: by the clock of a camera, by the timestamps of an origin, which come in segments."""
    is_camera = url.startswith("rtsp")
    options = ["-rtsp_transport", "tcp"] if is_camera else ["-t", str(COUNTED)]
    command = ["ffmpeg", "-nostdin", "-v", "error", *options, "-i", url, "-map", f"0:{kind[0]}:0"]
    command += ["-fps_mode", "passthrough"] if kind == "video" else []
    command += ["-flush_packets", "1", "-f", "framecrc", "-"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    counter, deadline = Counter(), time.monotonic() + SETTLED + COUNTED + PATIENCE
    try:
        while True:
            due = min(deadline, counter.times[0] + SETTLED + COUNTED) if counter.times and is_camera else deadline
            line = await asyncio.wait_for(process.stdout.readline(), max(0.01, due - time.monotonic()))
            if not line:
                break
            if not line.startswith(b"#"):
                counter.add()
    except asyncio.TimeoutError:
        pass
    if process.returncode is None:
        process.kill()
    await process.wait()
    return counter.result() if is_camera else len(counter.times)


class Gateway:
    def __init__(self, binary, streams):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "gateway.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write('[http]\nlisten = "127.0.0.1:0"\n[webrtc]\nlisten = "127.0.0.1:0"\nannounce = ["127.0.0.1"]\n')
            file.write('[auth]\napi_token = "token"\npublish_token = "token"\n[sources]\nallow = ["127.0.0.0/8"]\n')
            file.write('[log]\nformat = "json"\n[limits]\ndrain_seconds = 0\n')
            for name, (key, url) in streams.items():
                file.write(f'[streams."{name}"]\n{key} = "{url}"\n')
        self.log = open(os.environ.get("GATEWAY_LOG") or os.path.join(self.folder.name, "log"), "wb+")
        self.process = subprocess.Popen([binary, "serve", "--config", path], stdout=subprocess.DEVNULL, stderr=self.log)
        self.base = None
        while not self.base:
            time.sleep(0.1)
            self.log.flush()
            for line in open(self.log.name, "rb"):
                fields = json.loads(line).get("fields", {}) if line.startswith(b"{") else {}
                if fields.get("message") == "gateway listening":
                    self.base = f"http://{fields['http']}"
            if self.process.poll() is not None:
                sys.exit(f"the gateway ended: {open(self.log.name).read()}")

    def shown(self, stream):
        headers = {"Authorization": "Bearer token"}
        request = urllib.request.Request(f"{self.base}/api/v1/streams/{stream}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


async def compare(binary, group):
    """Returns a row for each kind of media of each case."""
    streams = {}
    group = [(row, name, make(), kinds) for row, name, make, kinds in group]
    for index, (_, _, server, _) in enumerate(group):
        await server.start()
        streams[f"s{index}"] = ("rtsp" if server.url().startswith("rtsp") else "hls", server.url())
    gateway = await asyncio.to_thread(Gateway, binary, streams)
    rows = []
    try:
        live = time.monotonic() + 20
        states = {}
        while time.monotonic() < live and len(states) < len(streams):
            for name in streams:
                if (await asyncio.to_thread(gateway.shown, name))["live"]:
                    states[name] = True
            await asyncio.sleep(0.3)
        async with aiohttp.ClientSession() as http:
            viewers = [watch(http, gateway.base, f"s{index}", kinds) for index, (*_, kinds) in enumerate(group)]
            players = [by_ffmpeg(server.url(), kind) for _, _, server, kinds in group for kind in kinds]
            seen, shown = await asyncio.gather(asyncio.gather(*viewers), asyncio.gather(*players))
        shown = iter(shown)
        for index, ((row, name, _, kinds), counters) in enumerate(zip(group, seen)):
            state = await asyncio.to_thread(gateway.shown, f"s{index}")
            for kind in kinds:
                rows.append((row, name, kind, counters[kind].result(), next(shown), state))
    finally:
        gateway.stop()
    return rows


def reported_errors(state):
    source = state["source"]
    notes = [source["fallback"], source["last_error"], source["passed_over_reason"], *state["warnings"]]
    notes += [f"{source['restarts']} restarts"] if source["restarts"] else []
    return "; ".join(note for note in notes if note)


def is_wanted(row, name, wanted):
    return not wanted or any(part in f"{row} {name}" for part in wanted)


async def main(binary, wanted):
    chosen = [case for case in cameras.CASES + origins.CASES if is_wanted(*case[:2], wanted)]
    failed = 0
    print("| row | input | kind | viewer | ffmpeg | share | what the API says |\n|---|---|---|---|---|---|---|")
    for at in range(0, len(chosen), TOGETHER):
        for row, name, kind, seen, shown, state in await compare(binary, chosen[at : at + TOGETHER]):
            # Opus has frames of 20 ms, other codecs have theirs: audio is there or not.
            due = shown if kind == "video" else min(shown, 40 * COUNTED)
            share = seen / due if due else float(seen > 0)
            passed = share >= ENOUGH
            failed += not passed
            verdict = f"{share:.1%}" if passed else f"**{share:.1%}**"
            print(f"| {row} | {name} | {kind} | {seen} | {shown} | {verdict} | {reported_errors(state)} |", flush=True)
    print(f"{failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    asyncio.run(main(os.path.abspath(sys.argv[1]), sys.argv[2:]))
