"""The control socket's protocol and client side: one JSON line to the agent, one JSON line back.

`{"op": "retune", "uri": URI, "dry_run": bool}`, and `{"op": "pause", "uri": URI}` or "resume", are answered by
`{"ok": true, "pass": {...}}`, or from another host's agent by `{"ok": false, "other_uri": URI}`; without a URI the
agent's own host is meant. `{"op": "status"}` is answered by `{"ok": true, "status": {...}}`, `{"op": "reload"}` (the
configuration is read again) by `{"ok": true, "policy": NAME}`; agent/requests.py describes `history` and `decisions`,
agent/trace_buffer.py `trace`. A failure is answered by `{"ok": false, "error": ..., "remedy": ..., "exit_code": ...}`.
Imports nothing but json, socket and time beside codec, so that a one-shot that finds an agent stays quick.

Root's commands ask an agent that runs as another user and may be hostile: an answer is one JSON object, bounded in
bytes, time and numbers.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping

from virtksm.values import parse_object

MAX_LINE = 65536
"""Longest request that the agent reads, in bytes."""
MAX_ANSWER = 1 << 20
"""Longest answer that is read, in bytes."""


def ask(path: str, request: Mapping[str, object], *, timeout_s: float) -> dict[str, object] | None:
    """Send one request and return the answer, all within `timeout_s`; None if no agent listens at `path`.

    Raises PermissionError when this user may not ask there, OSError (TimeoutError too) when an agent listens but does
    not answer, and ValueError when its answer cannot be understood.
    """
    give_up_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        try:  # noqa: SIM105  # contextlib is start-up time
            connection.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # an agent with too many clients answers unasked; its answer can still be read
        said = bytearray()
        while not said.endswith(b"\n"):
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left_s)
            part = connection.recv(MAX_LINE)
            if not part:
                break
            said += part
            if len(said) > MAX_ANSWER:
                raise ValueError("the agent's answer does not end")
    return parse_object(bytes(said), "the agent's answer")
