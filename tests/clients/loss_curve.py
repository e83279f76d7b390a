"""What loss does to a viewer in Chromium: frames shown, freezes, delay and concealed audio, as data and as a plot.

    loss_curve.py GATEWAY [SECONDS]

One stream of 640 x 360 at 2.5 Mbit/s (VP8) with Opus, published without loss; the viewer is behind a link that loses the
same share of packets in both directions, each by itself ("random") or three in a row on average ("bursty"). Writes
docs/loss-curve.csv and docs/loss-curve.svg. Needs root, iproute2, node and Chromium; nothing else should run meanwhile.
"""

import csv
import json
import os
import subprocess
import sys
import time

from gateway import TOKEN, Gateway
from link import Link

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(HERE, "..", "..", "docs")
LOSSES = [0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2]
ROUND_TRIPS = [0.04, 0.1]
# Packets that are lost in a row, on average.
KINDS = {"random": 1, "bursty": 3}
# Bits per second below which the publisher has not reached its bitrate.
MIN_BITRATE = 2_000_000
FIELDS = ["round_trip_ms", "kind", "loss_percent", "sent_kbps", "first_frame_s", "frames_shown_percent", "frozen_percent",
          "jitter_buffer_ms", "audio_concealed_percent"]


class Publisher:
    """Chromium in the namespace of the gateway."""

    def __init__(self, namespace, base):
        self.process = node(namespace, "publish", f"{base}/whip/curve", TOKEN)

    def sent(self):
        """Frames that were sent, and bits per second since the last call."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def node(namespace, *arguments):
    command = ["ip", "netns", "exec", namespace, "node", os.path.join(HERE, "loss_viewer.mjs"), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(publisher, link, base, seconds):
    viewer = node(link.b, "watch", f"{base}/watch/curve", str(seconds))
    json.loads(viewer.stdout.readline())
    before = publisher.sent()
    shown = json.loads(viewer.stdout.readline())
    after = publisher.sent()
    viewer.wait()
    return shown, after["frames"] - before["frames"], after["bitrate"]


def rows(binary, seconds):
    for round_trip in ROUND_TRIPS:
        link = Link(delay=round_trip / 2)
        gateway = Gateway(binary, link)
        publisher = None
        try:
            gateway.wait_ready()
            publisher = Publisher(link.a, gateway.base)
            gateway.wait_live("curve")
            wait_for_bitrate(publisher)
            for kind, burst in KINDS.items():
                for loss in LOSSES:
                    for end in "ab":
                        link.set_loss(end, loss, burst)
                    shown, sent, bitrate = measure(publisher, link, gateway.base, seconds)
                    yield dict(zip(FIELDS, [
                        round(round_trip * 1000), kind, round(loss * 100), round(bitrate / 1000), round(shown["firstFrame"] or -1, 2),
                        round(100 * shown["frames"] / sent, 1), round(100 * shown["frozen"], 2), round(1000 * shown["delay"]),
                        round(100 * shown["concealed"], 2)]))
        finally:
            if publisher:
                publisher.close()
            gateway.stop()
            link.close()


def wait_for_bitrate(publisher):
    for _ in range(60):
        time.sleep(1)
        if publisher.sent()["bitrate"] >= MIN_BITRATE:
            return
    sys.exit("the publisher does not reach its bitrate")


def plot(table):
    """Two charts side by side: frozen time and concealed audio by loss."""
    charts = [("frozen_percent", "frozen, % of the time"), ("audio_concealed_percent", "audio concealed, %")]
    colours = {(40, "random"): "#0072b2", (100, "random"): "#d55e00", (40, "bursty"): "#56b4e9", (100, "bursty"): "#e69f00"}
    width, height, left, top = 360, 240, 46, 34
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 340" font-family="sans-serif" font-size="12">',
             '<rect width="860" height="340" fill="white"/>']
    for index, (field, title) in enumerate(charts):
        x0 = left + index * (width + 70)
        highest = max(max(row[field] for row in table), 1)

        def x(loss):
            return x0 + loss / 20 * width

        def y(value):
            return top + height - value / highest * height

        parts.append(f'<text x="{x0}" y="{top - 14}" font-weight="bold">{title}</text>')
        for step in range(5):
            value = highest * step / 4
            parts.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        for loss in range(0, 21, 5):
            parts.append(f'<text x="{x(loss):.1f}" y="{top + height + 18}" text-anchor="middle">{loss}</text>')
        parts.append(f'<text x="{x0 + width / 2}" y="{top + height + 36}" text-anchor="middle">packets lost each way, %</text>')
        for (round_trip, kind), colour in colours.items():
            line = [row for row in table if (row["round_trip_ms"], row["kind"]) == (round_trip, kind)]
            points = " ".join(f'{x(row["loss_percent"]):.1f},{y(row[field]):.1f}' for row in line)
            dash = ' stroke-dasharray="5 4"' if kind == "bursty" else ""
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    for index, ((round_trip, kind), colour) in enumerate(colours.items()):
        x1 = left + index * 190
        dash = ' stroke-dasharray="5 4"' if kind == "bursty" else ""
        parts.append(f'<line x1="{x1}" x2="{x1 + 28}" y1="326" y2="326" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{x1 + 34}" y="330">round trip {round_trip} ms, {kind}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main():
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    table = []
    for row in rows(sys.argv[1], seconds):
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        table.append(row)
    with open(os.path.join(DOCS, "loss-curve.csv"), "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    with open(os.path.join(DOCS, "loss-curve.svg"), "w", encoding="utf-8") as file:
        file.write(plot(table))


if __name__ == "__main__":
    main()
