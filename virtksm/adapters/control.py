"""The control socket's protocol and client side: one JSON line to the agent, one JSON line back.

`{"op": "retune", "uri": URI, "dry_run": bool}`, and `{"op": "off", "uri": URI}` or "on", are answered by
`{"ok": true, "pass": {...}}`, or from another host's agent by `{"ok": false, "other_uri": URI}`; without a URI the
agent's own host is meant. `{"op": "status"}` is
answered by `{"ok": true, "status": {...}}`, `{"op": "reload"}` (the configuration is read again) by
`{"ok": true, "policy": NAME}`; `history` and `decisions` are described in agent/recall.py, `inputs` in
agent/inputs.py. What fails is answered by `{"ok": false, "error": ..., "exit_code": ...}`.
Imports nothing but json and socket, so that a one-shot that finds an agent stays quick.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping

MAX_LINE = 65536
"""Longest request that the agent reads, in bytes."""
MAX_ANSWER = 1 << 20
"""Longest answer that is read, in bytes."""


def ask(path: str, request: Mapping[str, object], *, timeout_s: float) -> dict[str, object] | None:
    """Send one request to the agent and return its answer; None if no agent listens at `path`.

    Raises PermissionError when this user may not ask there, OSError (TimeoutError too) when an agent listens but does
    not answer, and ValueError when it talks nonsense.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        try:  # noqa: SIM105  # contextlib is start-up time
            connection.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # an agent that turns clients away answers unasked; what it said is still there to be read
        said = b""
        while not said.endswith(b"\n") and (part := connection.recv(MAX_LINE)):
            said += part
            if len(said) > MAX_ANSWER:
                raise ValueError("the agent's answer does not end")
    try:
        answer = json.loads(said)
    except RecursionError:
        raise ValueError("the agent's answer is nested too deeply") from None
    if not isinstance(answer, dict):
        raise ValueError("the agent's answer is no JSON object")
    return answer
