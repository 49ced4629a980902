"""Ports of the loopback address for programs that take no socket."""

import random
import socket
from contextlib import suppress

_PORTS = range(10_000, 30_000)
"""Below those that the kernel gives whoever asks for any, or connects: another test may ask meanwhile."""


def free_port() -> int:
    """Return a port that nobody had a moment ago."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(_PORTS)))
            return int(probe.getsockname()[1])
