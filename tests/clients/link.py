"""Two network namespaces and a link between them that delays and loses packets. Linux, root, iproute2; no netem needed.

Packets go from one TUN device to the other through a process that is started here.
"""

import fcntl
import heapq
import itertools
import multiprocessing
import os
import random
import select
import signal
import struct
import subprocess
import time

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
# Longest packet of a TUN device.
MAX_PACKET = 1 << 16


class Link:
    """Namespace `a` has the address `ip_a`, namespace `b` has `ip_b`."""

    numbers = itertools.count()

    def __init__(self, delay=0.0, seed=1):
        """`delay` in seconds each way."""
        self.number = f"{os.getpid()}-{next(self.numbers)}"
        self.a, self.b = (f"millstream-{end}-{self.number}" for end in "ab")
        self.ip_a, self.ip_b = "10.211.77.1", "10.211.77.2"
        self.delay = delay
        self.random = random.Random(seed)
        self.loss = {end: multiprocessing.Value("d", 0.0) for end in "ab"}
        self.burst = {end: multiprocessing.Value("d", 1.0) for end in "ab"}
        self.lost = multiprocessing.Value("L", 0)
        self.open = []
        try:
            ends = {"a": self._end("a", self.a, self.ip_a), "b": self._end("b", self.b, self.ip_b)}
        except BaseException:
            self._remove()
            raise
        # A process of its own: what else runs here must not look like a slow network.
        self.process = multiprocessing.Process(target=self._forward, args=(ends,), daemon=True)
        self.process.start()

    def set_loss(self, end, share, burst=1):
        """`share` is that of the packets which are lost of those that an end sends, from now on; `burst` is how many are
        lost in a row on average, each by itself if it is 1."""
        self.loss[end].value, self.burst[end].value = share, burst

    def packets_lost(self):
        return self.lost.value

    def _end(self, end, namespace, ip):
        run("ip", "netns", "add", namespace)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self.open.append(device)
        name = f"ms{end}{self.number}"
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        run("ip", "link", "set", name, "netns", namespace)
        for command in (f"addr add {ip}/24 dev {name}", f"link set {name} up", "link set lo up"):
            run("ip", "-n", namespace, *command.split())
        return device

    def _forward(self, devices):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ends = {device: end for end, device in devices.items()}
        other = {"a": devices["b"], "b": devices["a"]}
        queue, number = [], 0
        in_burst = dict.fromkeys("ab", False)
        while True:
            wait = max(queue[0][0] - time.monotonic(), 0) if queue else None
            for device in select.select(list(ends), [], [], wait)[0]:
                for packet in iter(lambda: read(device), None):
                    end = ends[device]
                    in_burst[end] = self._is_lost(end, in_burst[end])
                    if in_burst[end]:
                        self.lost.value += 1
                        continue
                    number += 1
                    heapq.heappush(queue, (time.monotonic() + self.delay, number, other[end], packet))
            while queue and queue[0][0] <= time.monotonic():
                *_, device, packet = heapq.heappop(queue)
                try:
                    os.write(device, packet)
                except OSError:
                    pass  # The device is full or goes down: a packet is lost.

    def _is_lost(self, end, was_lost):
        """A Gilbert model: two states, each packet of one of them is lost."""
        share, burst = self.loss[end].value, self.burst[end].value
        if burst <= 1 or share >= 1:
            return self.random.random() < share
        stays = 1 - 1 / burst
        begins = share / (burst * (1 - share))
        return self.random.random() < (stays if was_lost else begins)

    def close(self):
        self.process.kill()
        self.process.join()
        self._remove()

    def _remove(self):
        for device in self.open:
            os.close(device)
        for namespace in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)


def read(device):
    try:
        return os.read(device, MAX_PACKET)
    except BlockingIOError:
        return None


def run(*command):
    subprocess.run(command, check=True)
