"""Cameras that deviate from RTSP, RTP and SDP in one way each. Media goes within the RTSP connection."""

import asyncio
import base64
import functools
import hashlib
import re
import struct
import time

import media
from media import RATE

SIZE = 1200


def fragments(nal, codec):
    if len(nal) <= SIZE:
        return [nal]
    header = 1 if codec == "h264" else 2
    kind = nal[0] & 31 if codec == "h264" else nal[0] >> 1 & 63
    unit = bytes([nal[0] & 0xE0 | 28]) if codec == "h264" else bytes([nal[0] & 0x81 | 49 << 1, nal[1]])
    pieces = [nal[at : at + SIZE] for at in range(header, len(nal), SIZE)]
    flags = lambda index: (index == 0) << 7 | (index == len(pieces) - 1) << 6
    return [unit + bytes([flags(index) | kind]) + piece for index, piece in enumerate(pieces)]


class Video:
    kind, payload_type, clock_rate = "video", 96, 90000
    interval = 1 / RATE

    def __init__(self, codec="h264", in_sdp=True, interval=RATE):
        self.codec, self.units = codec, media.video(codec, interval)
        encoded = [base64.b64encode(nal).decode() for nal in self.units[0]]
        name, fmtp = {
            "h264": ("H264", "packetization-mode=1;sprop-parameter-sets=" + ",".join(encoded[:2])),
            "h265": ("H265", ";".join(f"sprop-{s}={e}" for s, e in zip(["vps", "sps", "pps"], encoded))),
        }[codec]
        self.lines = [f"a=rtpmap:96 {name}/90000"] + ([f"a=fmtp:96 {fmtp}"] if in_sdp else [])

    def payloads(self, number):
        unit = self.units[number % len(self.units)]
        payloads = [payload for nal in unit for payload in fragments(nal, self.codec)]
        return [(payload, payload is payloads[-1]) for payload in payloads]


class Audio:
    """Audio in packets of a fixed length each."""

    kind = "audio"

    def __init__(self, name, rate, data, length, ticks, payload_type=97, fmtp=None):
        self.payload_type, self.clock_rate, self.interval = payload_type, rate, ticks / rate
        self.data, self.length = data, length
        self.lines = [f"a=rtpmap:{payload_type} {name}"] + ([f"a=fmtp:{payload_type} {fmtp}"] if fmtp else [])

    def payloads(self, number):
        at = number % (len(self.data) // self.length) * self.length
        return [(self.data[at : at + self.length], number == 0)]


class Aac:
    """AAC by RFC 3640."""

    kind, payload_type, clock_rate, interval = "audio", 97, 16000, 1024 / 16000

    def __init__(self, fmtp):
        self.frames = media.aac_frames(self.clock_rate)
        self.lines = ["a=rtpmap:97 MPEG4-GENERIC/16000/1"] + ([f"a=fmtp:97 {fmtp}"] if fmtp else [])

    def payloads(self, number):
        frame = self.frames[number % len(self.frames)]
        return [(struct.pack(">HH", 16, len(frame) << 3) + frame, True)]


class Session:
    """What one client of a camera has set up."""

    def __init__(self, writer, tracks):
        self.writer, self.set_up, self.player = writer, [], None
        self.seq = [100] * len(tracks)
        self.ssrc = [0x1000 + index for index in range(len(tracks))]


class Camera:
    path = "/cam"
    timeout = 60

    def __init__(self, *tracks):
        self.tracks = tracks or (Video(),)

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def url(self):
        return f"rtsp://127.0.0.1:{self.port}{self.path}"

    # What cases change.

    def description(self):
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"]
        for index, track in enumerate(self.tracks):
            lines += [f"m={track.kind} 0 RTP/AVP {track.payload_type}", *track.lines, f"a=control:track{index}"]
        return ("\r\n".join(lines) + "\r\n").encode()

    def transport(self, index):
        return f"RTP/AVP/TCP;unicast;interleaved={2 * index}-{2 * index + 1}"

    def challenges(self, method, headers):
        """Returns challenges if the request is not authenticated."""
        return []

    def odd_payloads(self, number):
        """Payloads behind this frame of video."""
        return []

    def odd_bytes(self, number):
        """Bytes in the connection behind this frame of video."""
        return b""

    def before_frame(self, session, index, number):
        pass

    def timestamp(self, index, number):
        track = self.tracks[index]
        return 1000 + round(number * track.interval * track.clock_rate)

    def report_time(self, seconds):
        return int((seconds + 2208988800) * 2**32)

    # The protocol.

    async def serve(self, reader, writer):
        session = Session(writer, self.tracks)
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"$":
                    _, length = struct.unpack(">BH", await reader.readexactly(3))
                    await reader.readexactly(length)
                    continue
                text = (first + await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
                line, *fields = text.split("\r\n")
                headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
                await reader.readexactly(int(headers.get("content-length", 0)))
                if not line.startswith("RTSP/"):
                    self.answer(session, line.split(" "), headers)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            if session.player:
                session.player.cancel()
            writer.close()

    def answer(self, session, request, headers):
        method, url = request[:2]
        status, more, body = "200 OK", [f"Session: 12345678;timeout={self.timeout}"], b""
        challenges = self.challenges(method, headers)
        if challenges:
            status, more = "401 Unauthorized", challenges
        elif method == "OPTIONS":
            more = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"]
        elif method == "DESCRIBE":
            body = self.description()
            more = [f"Content-Base: {self.url()}/", "Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            index = int(re.search(r"track(\d+)$", url)[1])
            session.set_up.append(index)
            more.append(f"Transport: {self.transport(index)}")
        elif method == "PLAY" and not session.player:
            session.player = asyncio.ensure_future(self.play(session))
        lines = [f"RTSP/1.0 {status}", f"CSeq: {headers.get('cseq', 0)}", *more]
        session.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    async def play(self, session):
        started, reported = time.time(), 0
        numbers = dict.fromkeys(session.set_up, 0)
        due = lambda index: started + numbers[index] * self.tracks[index].interval
        try:
            while True:
                index = min(numbers, key=due)
                await asyncio.sleep(max(0, due(index) - time.time()))
                number = numbers[index]
                self.before_frame(session, index, number)
                data = b""
                if time.time() - reported > 2:
                    reported = time.time()
                    for other in numbers:
                        data += self.interleaved(2 * other + 1, self.report(session, other, numbers[other], due(other)))
                for payload, marker in self.tracks[index].payloads(number):
                    data += self.packet(session, index, payload, marker, self.timestamp(index, number))
                if self.tracks[index].kind == "video":
                    for payload in self.odd_payloads(number):
                        data += self.packet(session, index, payload, False, self.timestamp(index, number + 1))
                    data += self.odd_bytes(number)
                numbers[index] += 1
                session.writer.write(data)
                await session.writer.drain()
        except ConnectionError:
            pass

    @staticmethod
    def interleaved(channel, packet):
        return struct.pack(">cBH", b"$", channel, len(packet)) + packet

    def packet(self, session, index, payload, marker, timestamp):
        seq = session.seq[index]
        session.seq[index] = seq + 1 & 0xFFFF
        kind = marker << 7 | self.tracks[index].payload_type
        header = struct.pack(">BBHII", 0x80, kind, seq, timestamp & 0xFFFFFFFF, session.ssrc[index])
        return self.interleaved(2 * index, header + payload)

    def report(self, session, index, number, at):
        ntp, timestamp = self.report_time(at), self.timestamp(index, number) & 0xFFFFFFFF
        return struct.pack(">BBHIQIII", 0x80, 200, 6, session.ssrc[index], ntp, timestamp, number, number)


class Odd(Camera):
    """Sends this payload once a second."""

    def __init__(self, payload, codec="h264"):
        super().__init__(Video(codec))
        self.payload = payload

    def odd_payloads(self, number):
        return [self.payload] if number % RATE == 10 else []


class NewSsrc(Camera):
    """Changes its SSRC with each group of pictures."""

    def before_frame(self, session, index, number):
        session.ssrc[index] = 0x2000 + number // RATE


class Restarting(Camera):
    """Restarts its encoder every four seconds: SSRC, sequence numbers and timestamps begin anew."""

    def before_frame(self, session, index, number):
        session.ssrc[index] = 0x2000 + number // (4 * RATE)
        if number and number % (4 * RATE) == 0:
            session.seq[index] = 7000 * (number // RATE) & 0xFFFF

    def timestamp(self, index, number):
        return super().timestamp(index, number) + number // (4 * RATE) % 4 * 1_000_000_000


class Rewinding(Camera):
    """Begins its sequence numbers anew every four seconds."""

    def before_frame(self, session, index, number):
        if number % (4 * RATE) == 0:
            session.seq[index] = 0


class NoInterleaved(Camera):
    def transport(self, index):
        return "RTP/AVP/TCP;unicast"


class OddSsrc(Camera):
    def transport(self, index):
        return super().transport(index) + ";ssrc=0x1000 ;mode=play"


class WrongSsrc(Camera):
    def transport(self, index):
        return super().transport(index) + ";ssrc=DEADBEEF"


class Asking(Camera):
    """Sends requests of its own."""

    def __init__(self, *requests):
        super().__init__()
        self.requests = requests

    def odd_bytes(self, number):
        if number % (2 * RATE) != 5:
            return b""
        method = self.requests[number // (2 * RATE) % len(self.requests)]
        body = self.description() if method == "ANNOUNCE" else b"key: value\r\n" if method == "SET_PARAMETER" else b""
        kind = {"ANNOUNCE": "application/sdp"}.get(method, "text/parameters")
        more = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{method} {self.url()} RTSP/1.0\r\nCSeq: {number}\r\nSession: 12345678\r\n{more}\r\n".encode() + body


class Authenticating(Camera):
    username, password, qop = "u", "p", "auth"

    def url(self):
        return super().url().replace("rtsp://", f"rtsp://{self.username}:{self.password}@")

    def fields(self, headers):
        return {k: q or v for k, q, v in re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', headers.get("authorization", ""))}

    def is_right(self, method, fields, nonce):
        if fields.get("nonce") != nonce:
            return False
        digest = lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        extra = ":" + digest("") if fields.get("qop") == "auth-int" else ""
        secret = digest(f"{self.username}:camera:{self.password}")
        action = digest(f"{method}:{fields['uri']}{extra}")
        middle = ":".join(fields[name] for name in ("nonce", "nc", "cnonce", "qop") if name in fields)
        return fields.get("response") == digest(f"{secret}:{middle}:{action}")

    def challenge(self, nonce, stale=False):
        qop = f', qop="{self.qop}"' if self.qop else ""
        return [f'WWW-Authenticate: Digest realm="camera", nonce="{nonce}"{qop}{", stale=true" if stale else ""}']

    def challenges(self, method, headers):
        return [] if self.is_right(method, self.fields(headers), "n1") else self.challenge("n1")


class AuthInt(Authenticating):
    qop = "auth,auth-int"


class OneTimeNonces(Authenticating):
    count, last = 0, None

    def challenges(self, method, headers):
        if self.last and self.is_right(method, self.fields(headers), self.last):
            self.last = None
            return []
        self.count += 1
        self.last = f"n{self.count}"
        return self.challenge(self.last, stale=True)


class StaleNonce(Authenticating):
    """Its nonce is good for eight seconds, and a session without a keepalive for ten."""

    timeout = 10

    def challenges(self, method, headers):
        now = int(time.time() / 8)
        fields = self.fields(headers)
        for nonce in (f"n{now}", f"n{now - 1}"):
            if self.is_right(method, fields, nonce):
                return []
        return self.challenge(f"n{now}", stale="nonce" in fields)

    async def play(self, session):
        self.alive = time.time()
        await asyncio.gather(super().play(session), self.watch(session))

    async def watch(self, session):
        while time.time() - self.alive < 1.5 * self.timeout:
            await asyncio.sleep(0.2)
        session.writer.close()

    def answer(self, session, request, headers):
        if not self.challenges(request[0], headers):
            self.alive = time.time()
        super().answer(session, request, headers)


class Slow(Camera):
    """A key frame each six seconds, and nothing else."""

    def __init__(self):
        video = Video()
        video.interval = 6.0
        video.units = [unit for unit in video.units if len(unit) > 1]
        super().__init__(video)


class Described(Camera):
    """Its description is another."""

    def __init__(self, change, *tracks):
        super().__init__(*tracks)
        self.change = change

    def description(self):
        return self.change(super().description())


ODD = {
    "type 0": b"\x60\1\2\3",
    "type 31": b"\x7f\1\2\3",
    "empty": b"",
    "stray fragment": b"\x7c\x41\0\1",
    "empty fragment": b"\x7c\x85",
    "forbidden bit": b"\x86\0\1",
    "STAP-B": b"\x79\0\1\0\3\6\5\1",
    "MTAP": b"\x7a\0\1\0\5\0\0\0\6\5",
    "truncated STAP-A": b"\x78\0\x20\6",
}
HBR = "streamtype=5;profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3"


def with_audio(name, rate, form, length, ticks, payload_type=97, channels=1, codec=()):
    data = media.audio(f"{form}-{rate}-{channels}", "-ac", str(channels), "-ar", str(rate), *codec, "-f", form)
    return Camera(Video(), Audio(name, rate, data, length, ticks, payload_type))


def described(old, new):
    return lambda: Described(lambda sdp: sdp.replace(old, new))


BOTH, VIDEO = ("video", "audio"), ("video",)
G726 = ("-c:a", "g726le", "-b:a", "32k")
CASES = [
    ("S1", "plain", Camera, VIDEO),
    *(("S1", name, functools.partial(Odd, payload), VIDEO) for name, payload in ODD.items()),
    ("S1", "H.265", lambda: Camera(Video("h265")), VIDEO),
    ("S1", "H.265 type 62", lambda: Odd(bytes([62 << 1, 1, 5, 5]), "h265"), VIDEO),
    ("S1", "H.265 PACI", lambda: Odd(bytes([50 << 1, 1, 2, 1, 5, 5]), "h265"), VIDEO),
    ("S2", "SSRC of each GOP", NewSsrc, VIDEO),
    ("S2", "encoder restarts", Restarting, VIDEO),
    ("S2", "sequence restarts", Rewinding, VIDEO),
    ("S2", "no interleaved", NoInterleaved, VIDEO),
    ("S2", "odd ssrc=", OddSsrc, VIDEO),
    ("S2", "wrong ssrc=", WrongSsrc, VIDEO),
    ("S3", "ANNOUNCE", lambda: Asking("ANNOUNCE"), VIDEO),
    ("S3", "OPTIONS", lambda: Asking("OPTIONS"), VIDEO),
    ("S3", "SET_PARAMETER", lambda: Asking("SET_PARAMETER", "GET_PARAMETER"), VIDEO),
    ("S4", "auth,auth-int", AuthInt, VIDEO),
    ("S4", "one-time nonces", OneTimeNonces, VIDEO),
    ("S4", "stale nonces", StaleNonce, VIDEO),
    ("S5", "a frame each 6 s", Slow, VIDEO),
    ("S6", "Latin-1", described(b"s=camera", b"s=T\xfcre"), VIDEO),
    ("S6", "short o=", described(b"o=- 1 1 IN IP4 127.0.0.1", b"o=Server 34"), VIDEO),
    ("S6", "no t=", described(b"t=0 0\r\n", b""), VIDEO),
    ("S6", "spaces", described(b"fmtp:96 ", b"fmtp: 96  "), VIDEO),
    ("S6", "LF and NUL", lambda: Described(lambda sdp: sdp.replace(b"\r\n", b"\n") + b"\0"), VIDEO),
    ("S7", "PCMA", lambda: with_audio("PCMA/8000", 8000, "alaw", 160, 160, 8), BOTH),
    ("S7", "PCMA 16 kHz", lambda: with_audio("PCMA/16000", 16000, "alaw", 320, 320), BOTH),
    ("S7", "PCMU 16 kHz", lambda: with_audio("PCMU/16000", 16000, "mulaw", 320, 320), BOTH),
    ("S7", "L16 44.1 kHz", lambda: with_audio("L16/44100/2", 44100, "s16be", 1200, 300, channels=2), BOTH),
    ("S7", "L16 8 kHz", lambda: with_audio("L16/8000", 8000, "s16be", 320, 160), BOTH),
    ("S7", "G726-32", lambda: with_audio("G726-32/8000", 8000, "g726le", 80, 160, codec=G726), BOTH),
    ("S7", "AAC", lambda: Camera(Video(), Aac(HBR + ";config=1408")), BOTH),
    ("S7", "AAC without config", lambda: Camera(Video(), Aac(HBR)), BOTH),
    ("S7", "AAC without fmtp", lambda: Camera(Video(), Aac("")), BOTH),
]
