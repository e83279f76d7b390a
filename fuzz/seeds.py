#!/usr/bin/env python3
"""Writes the inputs that fuzzing begins with: seeds.py FOLDER makes FOLDER/TARGET/NAME.

They are made from tests/data and from the files in fuzz/seeds in the form that each target reads; the rest is written
here. Inputs on which a target once failed are in tests/data/fuzz/TARGET, and stay inputs.
"""

import hashlib
import hmac
import shutil
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/data"
SEEDS = ROOT / "fuzz/seeds"
OUR_PWD = b"0123456789abcdefghijkl"
CODECS = ["h264", "h265", "vp8", "vp9"]


def u16(number):
    return number.to_bytes(2, "big")


def packets(*parts):
    """Each part behind its length."""
    return b"".join(u16(len(part)) + part for part in parts)


def offers():
    for path in sorted(DATA.glob("offers/*.sdp")) + sorted(DATA.glob("answers/*.sdp")):
        yield f"{path.parent.name}-{path.name}", path.read_bytes()


def fragments():
    for path in sorted(DATA.glob("offers/*.sdpfrag")):
        yield path.name, path.read_bytes()
    yield "restart", b"a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijkl\r\n"
    yield "candidate", b"m=audio 9 UDP/TLS/RTP/SAVPF 0\na=mid:0\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\n"


def rtp():
    """Recorded packets of each codec, with a sender report before them and audio between them."""
    report = bytes.fromhex("80c80006 00001234 e0000000 00000000 00000000 00000001 00000002")
    opus = bytes.fromhex("806f0001 00000000 00005678 fc000102")
    for index, codec in enumerate(CODECS):
        recorded = (DATA / f"rtp/{codec}.rtp").read_bytes()
        for choice in (0x10, 0x60):
            yield f"{codec}-{choice:x}", bytes([choice | index]) + packets(report, opus) + recorded
    # With the header extensions that name a layer and count packets.
    extended = bytes.fromhex("90600001 00000000 00000009 bede0003 1030 2068 410001 000000 10") + b"\x00\x9d\x01\x2a\x40\x00\x40\x00"
    yield "layer", bytes([0x0A]) + packets(*[extended] * 4)
    retransmission = bytes.fromhex("80610001 00000000 00001235 fffa 10") + b"\x00\x9d\x01\x2a\x40\x00\x40\x00"
    yield "retransmission", bytes([0x12]) + packets(extended, retransmission)


def depacketizer():
    for index, codec in enumerate(CODECS):
        yield codec, bytes([index]) + (DATA / f"rtp/{codec}.rtp").read_bytes()
    header = bytes.fromhex("80e00001 00000000 00001234")
    # A sequence header and a frame in one packet (AV1 RTP payload format §4.4).
    av1 = bytes.fromhex("18 0b 08 00000004 3f 2a 7f 0f 40 30 30 1000")
    for index, payload in [(4, av1), (5, b"\xfc\x01\x02"), (6, bytes(160)), (7, bytes(160)), (8, b"\x21\x10\x04"), (9, b"\xff\xd8\xff\xd9")]:
        yield f"codec-{index}", bytes([index]) + packets(header + payload)


def rtcp():
    for name, text in {
        "sr": "81c8000c 00000001 e0000000 00000000 00000001 00000002 00000003 00000004 80000005 00000006 00000007 00000008 00000009",
        "rr": "81c90007 00000001 00000002 80000003 00000004 00000005 00000006 00000007",
        "sdes-bye": "81ca0002 00000001 01016100 81cb0001 00000001",
        "nack": "81cd0003 00000001 00000002 0003ffff",
        "pli-fir": "81ce0002 00000001 00000002 84ce0004 00000001 00000000 00000002 01000000",
        "remb": "8fce0005 00000001 00000000 52454d42 01020304 00000002",
        "transport-cc": "8fcd0005 00000001 00000002 00030001 00000100 20010400",
    }.items():
        yield name, bytes.fromhex(text)


def stun(attributes, pwd=None, kind=1):
    """A STUN message (RFC 8489 §5), with MESSAGE-INTEGRITY and FINGERPRINT if there is a password."""
    body = b""
    for code, value in attributes:
        body += u16(code) + u16(len(value)) + value + bytes(-len(value) % 4)

    def head(length):
        return u16(kind) + u16(length) + bytes.fromhex("2112a442") + bytes(range(12))

    if pwd is not None:
        digest = hmac.new(pwd, head(len(body) + 24) + body, hashlib.sha1).digest()
        body += u16(8) + u16(20) + digest
        crc = zlib.crc32(head(len(body) + 8) + body) ^ 0x5354554E
        body += u16(0x8028) + u16(4) + crc.to_bytes(4, "big")
    return head(len(body)) + body


def record(content, body, epoch=0, number=0):
    """A DTLS 1.2 record (RFC 6347 §4.1)."""
    return bytes([content]) + b"\xfe\xfd" + u16(epoch) + number.to_bytes(6, "big") + u16(len(body)) + body


def handshake(kind, body, sequence=0):
    """A handshake message in one fragment (RFC 6347 §4.2.2)."""
    length = len(body).to_bytes(3, "big")
    return bytes([kind]) + length + u16(sequence) + bytes(3) + length + body


def extension(code, body):
    return u16(code) + u16(len(body)) + body


def client_hello(cookie=b""):
    extensions = extension(10, bytes.fromhex("0004001d0017")) + extension(11, b"\x01\x00")
    extensions += extension(13, bytes.fromhex("000404030401")) + extension(14, bytes.fromhex("00040007000100"))
    extensions += extension(23, b"")
    suites = bytes.fromhex("c02bc02f")
    body = b"\xfe\xfd" + bytes(32) + b"\x00" + bytes([len(cookie)]) + cookie + u16(len(suites)) + suites + b"\x01\x00"
    return handshake(1, body + u16(len(extensions)) + extensions)


def server_hello():
    extensions = extension(11, b"\x01\x00") + extension(14, bytes.fromhex("0002000700")) + extension(23, b"")
    return handshake(2, b"\xfe\xfd" + bytes(32) + b"\x00" + bytes.fromhex("c02b00") + u16(len(extensions)) + extensions)


def datagram():
    """The role, then steps: an operation and bytes; see the target."""
    username = (6, b"ours:peer")
    check = stun([username, (0x24, b"\x6e\x00\x01\xff"), (0x8029, bytes(8)), (0x25, b"")], OUR_PWD)
    nominate, wait, lose = b"\x04", b"\x06\x20", b"\x07"
    hello = record(22, client_hello())
    alert = record(21, b"\x01\x00")
    early = record(22, bytes(40), epoch=1)
    response = stun([(0x20, bytes.fromhex("0001e1baea010b0c"))], kind=0x101)
    media = bytes.fromhex("80600001 00000000 00000009") + bytes(20)
    for name, role, steps in [
        ("check", 0, [b"\x00" + check]),
        ("signed", 0, [b"\x03" + stun([username])]),
        ("wrong-password", 0, [b"\x00" + stun([username], b"wrongwrongwrongwrongwrong")]),
        ("unsigned", 1, [b"\x00" + stun([username]), b"\x00" + response]),
        ("hello", 0, [nominate, b"\x00" + hello, wait, b"\x00" + hello + alert + early]),
        ("hello-from-elsewhere", 0, [nominate, b"\x10" + hello]),
        ("moves", 0, [nominate, b"\x00" + hello, b"\x14", wait, b"\x15", b"\x10" + alert, lose]),
        ("server-hello", 1, [nominate, wait, b"\x00" + record(22, server_hello() + handshake(14, b"", 1))]),
        ("verify-request", 1, [nominate, b"\x00" + record(22, handshake(3, b"\xfe\xff\x04abcd")), wait]),
        ("media", 1, [nominate, b"\x00" + media, b"\x10" + media]),
    ]:
        yield name, bytes([role]) + packets(*steps)


def framing():
    yield "one", b"\x01" + packets(b"", b"a", bytes(700))
    yield "whole", b"\xff" + packets(stun([(6, b"ours:peer")], OUR_PWD), bytes(4096))
    yield "too-long", b"\x07" + packets(b"abc") + b"\xff\xff" + bytes(100)
    yield "cut", b"\x03" + packets(b"abc") + b"\x00\x09abc"


def sctp():
    """Chunks behind an association whose first number is 1000, as the target opens it."""
    def u32(number):
        return number.to_bytes(4, "big")

    def chunk(kind, flags, value):
        return bytes([kind, flags]) + u16(4 + len(value)) + value + b"\0" * (-len(value) % 4)

    def message(number, flags, stream, ppid, payload):
        return chunk(0, flags, u32(number) + u16(stream) + u16(0) + u32(ppid) + payload)

    opening = message(1000, 3, 0, 50, b"\3\0\1\0\0\0\0\0\0\4\0\0chat")
    yield "message", packets(opening, message(1001, 3, 0, 51, b"hello"), message(1002, 3, 0, 57, b"\0"))
    yield "fragments", packets(opening, message(1001, 2, 0, 53, b"a" * 600), message(1002, 1, 0, 53, b"b" * 600))
    yield "unordered", packets(opening, message(1002, 7, 0, 51, b"late"), chunk(192, 0, u32(1001)))
    yield "acknowledged", packets(chunk(3, 0, u32(0) + u32(65536) + u16(1) + u16(0) + u16(1) + u16(2)))
    reset = u16(13) + u16(18) + u32(1000) + u32(0) + u32(1000) + u16(0)
    yield "reset", packets(opening, chunk(130, 0, reset), chunk(130, 0, u16(16) + u16(12) + u32(1000) + u32(1)))
    yield "end", packets(chunk(4, 0, u16(1) + u16(8) + b"beat"), chunk(7, 0, u32(999)), chunk(14, 0, b""))
    yield "abort", packets(opening, chunk(6, 0, u16(12) + u16(8) + b"bye!"))


def playlist():
    yield "live", b"""#EXTM3U
#EXT-X-VERSION:6
#EXT-X-TARGETDURATION:4
#EXT-X-MEDIA-SEQUENCE:10
#EXT-X-DISCONTINUITY-SEQUENCE:2
#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES
#EXT-X-MAP:URI="init.mp4",BYTERANGE="700@0"
#EXTINF:4.0,title, with comma
#EXT-X-BYTERANGE:1000@700
all.mp4
#EXTINF:4
#EXT-X-BYTERANGE:500
all.mp4
#EXT-X-DISCONTINUITY
#EXT-X-KEY:METHOD=AES-128,URI="k,ey",IV=0x0000000000000000000000000000000A
#EXT-X-GAP
#EXTINF:4,
b.mp4
#EXT-X-KEY:METHOD=NONE
#EXTINF:4,
c.mp4
#EXT-X-PART:DURATION=0.2,URI="part"
"""
    yield "recorded", b"#EXTM3U\r\n#EXT-X-PLAYLIST-TYPE:VOD\r\n#EXTINF:4,\r\na\r\n#EXT-X-DISCONTINUITY\r\n#EXTINF:3.5,\r\nb\r\n#EXT-X-ENDLIST\r\n"
    first = b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:%d\n#EXTINF:4,\na\n#EXTINF:4,\nb\n"
    yield "reloaded", b"\x01".join(first % number for number in (7, 8, 30, 1, 1))
    yield "multivariant", b"""#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",DEFAULT=YES,URI="a.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=1000,RESOLUTION=640x360,CODECS="avc1.42e01f,mp4a.40.2",AUDIO="a"
v.m3u8
"""


def mpegts():
    for path in sorted(SEEDS.glob("*.ts")):
        yield path.name, path.read_bytes()
    # Packed audio (RFC 8216 §3.4): an ID3 tag with the time, then silent ADTS frames.
    owner = b"com.apple.streaming.transportStreamTimestamp\x00" + (900_000).to_bytes(8, "big")
    tag = b"PRIV" + len(owner).to_bytes(4, "big") + b"\x00\x00" + owner
    frame = bytes.fromhex("fff14c8001bffc21100460 8c1c")
    packed = b"ID3\x04\x00\x00\x00\x00\x00" + bytes([len(tag)]) + tag + frame * 3
    # The target cuts its input at a packet of MPEG-TS; less than two of them is all in the second half.
    yield "packed-audio", packed
    yield "adts", frame * 4


def mp4():
    for path in sorted(SEEDS.glob("*.mp4")):
        data = path.read_bytes()
        init = data.index(b"moof") - 4
        yield path.name, u16(init) + data
        yield f"no-init-{path.name}", u16(0) + data


def config():
    for path in ["deploy/millstream.toml"]:
        yield path.replace("/", "-"), (ROOT / path).read_bytes()
    yield "everything", b"""[http]
listen = "127.0.0.1:8080"
[webrtc]
listen = "[::]:8189"
announce = ["192.0.2.1"]
[ice]
servers = ["stun:stun.example.org:3478"]
[auth]
publish_token = "a-token"
webhook_timeout = 3
[[auth.tokens]]
token = "another"
publish = ["studio/*"]
[limits]
viewers = 100
[log]
format = "json"
[streams.door]
rtsp = "rtsp://user:password@192.0.2.1/door"
[streams.news]
hls = "https://example.org/live.m3u8"
[streams.test]
pipeline = "test"
"""
    yield "variables", b"http.listen = 5\n\x00HTTP__LISTEN=127.0.0.1:1\x00AUTH__PLAY_TOKEN=x\x00NO_SUCH=1"
    yield "mistakes", b"[htp]\nlisten = 1\n[http\nx = [1,\n[http]\nlisten = \"a\nlisten = 'b'\n"


TARGETS = {
    "offer": offers, "fragment": fragments, "datagram": datagram, "framing": framing, "rtp": rtp, "rtcp": rtcp,
    "sctp": sctp,
    "depacketizer": depacketizer, "playlist": playlist, "mpegts": mpegts, "mp4": mp4, "config": config,
}  # fmt: skip


def main():
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    for target, seeds in TARGETS.items():
        folder = out / target
        folder.mkdir(parents=True)
        found = ((f"found-{path.name}", path.read_bytes()) for path in sorted((DATA / "fuzz").glob(f"{target}/*")))
        for name, data in [*seeds(), *found]:
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
