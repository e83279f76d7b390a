"""HLS origins that deviate in one way each."""

import gzip
import re
import struct
import time

from aiohttp import web

import media
from media import RATE

PACKET = 188


def packets(segment):
    return [segment[at : at + PACKET] for at in range(0, len(segment), PACKET)]


def pid(packet):
    return (packet[1] & 31) << 8 | packet[2]


def is_table(packet):
    return pid(packet) in (0, 17, 4096)


class Live:
    """A live playlist whose window slides over segments that are repeated."""

    def __init__(self, names, seconds=2, window=5, suffix="", tags=""):
        self.names, self.seconds, self.window = names, seconds, window
        self.suffix, self.tags = suffix, tags
        self.started = time.time()
        self.extinf = f"#EXTINF:{seconds:.3f},"

    def text(self):
        last = self.window + int((time.time() - self.started) / self.seconds)
        first = last - self.window
        lines = ["#EXTM3U", "#EXT-X-VERSION:7", f"#EXT-X-TARGETDURATION:{self.seconds}"]
        lines += [f"#EXT-X-MEDIA-SEQUENCE:{first}", f"#EXT-X-DISCONTINUITY-SEQUENCE:{first // len(self.names)}"]
        lines += self.tags.splitlines()
        for number in range(first, last):
            if number % len(self.names) == 0 and number > first:
                lines += ["#EXT-X-DISCONTINUITY", *self.tags.splitlines()]
            lines += [self.extinf, self.names[number % len(self.names)] + self.suffix]
        return "\n".join(lines) + "\n"


class Origin:
    """Serves files, and playlists that are made for each request."""

    def __init__(self, files, playlists, start="index.m3u8"):
        self.files, self.playlists, self.first = files, playlists, start

    async def start(self):
        runner = web.AppRunner(web.Application())
        runner.app.router.add_get("/{path:.*}", self.serve)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    def url(self):
        return f"http://127.0.0.1:{self.port}/{self.first}"

    async def serve(self, request):
        path = request.match_info["path"]
        answer = self.special(request, path)
        if answer is not None:
            return answer
        if path in self.playlists:
            return self.playlist(self.playlists[path].text())
        body = self.files.get(path)
        if body is None:
            raise web.HTTPNotFound
        wanted = re.match(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if wanted:
            begin, end = int(wanted[1]), int(wanted[2])
            headers = {"Content-Range": f"bytes {begin}-{end}/{len(body)}"}
            return web.Response(status=206, body=body[begin : end + 1], headers=headers)
        return web.Response(body=body)

    def special(self, request, path):
        return None

    def playlist(self, text):
        return web.Response(text=text, content_type="application/vnd.apple.mpegurl")


def plain(live=None, **options):
    segments, _ = media.segments("ts")
    names = [f"{index}.ts" for index in range(len(segments))]
    return dict(zip(names, segments)), {"index.m3u8": live or Live(names, **options)}


class Gzip(Origin):
    def playlist(self, text):
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/vnd.apple.mpegurl"}
        return web.Response(body=gzip.compress(text.encode()), headers=headers)


class Cookie(Origin):
    def special(self, request, path):
        if "id=1" in request.headers.get("Cookie", ""):
            return None
        if path == self.first:
            expires = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
            cookie = f"id=1; Path=/; Expires={expires}"
            headers = {"Location": "/index.m3u8?check=1", "Set-Cookie": cookie}
            return None if "check" in request.query else web.Response(status=302, headers=headers)
        return web.Response(status=403)


class Expiring(Origin):
    """The address leads to one that is good for eight seconds."""

    def special(self, request, path):
        now = int(time.time() / 8)
        if path == "start.m3u8":
            return web.Response(status=302, headers={"Location": f"/index.m3u8?token={now}"})
        if path == "index.m3u8" and request.query.get("token") != str(now):
            return web.Response(status=403)
        return None


class Dying(Origin):
    """One of two variants is dead after ten seconds."""

    def special(self, request, path):
        self.asked = getattr(self, "asked", time.time())
        is_dead = time.time() - self.asked > 10
        return web.Response(status=404) if path == "a.m3u8" and is_dead else None


class Text:
    def __init__(self, text):
        self.text = lambda: text


def crc(section):
    value = 0xFFFFFFFF
    for byte in section:
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)
        value &= 0xFFFFFFFF
    return struct.pack(">I", value)


def pes(units, pts):
    """MPEG-TS of H.264 in one PES packet, and the tables."""
    data = b"".join(b"\0\0\0\1\x09\xf0" + b"".join(b"\0\0\0\1" + nal for nal in unit) for unit in units)
    stamp = bytes([0x21 | pts >> 29 & 14, pts >> 22 & 255, 1 | pts >> 14 & 254, pts >> 7 & 255, 1 | pts << 1 & 254])
    return b"\0\0\1\xe0\0\0\x80\x80\5" + stamp + data


class Writer:
    def __init__(self):
        self.counters, self.out = {}, b""

    def put(self, number, data, is_start=True):
        while data:
            counter = self.counters[number] = self.counters.get(number, -1) + 1 & 15
            chunk, data = data[:184], data[184:]
            stuffing = 184 - len(chunk)
            field = b"\0" + b"\xff" * (stuffing - 2) if stuffing > 1 else b""
            fill = bytes([stuffing - 1]) + field if stuffing else b""
            head = bytes([0x47, is_start << 6 | number >> 8, number & 255, (0x30 if stuffing else 0x10) | counter])
            self.out += head + fill + chunk
            is_start = False

    def tables(self):
        pat = bytes([0, 0xB0, 13, 0, 1, 0xC1, 0, 0, 0, 1, 0xF0, 0])
        pmt = bytes([2, 0xB0, 18, 0, 1, 0xC1, 0, 0, 0xE1, 0, 0xF0, 0, 0x1B, 0xE1, 0, 0xF0, 0])
        for number, section in ((0, pat), (4096, pmt)):
            self.put(number, (b"\0" + section + crc(section)).ljust(184, b"\xff"))


def several_in_a_pes(count):
    units = media.video("h264", 2 * RATE)
    files, names = {}, []
    for segment in range(len(units) // 30):
        writer = Writer()
        writer.tables()
        for at in range(30 * segment, 30 * segment + 30, count):
            writer.put(256, pes(units[at : at + count], 900_000 + at * 90_000 // RATE))
        names.append(f"{segment}.ts")
        files[names[-1]] = writer.out
    return Origin(files, {"index.m3u8": Live(names)})


def new_identifiers():
    """Every other segment has another PMT with other PIDs for the same media."""
    files, playlists = plain()
    moved = {}
    for index, (name, segment) in enumerate(files.items()):
        if index % 2:
            out = []
            for packet in packets(segment):
                if pid(packet) == 4096:
                    start = 5 + packet[4]
                    length = (packet[start + 1] & 15) << 8 | packet[start + 2]
                    section = bytearray(packet[start : start + 3 + length - 4])
                    section[5] = section[5] & 0xC1 | (index // 2 % 30 + 1) << 1
                    section[8:10] = struct.pack(">H", 0xE000 | 0x200)
                    at = 12 + ((section[10] & 15) << 8 | section[11])
                    while at < len(section):
                        number = struct.unpack(">H", section[at + 1 : at + 3])[0] & 0x1FFF
                        section[at + 1 : at + 3] = struct.pack(">H", 0xE000 | number + 256)
                        at += 5 + ((section[at + 3] & 15) << 8 | section[at + 4])
                    packet = packet[:start] + bytes(section) + crc(bytes(section)) + packet[start + 3 + length :]
                elif pid(packet) in (256, 257):
                    packet = packet[:1] + struct.pack(">H", (packet[1] & 0xE0) << 8 | pid(packet) + 256) + packet[3:]
                out.append(packet)
            segment = b"".join(out)
        moved[name] = segment
    return Origin(moved, playlists)


def tables(how):
    files, playlists = plain()
    first = [packet for packet in packets(files["0.ts"])[:4] if is_table(packet)]
    names = list(files)
    if how == "late":
        for name in names:
            body = [packet for packet in packets(files[name]) if not is_table(packet)]
            starts = [at for at, packet in enumerate(body) if packet[1] & 0x40 and pid(packet) == 256]
            files[name] = b"".join(body[: starts[1]] + first + body[starts[1] :])
    elif how == "by EXT-X-MAP":
        files = {name: b"".join(p for p in packets(data) if not is_table(p)) for name, data in files.items()}
        files["map.ts"] = b"".join(first)
        playlists["index.m3u8"].tags = '#EXT-X-MAP:URI="map.ts"'
    else:
        stream, at, border = b"".join(files.values()), 0, 0
        for name in names:
            border += len(files[name])
            end = border + 25 * PACKET if name != names[-1] else len(stream)
            at, files[name] = end, stream[at:end]
    return Origin(files, playlists)


def fragmented(how):
    options = []
    if how == "avc3":
        options = ["-bsf:v", "dump_extra", "-tag:v", "avc3", "-strict", "-2"]
    if how == "hev1":
        options = "-c:v libx265 -preset ultrafast -profile:v main -tag:v hev1".split()
        options += ["-x265-params", "keyint=30:bframes=0:log-level=none"]
    segments, init = media.segments("fmp4-" + how, *options, kind="fmp4")
    names = [f"{index}.m4s" for index in range(len(segments))]
    live = Live(names, tags='#EXT-X-MAP:URI="init.mp4"')
    codecs = {"avc3": "avc3.42c01e,mp4a.40.2", "hev1": "hev1.1.6.L60.90,mp4a.40.2"}[how]
    start = Text(f'#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=600000,CODECS="{codecs}"\nlive.m3u8\n')
    return Origin({**dict(zip(names, segments)), "init.mp4": init}, {"index.m3u8": start, "live.m3u8": live})


def absolute_offsets():
    """One file whose fragments count from its begin, served in ranges."""
    options = [*media.X264, "-g", str(2 * RATE), "-x264-params", "scenecut=0", "-c:a", "aac"]
    options += ["-movflags", "frag_keyframe+empty_moov"]
    with open(media.made("file.mp4", *media.SCENE, *media.TONE, *options), "rb") as file:
        data = file.read()
    at, boxes = 0, []
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        boxes.append((data[at + 4 : at + 8], at, length))
        at += length
    header = next(at + length for name, at, length in boxes if name == b"moov")
    starts = [at for name, at, _ in boxes if name == b"moof"]
    ends = [*starts[1:], next((at for name, at, _ in boxes if name == b"mfra"), len(data))]
    text = f'#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n#EXT-X-MAP:URI="file.mp4",BYTERANGE="{header}@0"\n'
    for begin, end in zip(starts, ends):
        text += f"#EXTINF:2.0,\n#EXT-X-BYTERANGE:{end - begin}@{begin}\nfile.mp4\n"
    return Origin({"file.mp4": data}, {"index.m3u8": Text(text + "#EXT-X-ENDLIST\n")})


def variants():
    files, playlists = plain()
    live = playlists["index.m3u8"]
    index = "".join(f"#EXT-X-STREAM-INF:BANDWIDTH=600000\n{name}.m3u8\n" for name in "ab")
    return Dying(files, {"index.m3u8": Text("#EXTM3U\n" + index), "a.m3u8": live, "b.m3u8": live})


def long_groups():
    segments, _ = media.segments("ts10", seconds=10)
    names = [f"{index}.ts" for index in range(len(segments))]
    return Origin(dict(zip(names, segments)), {"index.m3u8": Live(names, 10, 3)})


def without_durations():
    files, playlists = plain()
    playlists["index.m3u8"].extinf = "#EXTINF:,"
    return Origin(files, playlists)


ADVERT = """#EXT-X-KEY:METHOD=SAMPLE-AES-CTR,URI="skd://1",KEYFORMAT="com.microsoft.playready"
#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://1"
"""
BOTH, VIDEO = ("video", "audio"), ("video",)
CASES = [
    ("H1", "plain", lambda: Origin(*plain()), BOTH),
    ("H1", "GOP of 10 s", long_groups, BOTH),
    ("H2", "late tables", lambda: tables("late"), BOTH),
    ("H2", "tables by EXT-X-MAP", lambda: tables("by EXT-X-MAP"), BOTH),
    ("H2", "cut anywhere", lambda: tables("cut"), BOTH),
    ("H2", "2 frames in a PES", lambda: several_in_a_pes(2), VIDEO),
    ("H2", "6 frames in a PES", lambda: several_in_a_pes(6), VIDEO),
    ("H2", "PMT changes", new_identifiers, BOTH),
    ("H3", "3.7 MB playlist", lambda: Origin(*plain(window=2900, suffix="?" + "x" * 1200)), BOTH),
    ("H4", "gzip", lambda: Gzip(*plain()), BOTH),
    ("H4", "cookie", lambda: Cookie(*plain()), BOTH),
    ("H4", "expiring address", lambda: Expiring(*plain(), start="start.m3u8"), BOTH),
    ("H5", "dead variant", variants, BOTH),
    ("H6", "avc3", lambda: fragmented("avc3"), BOTH),
    ("H6", "absolute offsets", absolute_offsets, BOTH),
    ("H6", "hev1", lambda: fragmented("hev1"), BOTH),
    ("H7", "DRM in a clear list", lambda: Origin(*plain(tags=ADVERT)), BOTH),
    ("H7", "EXTINF without a number", without_durations, BOTH),
]
