"""aiortc publishes to and watches from a real gateway: another stack than the browsers', with full ICE and DTLS of its own.

Usage: python aiortc_peers.py GATEWAY_BINARY
"""

import asyncio
import json
import os
import subprocess
import sys

import aiohttp
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, VideoStreamTrack

TOKEN = "token-of-the-interop-test"
SDP = {"Content-Type": "application/sdp"}
# Frames of each kind that a viewer has to decode.
ENOUGH = 40
PATIENCE = 40


def start_gateway(binary):
    environment = {
        **os.environ,
        "MILLSTREAM_HTTP__LISTEN": "127.0.0.1:0",
        "MILLSTREAM_LIMITS__DRAIN_SECONDS": "0",
        "MILLSTREAM_WEBRTC__LISTEN": "127.0.0.1:0",
        "MILLSTREAM_AUTH__PUBLISH_TOKEN": TOKEN,
        "MILLSTREAM_LOG__FORMAT": "json",
    }
    gateway = subprocess.Popen([binary, "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for line in gateway.stderr:
        fields = json.loads(line).get("fields", {})
        if fields.get("message") == "gateway listening":
            return gateway, f"http://{fields['http']}"
    raise SystemExit("the gateway did not start")


async def exchange(http, url, connection, headers):
    await connection.setLocalDescription(await connection.createOffer())
    async with http.post(url, data=connection.localDescription.sdp, headers=headers) as response:
        body = await response.text()
        assert response.status == 201, f"{response.status}: {body}"
        await connection.setRemoteDescription(RTCSessionDescription(body, "answer"))
        return response.headers["Location"]


async def watch(http, base, stream):
    connection = RTCPeerConnection()
    frames = {"audio": 0, "video": 0}
    complete = asyncio.Event()

    async def count(track):
        try:
            while True:
                await track.recv()
                frames[track.kind] += 1
                if min(frames.values()) >= ENOUGH:
                    complete.set()
        except MediaStreamError:
            pass

    connection.on("track", lambda track: asyncio.ensure_future(count(track)))
    for kind in frames:
        connection.addTransceiver(kind, "recvonly")
    await exchange(http, f"{base}/whep/{stream}", connection, SDP)
    try:
        await asyncio.wait_for(complete.wait(), PATIENCE)
    except asyncio.TimeoutError:
        raise SystemExit(f"{stream}: {frames}") from None
    finally:
        await connection.close()
    return frames


async def publish_and_watch(base, codec):
    connection = RTCPeerConnection()
    connection.addTransceiver(VideoStreamTrack(), "sendonly")
    connection.addTransceiver(AudioStreamTrack(), "sendonly")
    codecs = RTCRtpSender.getCapabilities("video").codecs
    connection.getTransceivers()[0].setCodecPreferences([c for c in codecs if c.mimeType == f"video/{codec}"])
    async with aiohttp.ClientSession() as http:
        headers = {**SDP, "Authorization": f"Bearer {TOKEN}"}
        session = await exchange(http, f"{base}/whip/{codec}", connection, headers)
        while connection.connectionState != "connected":
            await asyncio.sleep(0.05)
        frames = await watch(http, base, codec)
        async with http.delete(base + session) as response:
            assert response.status == 200, response.status
    await connection.close()
    print(f"aiortc {codec}: {frames}")


async def main(binary):
    gateway, base = start_gateway(binary)
    try:
        for codec in ["VP8", "H264"]:
            await asyncio.wait_for(publish_and_watch(base, codec), 2 * PATIENCE)
    finally:
        gateway.terminate()
        gateway.wait(10)
    print("2 passed, 0 failed")


asyncio.run(main(sys.argv[1]))
