"""Hosts of a benchmark: network namespaces, on one switch or far apart. Needs root and iproute2."""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import shutil
import struct
import subprocess
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE = "wash"
"""The network device by which a host reaches the others."""


def missing() -> str | None:
    """What this machine lacks to make hosts, or None."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs iproute2 to make network namespaces"
    try:
        ip("netns", "add", f"wash-{os.getpid()}-try")
    except subprocess.CalledProcessError as error:
        return f"cannot make network namespaces here: {error.stderr.decode().strip()}"
    ip("netns", "delete", f"wash-{os.getpid()}-try")
    return None


def ip(*arguments: str) -> None:
    """Run iproute2's `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def on_host(host: str) -> list[str]:
    """The beginning of a command line that runs the rest of it on a host."""
    return ["ip", "netns", "exec", host]


def enter(host: str) -> None:
    """Move this thread, and threads and processes it starts, to a host."""
    file = os.open(f"/run/netns/{host}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(file)


def sent_bytes() -> int:
    """Bytes that the host of this thread has sent: frames, headers and acknowledgements."""
    with Path("/proc/thread-self/net/dev").open() as lines:
        for line in lines:
            name, _, counters = line.partition(":")
            if name.strip() == DEVICE:
                return int(counters.split()[8])
    raise RuntimeError(f"this host has no device {DEVICE}")


@contextmanager
def namespaces(addresses: list[str]) -> Iterator[list[str]]:
    """One namespace an address, without any link yet; their names."""
    with ExitStack() as stack:
        names = [f"wash-{os.getpid()}-{number}" for number in range(len(addresses))]
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def _connect(name: str, address: str) -> None:
    ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
    ip("-n", name, "link", "set", DEVICE, "up")


@contextmanager
def on_a_switch(n: int) -> Iterator[list[tuple[str, str]]]:
    """(name, address) of hosts on one bridge, whose counters count packets as a wire has them."""
    addresses = [f"10.78.1.{number + 1}" for number in range(n)]
    with namespaces([*addresses, "switch"]) as names:
        *hosts, switch = names
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, (host, address) in enumerate(zip(hosts, addresses, strict=True)):
            port = f"port{number}"
            ip(
                *("-n", switch, "link", "add", port, "type", "veth"),
                *("peer", "name", DEVICE, "netns", host),
            )
            ip("-n", switch, "link", "set", port, "master", "switch", "up")
            # Left alone, the kernel hands 64 KB segments over and counts one header for them.
            ip("-n", host, "link", "set", DEVICE, "gso_max_segs", "1")
            _connect(host, address)
        yield list(zip(hosts, addresses, strict=True))


@contextmanager
def far_apart(seconds: float) -> Iterator[list[tuple[str, str]]]:
    """(name, address) of two hosts; every packet between them takes `seconds`."""
    addresses = ["10.78.2.1", "10.78.2.2"]
    with namespaces(addresses) as hosts:
        context = get_context("forkserver")
        ours, theirs = context.Pipe()
        relay = context.Process(target=_relay, args=(theirs, seconds))
        relay.start()
        try:
            for device, host, address in zip(ours.recv(), hosts, addresses, strict=True):
                ip("link", "set", device, "netns", host, "name", DEVICE)
                _connect(host, address)
            yield list(zip(hosts, addresses, strict=True))
        finally:
            relay.kill()
            relay.join()


def _relay(ready: Connection, seconds: float) -> None:
    """Hold packets between two TUN devices for `seconds`."""
    names = [f"wash{os.getpid() % 100_000}{side}" for side in "ab"]
    files = []
    for name in names:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        files.append(file)
    ready.send(names)
    selector = selectors.DefaultSelector()
    for file, other in zip(files, reversed(files), strict=True):
        selector.register(file, selectors.EVENT_READ, other)
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        patience = max(0.0, held[0][0] - time.monotonic()) if held else None
        for key, _ in selector.select(patience):
            while True:
                try:
                    packet = os.read(key.fd, 65536)
                except OSError:  # nothing more, or the device is not up yet
                    break
                held.append((time.monotonic() + seconds, key.data, packet))
        while held and held[0][0] <= time.monotonic():
            _, other, packet = held.popleft()
            with suppress(OSError):  # lost, if the other end is not up yet
                os.write(other, packet)
