"""Real programs against a real gateway: they publish, watch and are pulled from, also over a lossy link.

Usage: python clients.py [--write FILE] GATEWAY_BINARY [CASE...]        (root: it makes network namespaces)

    FFMPEG          an ffmpeg with the `whip` muxer and libx264 (8.0 or newer)
    GST_LAUNCH      gst-launch-1.0 of GStreamer 1.24 or newer
    GST_PLUGIN_PATH where whipclientsink and whepclientsrc (gst-plugins-rs, `webrtc`) and its RTP plugin are
    CLIENT_WRAPPER  a command to put before each client, such as `testbed.sh run FOLDER`

Browsers and Node are those of this machine. Prints a table, and fails when a client does. A case is named by a part of its
name. `--write` puts the table into a file, between its marks.
"""

import hashlib
import os
import subprocess
import sys
import time

import programs
from gateway import TOKEN, Gateway
from link import Link
from programs import FFMPEG, GST_LAUNCH, PATIENCE, Client, by_hls, by_whep, in_browser, run_client

# Frames that a viewer has to decode in the cases without loss.
ENOUGH = 150
# Seconds that a player of HLS plays.
PLAYED = 30

# The clip that is sent over the lossy link: its frames are known one by one.
SIZE, RATE, SECONDS = (640, 360), 25, 60
CLIP_FRAMES = RATE * SECONDS
# The link: loss on the way to the gateway, delay each way in seconds, and how much of the frames has to be whole.
LOSS, DELAY, WHOLE = 0.03, 0.020, 0.99
WATCHED = 40
# Frames a second of OBS.
OBS_RATE = 30
# A browser draws as many frames as the machine can: so many a second, to be playing.
DRAWN = 5

HEADER = ["program", "version", "what was done", "first frame", "frames", "result"]
MARKS = ("<!-- table of `make clients-test` -->", "<!-- end of the table -->")


class Row:
    """A line of the table."""

    def __init__(self, program, release, done):
        self.cells = [program, release or "-", done, "-", "-", "-"]
        self.passed = True

    def result(self, passed, text, first=None, frames=None):
        if first is not None:
            self.cells[3] = f"{first * 1000:.0f} ms"
        if frames is not None:
            self.cells[4] = str(frames)
        self.cells[5] = f"{'pass' if passed else 'FAIL'}: {text}"
        self.passed = passed
        return self

    def skip(self, why):
        self.cells[5] = f"SKIPPED: {why}"
        return self


class Bed:
    """What the cases share: a link, a gateway on its one end, the clip, and the versions of the programs."""

    def __init__(self, binary, releases, clip):
        self.binary, self.releases = binary, releases
        self.clip, self.numbers = clip
        self.link = Link()
        live555 = f"rtsp://{self.link.ip_b}/{os.path.basename(self.clip)}"
        config = f'[streams."test"]\npipeline = "test"\n[streams."live555"]\nrtsp = "{live555}"\non_demand = true\n'
        self.gateway = Gateway(binary, self.link, config)
        self.gateway.wait_ready()

    def whip(self, stream):
        return f"{self.gateway.base}/whip/{stream}"

    def close(self):
        self.gateway.stop()
        self.link.close()


def watched(row, bed, stream, publisher=None, note=None):
    """A viewer behind the link has to decode frames of a stream."""
    try:
        if not bed.gateway.wait_live(stream):
            said = publisher.said() if publisher else "nothing"
            return row.result(False, f"the stream is not live; it said: {said}")
        viewer = by_whep(bed.link.b, f"{bed.gateway.base}/whep/{stream}")
        try:
            frames = viewer.wait(ENOUGH, PATIENCE)
        finally:
            viewer.stop()
        if frames < ENOUGH:
            return row.result(False, f"the viewer said: {viewer.said()}", viewer.first, frames)
        shown = bed.gateway.stream(stream)
        passed, text = note(shown) if note else (True, "decoded")
        return row.result(passed, text, viewer.first, frames)
    finally:
        if publisher:
            publisher.stop()


def gstreamer_watches_h264(bed):
    row = Row("whepclientsrc", bed.releases["rswebrtc"], "watches H.264 and Opus")
    return watched(row, bed, "test")


def gstreamer_publishes_vp8(bed):
    return by_whipclientsink(bed, "vp8", "video/x-vp8", "publishes VP8 and mono, watched by whepclientsrc")


def gstreamer_publishes_h264(bed):
    return by_whipclientsink(bed, "gst264", "video/x-h264", "publishes H.264 and mono, watched by whepclientsrc")


def by_whipclientsink(bed, stream, caps, done):
    publisher = Client(
        bed.link.b,
        *[GST_LAUNCH, "whipclientsink", "name=ws", 'stun-server=""', f"video-caps={caps}"],
        *[f"signaller::whip-endpoint={bed.whip(stream)}", f"signaller::auth-token={TOKEN}"],
        *["videotestsrc", "is-live=true", "!", "video/x-raw,width=640,height=360,framerate=25/1", "!", "ws."],
        *["audiotestsrc", "is-live=true", "!", "ws."],
    )
    return watched(Row("whipclientsink", bed.releases["rswebrtc"], done), bed, stream, publisher)


def simple_whip_client_publishes(bed):
    row = Row("simple-whip-client", bed.releases["simple-whip-client"], "publishes H.264 and Opus with trickle ICE")
    if not row.cells[1].strip("-"):
        return row.skip("not installed")
    video = (
        "videotestsrc is-live=true ! video/x-raw,width=640,height=360,framerate=25/1 ! x264enc tune=zerolatency "
        "speed-preset=ultrafast key-int-max=50 ! video/x-h264,profile=constrained-baseline ! rtph264pay "
        "config-interval=-1 ! application/x-rtp,media=video,encoding-name=H264,payload=96"
    )
    audio = (
        "audiotestsrc is-live=true ! audioconvert ! audioresample ! opusenc ! rtpopuspay ! "
        "application/x-rtp,media=audio,encoding-name=OPUS,payload=100"
    )
    command = ["whip-client", "-o", "-u", bed.whip("simple"), "-t", TOKEN, "-V", video, "-A", audio]
    return watched(row, bed, "simple", Client(bed.link.b, *command))


def ffmpeg(bed, stream, *options, base=None, namespace=None):
    return Client(
        namespace or bed.link.b,
        *[FFMPEG, "-v", "warning", "-re", "-stream_loop", "-1", "-i", bed.clip, "-c", "copy", *options],
        *["-f", "whip", "-authorization", TOKEN, base or bed.whip(stream)],
    )


def ffmpeg_publishes_as_dtls_server(bed):
    row = Row("ffmpeg", bed.releases["ffmpeg"], "publishes H.264 and Opus as DTLS server (its default)")
    return watched(row, bed, "ffserver", ffmpeg(bed, "ffserver"))


def ffmpeg_publishes_as_dtls_client(bed):
    row = Row("ffmpeg", bed.releases["ffmpeg"], "publishes H.264 and Opus as DTLS client")
    return watched(row, bed, "ffclient", ffmpeg(bed, "ffclient", "-whip_flags", "dtls_active"))


def obs(namespace, url, x264, clip):
    return Client(namespace, "/opt/obs.sh", url, TOKEN, x264, clip)


def obs_case(bed, stream, x264, done, note=None):
    row = Row("OBS Studio", bed.releases["obs"], done)
    if not bed.releases["obs"]:
        return row.skip("not installed")
    return watched(row, bed, stream, obs(bed.link.b, bed.whip(stream), x264, bed.clip), note)


def obs_publishes_with_2_s(bed):
    return obs_case(bed, "obs2s", "keyint=60 bframes=0 scenecut=0", "publishes H.264 and Opus, key frame interval 2 s")


def obs_publishes_with_250_frames(bed):
    done = "publishes H.264 and Opus, key frame interval 250 frames"
    return obs_case(bed, "obs250", "keyint=250 bframes=0 scenecut=0", done)


def obs_publishes_with_b_frames(bed):
    """GStreamer sorts frames and decodes everything; browsers do not. So the API has to warn."""
    done = "publishes H.264 with two B-frames"

    def note(shown):
        warns = any("B-frames" in text for text in shown.get("warnings", []))
        return warns, "decoded, and the API warns" if warns else "decoded, but the API does not warn"

    return obs_case(bed, "obsb", "keyint=60 bframes=2 b-adapt=0 scenecut=0", done, note)


def browser_case(bed, browser, how):
    done, path = {
        "page": ("watches the page by WHEP", "/watch/test"),
        "hls.js": ("plays LL-HLS by hls.js", "/hls/test/index.m3u8"),
    }[how]
    row = Row(f"{browser}" if how == "page" else f"hls.js in {browser}", None, done)
    try:
        shown = in_browser(bed.link.b, browser.lower(), how, bed.gateway.base + path, PLAYED if how == "hls.js" else 10)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        return row.result(False, str(error)[:200])
    row.cells[1] = shown["version"] or "-"
    if shown["first"] is None:
        return row.result(False, f"no frame: {shown.get('said', shown)}"[:300])
    faults = shown.get("faults") or []
    text = f"{shown['frames'] / shown['seconds']:.0f} frames a second" + (f"; {', '.join(faults[:4])}" if faults else "")
    passed = shown["frames"] > DRAWN * shown["seconds"] and not any("fatal" in fault for fault in faults)
    return row.result(passed, text, shown["first"], shown["frames"])


def chromium_watches(bed):
    return browser_case(bed, "Chromium", "page")


def firefox_watches(bed):
    return browser_case(bed, "Firefox", "page")


def hls_js_plays(bed):
    return browser_case(bed, "Chromium", "hls.js")


def hls_case(bed, program, release):
    row = Row(program, release, f"plays HLS for {PLAYED} s")
    if not release:
        return row.skip("not installed")
    bed.gateway.wait_live("test")
    player = by_hls(bed.link.b, program, f"{bed.gateway.base}/hls/test/index.m3u8")
    try:
        if not player.wait(1, PATIENCE):
            return row.result(False, f"it said: {player.said()}")
        made = frames_made(bed, "test", PLAYED)
        frames, seconds = len(player.hashes), player.last - player.first
    finally:
        player.stop()
    # Some begin a few segments behind and read those at once: there may be more.
    passed = frames > 0.9 * made and seconds > 0.8 * PLAYED
    return row.result(passed, f"{frames / PLAYED:.0f} of {made / PLAYED:.0f} frames a second", player.first, frames)


def frames_made(bed, stream, seconds):
    """Waits, and returns how many frames a source brought meanwhile: a busy machine makes fewer than it should."""
    rates, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        rates.append((bed.gateway.stream(stream).get("video") or {}).get("frame_rate") or 0)
        time.sleep(1)
    return sum(rates) / len(rates) * seconds


def ffmpeg_plays_hls(bed):
    return hls_case(bed, "ffmpeg", bed.releases["ffmpeg"])


def mpv_plays_hls(bed):
    return hls_case(bed, "mpv", bed.releases["mpv"])


def vlc_plays_hls(bed):
    return hls_case(bed, "vlc", bed.releases["vlc"])


def hlsdemux2_plays_hls(bed):
    return hls_case(bed, "hlsdemux2", bed.releases["gstreamer"])


def live555_is_pulled(bed):
    row = Row("live555MediaServer", bed.releases["live555"], "serves H.264 and Opus by RTSP, watched by whepclientsrc")
    if not bed.releases["live555"]:
        return row.skip("not installed")
    folder = os.path.dirname(bed.clip)
    server = Client(bed.link.b, "sh", "-c", f"cd {folder} && exec live555MediaServer")
    time.sleep(1)
    # It starts with its first viewer.
    viewer = by_whep(bed.link.b, f"{bed.gateway.base}/whep/live555")
    try:
        frames = viewer.wait(ENOUGH, PATIENCE)
    finally:
        viewer.stop()
        server.stop()
    source = bed.gateway.stream("live555").get("source") or {}
    said = "decoded" if frames >= ENOUGH else f"{source.get('last_error')}; the viewer said: {viewer.said()}"
    return row.result(frames >= ENOUGH, said, viewer.first, frames)


def make_clip():
    """The clip, and the hash of each of its decoded frames by number."""
    path = f"/tmp/millstream-clients-{os.getpid()}.mkv"
    source = f"testsrc2=size={SIZE[0]}x{SIZE[1]}:rate={RATE}:duration={SECONDS}"
    encoding = "-c:v libx264 -profile:v baseline -preset ultrafast -b:v 1500k -g 50 -bf 0 -pix_fmt yuv420p".split()
    audio = ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={SECONDS}", "-c:a", "libopus", "-ac", "2"]
    made = run_client(FFMPEG, "-v", "error", "-y", "-f", "lavfi", "-i", source, *audio, *encoding, path)
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


def over_loss(bed, row, stream, publish, judge):
    """A publisher behind a lossy link, and a viewer beside the gateway: what is lost is lost on the way to it."""
    link = Link(delay=DELAY)
    gateway = Gateway(bed.binary, link)
    publisher = viewer = None
    try:
        gateway.wait_ready()
        publisher = publish(link.b, f"{gateway.base}/whip/{stream}")
        if not gateway.wait_live(stream):
            return row.result(False, publisher.said())
        viewer = by_whep(link.a, f"{gateway.base}/whep/{stream}", SIZE)
        viewer.wait(1, PATIENCE)
        # FFmpeg never repeats the end of its DTLS handshake: with loss from the beginning it often does not connect.
        link.set_loss("b", LOSS)
        time.sleep(WATCHED)
        asked = gateway.metric("millstream_source_nacked_packets_total", stream)
    finally:
        for process in (viewer, publisher, gateway):
            if process is not None:
                process.stop()
        link.close()
    whole, due, what = judge(viewer)
    passed = due >= WATCHED * RATE // 2 and whole >= WHOLE * due
    text = f"{whole} of {due} frames {what} ({whole / max(due, 1):.1%}), {link.packets_lost()} packets lost, {asked} asked for"
    if not passed:
        text += f"; it said: {publisher.said()}"
    return row.result(passed, text, viewer.first, len(viewer.hashes))


def ffmpeg_publishes_over_loss(bed):
    done = f"publishes H.264 and Opus, {LOSS:.0%} lost, {2 * DELAY * 1000:.0f} ms round trip"
    row = Row("ffmpeg", bed.releases["ffmpeg"], done)
    publish = lambda namespace, url: ffmpeg(bed, None, base=url, namespace=namespace)
    judge = lambda viewer: (*whole_frames(viewer.hashes, bed.numbers), "whole")
    return over_loss(bed, row, "ffmpeg", publish, judge)


def obs_publishes_over_loss(bed):
    done = f"publishes H.264 and Opus, {LOSS:.0%} lost, {2 * DELAY * 1000:.0f} ms round trip"
    row = Row("OBS Studio", bed.releases["obs"], done)
    if not bed.releases["obs"]:
        return row.skip("not installed")
    publish = lambda namespace, url: obs(namespace, url, "keyint=60 bframes=0 scenecut=0", bed.clip)
    # It encodes anew, so frames cannot be compared; GStreamer gives no incomplete frame to its decoder.
    due = lambda viewer: round(OBS_RATE * ((viewer.last or 0) - (viewer.first or 0)))
    judge = lambda viewer: (min(len(viewer.hashes), due(viewer)), due(viewer), "decoded")
    return over_loss(bed, row, "obs", publish, judge)


def obs_returns(bed, row, end):
    """Whether OBS publishes again after the gateway was ended and started again; `None` if it did not even begin."""
    link = Link()
    gateway = Gateway(bed.binary, link)
    gateway.wait_ready()
    publisher = obs(link.b, f"{gateway.base}/whip/obs", "keyint=60 bframes=0 scenecut=0", bed.clip)
    try:
        if not gateway.wait_live("obs"):
            row.result(False, publisher.said())
            return None
        end(gateway)
        gateway.start()
        gateway.wait_ready()
        started = time.monotonic()
        returned = gateway.wait_live("obs", 90)
        return f"it publishes again after {time.monotonic() - started:.0f} s" if returned else ""
    finally:
        publisher.stop()
        gateway.stop()
        link.close()


def obs_after_a_restart(bed):
    row = Row("OBS Studio", bed.releases["obs"], "publishes; the gateway is stopped by SIGTERM and starts again")
    if not bed.releases["obs"]:
        return row.skip("not installed")
    said = obs_returns(bed, row, Gateway.terminate)
    return row if said is None else row.result(bool(said), said or "it does not return within 90 s")


def obs_after_a_crash(bed):
    """Reported, not judged: see docs/deployment.md."""
    row = Row("OBS Studio", bed.releases["obs"], "publishes; the gateway is killed by SIGKILL and starts again")
    if not bed.releases["obs"]:
        return row.skip("not installed")
    said = obs_returns(bed, row, Gateway.kill)
    return row if said is None else row.result(True, said or "as known, it does not return within 90 s")


CASES = [
    gstreamer_watches_h264,
    gstreamer_publishes_vp8,
    gstreamer_publishes_h264,
    simple_whip_client_publishes,
    ffmpeg_publishes_as_dtls_server,
    ffmpeg_publishes_as_dtls_client,
    obs_publishes_with_2_s,
    obs_publishes_with_250_frames,
    obs_publishes_with_b_frames,
    chromium_watches,
    firefox_watches,
    hls_js_plays,
    ffmpeg_plays_hls,
    mpv_plays_hls,
    vlc_plays_hls,
    hlsdemux2_plays_hls,
    live555_is_pulled,
    ffmpeg_publishes_over_loss,
    obs_publishes_over_loss,
    obs_after_a_restart,
    obs_after_a_crash,
]


def write(file, rows):
    """Puts the table into a file, between its marks."""
    table = [HEADER, ["---"] * len(HEADER), *(row.cells for row in rows)]
    lines = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    with open(file, encoding="utf-8") as old:
        before, rest = old.read().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    with open(file, "w", encoding="utf-8") as new:
        new.write(f"{before}{MARKS[0]}\n{lines}\n{MARKS[1]}{after}")


def main():
    arguments = sys.argv[1:]
    file = None
    if arguments[:1] == ["--write"]:
        file, arguments = arguments[1], arguments[2:]
    if not arguments:
        sys.exit(__doc__)
    binary, names = os.path.abspath(arguments[0]), arguments[1:]
    # A busy machine must not look like a slow client.
    os.nice(-10)
    releases = programs.versions()
    missing = [name for name in ("ffmpeg", "gstreamer", "rswebrtc") if not releases[name]]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}. {__doc__}")
    print(" | ".join(HEADER))
    clip = make_clip()
    bed = Bed(binary, releases, clip)
    rows = []
    try:
        for case in CASES:
            if not names or any(name in case.__name__ for name in names):
                rows.append(case(bed))
                print(" | ".join(rows[-1].cells), flush=True)
    finally:
        bed.close()
        run_client("rm", "-f", clip[0])
    if file:
        write(file, rows)
    sys.exit(0 if all(row.passed for row in rows) else 1)


if __name__ == "__main__":
    main()
