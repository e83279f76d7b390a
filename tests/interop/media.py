"""Clips that ffmpeg makes once: access units of video, frames of audio, segments of HLS."""

import os
import re
import subprocess
import tempfile

# Frames a second, and seconds, of each clip.
RATE, SECONDS = 15, 20
X264 = "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -pix_fmt yuv420p -b:v 300k".split()
SCENE = ["-f", "lavfi", "-i", f"testsrc2=size=320x180:rate={RATE}:duration={SECONDS}"]
TONE = ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={SECONDS}"]
FOLDER = tempfile.TemporaryDirectory(prefix="millstream-sources-")


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-nostdin", "-y", "-v", "error", *arguments], check=True)


def made(name, *arguments):
    """The path of a clip."""
    path = os.path.join(FOLDER.name, name)
    if not os.path.exists(path):
        ffmpeg(*arguments, path)
    return path


def nal_units(data):
    return [part.rstrip(b"\0") for part in re.split(b"\0\0\1", data)[1:]]


def video(codec="h264", interval=RATE):
    """Access units, as lists of NAL units without their delimiters."""
    if codec == "h264":
        options = [*X264, "-g", str(interval), "-x264-params", "aud=1:scenecut=0:repeat-headers=1", "-f", "h264"]
        is_delimiter = lambda nal: nal[0] & 31 == 9
    else:
        parameters = f"aud=1:repeat-headers=1:keyint={interval}:bframes=0:log-level=none"
        options = "-c:v libx265 -preset ultrafast -tune zerolatency -pix_fmt yuv420p".split()
        options += ["-x265-params", parameters, "-f", "hevc"]
        is_delimiter = lambda nal: nal[0] >> 1 & 63 == 35
    path = made(f"{codec}-{interval}.bin", *SCENE, *options)
    units = []
    with open(path, "rb") as file:
        for nal in nal_units(file.read()):
            if is_delimiter(nal):
                units.append([])
            else:
                units[-1].append(nal)
    return units


def audio(name, *options):
    with open(made(name, *TONE, *options), "rb") as file:
        return file.read()


def aac_frames(rate=16000):
    """Raw AAC frames, without their ADTS headers."""
    data, frames = audio("aac.adts", "-ac", "1", "-ar", str(rate), "-c:a", "aac", "-b:a", "32k", "-f", "adts"), []
    while len(data) > 7:
        length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
        frames.append(data[7:length])
        data = data[length:]
    return frames


def segments(name, *options, kind="mpegts", seconds=2, scene=SCENE):
    """Segments of HLS, in order, and the initialization section."""
    folder = os.path.join(FOLDER.name, name)
    if not os.path.exists(folder):
        os.makedirs(folder)
        suffix = "ts" if kind == "mpegts" else "m4s"
        encoding = [*X264, "-g", str(RATE * seconds), "-x264-params", "scenecut=0", "-c:a", "aac", "-b:a", "64k"]
        hls = ["-f", "hls", "-hls_time", str(seconds), "-hls_playlist_type", "vod", "-hls_segment_type", kind]
        names = ["-hls_fmp4_init_filename", "init.mp4", "-hls_segment_filename", f"{folder}/%03d.{suffix}"]
        ffmpeg(*scene, *TONE, *encoding, *options, *hls, *names, f"{folder}/index.m3u8")
    read = lambda name: open(os.path.join(folder, name), "rb").read()
    files = sorted(name for name in os.listdir(folder) if name[0].isdigit())
    return [read(name) for name in files], read("init.mp4") if kind == "fmp4" else b""
