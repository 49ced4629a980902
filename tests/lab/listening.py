"""A unix socket that takes clients in and answers all of them the same, or never: a daemon that is wedged, or lies."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def listening(path: Path, answer: bytes | None = None) -> Iterator[list[bytes]]:
    """Listen at `path`; yields the first line of each client.

    Without an answer none is read: each counts as an empty line, and its connection stays until the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    asked: list[bytes] = []
    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)
        thread = threading.Thread(target=_serve, args=(server, answer, asked, clients))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would not
            thread.join()
            for client in clients:
                client.close()


def _serve(server: socket.socket, answer: bytes | None, asked: list[bytes], clients: list[socket.socket]) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:  # it is over
            return
        if answer is None:
            clients.append(client)
            asked.append(b"")
            continue
        with client, client.makefile("rb") as lines:
            asked.append(lines.readline())
            client.sendall(answer)
