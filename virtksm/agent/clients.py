"""The clients of a socket: each sends one request and gets one answer, bounded in number, size and time.

1. Clients are accepted as fast as they come, so that none waits in the kernel behind others, up to `max_clients`.
2. A client with a request is answered. One without is dropped after `patience_s`, or for a newer client, the oldest
   first; what it has sent by then is read before.
3. Where all clients wait for their answers, none is accepted until a place is free. After GRACE_S the oldest answer is
   then given up: its client does not read.

Without asyncio's streams, which take several times as long for a client: most of a flood's say nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

PATIENCE_S = 5.0
"""How long a client may take to ask, and then to read the answer."""
GRACE_S = 0.2
PIECE_BYTES = 1 << 14
AT_ONCE = 64
"""Clients that are accepted before the loop does something else: some 2 ms."""


class Clients:
    """Those of a listening socket, whose requests `answer` answers; to be used from one asyncio loop, begins at once.

    A request ends with `end`, or as the client's writing ends; `answer` gets one byte too many of one that is too long.
    `refuse` returns what a new client is told in place of an answer, None for one that may ask. `last_word` is what a
    client is told whose place another needs.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[bytes], Awaitable[bytes]],
        *,
        end: bytes,
        max_bytes: int,
        max_clients: int,
        patience_s: float = PATIENCE_S,
        refuse: Callable[[socket.socket], bytes | None] = lambda _client: None,
        last_word: bytes = b"",
    ) -> None:
        self._listener = listener
        self._answer, self._refuse, self._last_word = answer, refuse, last_word
        self._end, self._max_bytes, self._max_clients = end, max_bytes, max_clients
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._asking: dict[socket.socket, tuple[bytes, float]] = {}
        """What each has sent, and when it came; in the order in which they came."""
        self._answers: dict[socket.socket, asyncio.Task[None]] = {}
        """In the order in which they were asked for."""
        self._patience: asyncio.TimerHandle | None = None
        """While a client is asking."""
        self._pause: asyncio.TimerHandle | None = None
        """While no client is accepted."""
        listener.settimeout(0)
        self._loop.add_reader(listener, self._accept)

    @property
    def connected(self) -> list[socket.socket]:
        return [*self._asking, *self._answers]

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for timer in (self._patience, self._pause):
            if timer is not None:
                timer.cancel()
        self._patience = self._pause = None
        for client in list(self._asking):
            self._drop(client)
        for answer in self._answers.values():
            answer.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            is_full = len(self._asking) + len(self._answers) >= self._max_clients
            silent = self._find_silent() if is_full else None
            if is_full and silent is None:
                self._begin_pause()
                break
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):  # no client waits, or it has gone again
                break
            except OSError:  # of descriptors or memory
                self._begin_pause()
                break
            client.settimeout(0)
            if (refusal := self._refuse(client)) is not None:
                _tell(client, refusal)
                continue
            if silent is not None:
                self._drop(silent, self._last_word)
            self._asking[client] = (b"", self._loop.time())
            self._read(client)
            if client in self._asking:
                self._loop.add_reader(client, self._read, client)
        if self._patience is None:
            self._drop_silent()

    def _find_silent(self) -> socket.socket | None:
        """Return the first client that has not asked, now that what it has sent is read."""
        for client in list(self._asking):
            self._read(client)
            if client in self._asking:
                return client
        return None

    def _read(self, client: socket.socket) -> None:
        sent, came_s = self._asking[client]
        try:
            piece = client.recv(PIECE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            piece = b""
        sent += piece
        if self._end in sent or len(sent) > self._max_bytes or (sent and not piece):
            self._stop_asking(client)
            answer = self._answers[client] = self._loop.create_task(self._serve(client, sent[: self._max_bytes + 1]))
            answer.add_done_callback(partial(self._answered, client))
        elif not piece:
            self._drop(client)
        else:
            self._asking[client] = (sent, came_s)

    def _drop(self, client: socket.socket, last_word: bytes = b"") -> None:
        self._stop_asking(client)
        _tell(client, last_word)

    def _stop_asking(self, client: socket.socket) -> None:
        del self._asking[client]
        self._loop.remove_reader(client)

    def _drop_silent(self) -> None:
        """Drop those that have not asked in time, and plan to do so for the next."""
        self._patience = None
        while self._asking:
            client, (_, came_s) = next(iter(self._asking.items()))
            until_s = came_s + self._patience_s
            if until_s > self._loop.time():
                self._patience = self._loop.call_at(until_s, self._drop_silent)
                return
            self._drop(client)

    def _begin_pause(self) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(GRACE_S, self._end_pause)

    def _end_pause(self) -> None:
        """Accept clients again; if there is still no place, once the oldest answer is given up (rule 3)."""
        if len(self._answers) >= self._max_clients:
            next(iter(self._answers.values())).cancel()  # which calls `_answered`
            return
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    async def _serve(self, client: socket.socket, sent: bytes) -> None:
        answer = await self._answer(sent)
        with suppress(OSError, TimeoutError):  # it went away or does not read
            async with asyncio.timeout(self._patience_s):
                await self._loop.sock_sendall(client, answer)

    def _answered(self, client: socket.socket, answer: asyncio.Task[None]) -> None:
        del self._answers[client]
        _tell(client, self._last_word if answer.cancelled() else b"")
        if self._pause is not None:
            self._pause.cancel()
            self._end_pause()
        if not answer.cancelled():
            answer.result()  # our own fault: the loop reports it


def _tell(client: socket.socket, last: bytes) -> None:
    """Close a client, with a last word if it reads."""
    with suppress(OSError):
        if last:
            client.send(last)
    client.close()
