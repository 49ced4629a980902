"""The control socket: bounded in size, time and number, heard only from those who may, gone with its agent."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hang import HANG_S
from tests.lab.stand_in import let_all_end
from virtksm.agent.control_client import MAX_LINE, ask
from virtksm.agent.sockets import MAX_CLIENTS, ControlServer, Handler, bind_socket, peer_uid, remove_socket

SHORT_S = 0.05
MUCH = 10_000_000
"""More than a socket's buffer holds."""


async def echo(request: Mapping[str, object]) -> dict[str, object]:
    return {"ok": True, "asked": dict(request)}


async def tell_much(_request: Mapping[str, object]) -> dict[str, object]:
    return {"ok": True, "much": "x" * MUCH}


@asynccontextmanager
async def serving(path: Path, handle: Handler = echo, **how: Any) -> AsyncIterator[ControlServer]:  # noqa: ANN401
    """Run a server on `path`; `how` are its own options."""
    server = ControlServer(bind_socket(str(path)), handle, **how)
    try:
        yield server
    finally:
        server.clients.close()
        await let_all_end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def talk(path: Path, sent: bytes) -> dict[str, object]:
    """Send bytes as they are and return the answer."""
    told = json.loads(await asyncio.to_thread(exchange, path, sent))
    assert isinstance(told, dict)
    return told


def exchange(path: Path, sent: bytes) -> bytes:
    """Send bytes and read to the end: a server that has heard enough resets the connection behind its answer."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.settimeout(HANG_S)
        connection.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(MAX_LINE):
            answer += part
    return answer


async def is_served(path: Path) -> None:
    """Ask until there is an answer: where patience is short, a busy machine may take longer to ask."""
    while b'"ok": true' not in await asyncio.to_thread(exchange, path, b'{"op": 1}\n'):
        continue


async def test_a_newcomer_when_all_places_are_taken_gets_that_of_the_first_who_has_not_asked(path: Path) -> None:
    """Root is always heard: 32 connections of its own, held and silent, keep no `off` out."""
    async with serving(path):
        silent = [await asyncio.open_unix_connection(path) for _ in range(MAX_CLIENTS)]
        for _ in range(3):
            answer = await asyncio.to_thread(ask, str(path), {"op": "off"}, timeout_s=HANG_S)
            assert answer == {"ok": True, "asked": {"op": "off"}}
        turned_away = json.loads(await asyncio.wait_for(silent[0][0].readline(), HANG_S))
        assert turned_away == {"ok": False, "error": "too many clients", "exit_code": 1}
        for reader, writer in silent[1:]:
            writer.write(b'{"op": 1}\n')
            assert json.loads(await asyncio.wait_for(reader.readline(), HANG_S))["ok"] is True
        for _, writer in silent:
            writer.close()


async def test_requests_that_wait_for_their_answer_keep_root_out_no_more_than_silent_ones(path: Path) -> None:
    answers = asyncio.Event()
    waiting: list[int] = []

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        if request["op"] != "off":
            waiting.append(1)
            await answers.wait()
        return {"ok": True}

    async with serving(path, handle):
        asking = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CLIENTS)]
        for _, writer in asking:
            writer.write(b'{"op": "retune"}\n')
        while len(waiting) < MAX_CLIENTS:  # noqa: ASYNC110  # as many tasks as clients
            await asyncio.sleep(0)
        assert await asyncio.to_thread(ask, str(path), {"op": "off"}, timeout_s=HANG_S) == {"ok": True}
        answers.set()
        told = [json.loads(await asyncio.wait_for(reader.readline(), HANG_S)) for reader, _ in asking]
        assert [one["ok"] for one in told] == [False] + [True] * (MAX_CLIENTS - 1), "the first to come has gone"
        for _, writer in asking:
            writer.close()


async def test_answers_of_any_size_read_whole_leave_no_place_taken_and_no_word_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def tell(_request: Mapping[str, object]) -> dict[str, object]:
        return {"ok": True, "much": "x" * 215_000}

    async with serving(path, tell) as server:
        unexpected: list[Mapping[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unexpected.append(context))
        for _ in range(100):
            answer = await asyncio.to_thread(ask, str(path), {"op": "history"}, timeout_s=HANG_S)
            assert answer is not None
            assert answer["ok"] is True, answer
        while server.clients.connected:  # noqa: ASYNC110  # a place that comes free sets no event
            await asyncio.sleep(0)
        assert unexpected == []
    assert caplog.records == []


class Bug(Exception):
    """What nobody thought of."""


@pytest.mark.parametrize("told", [Bug("a bug"), {"ok": True, "set": {1}}])
async def test_a_request_that_goes_wrong_is_answered_and_told_and_the_next_is_served(
    path: Path, told: Bug | dict[str, object]
) -> None:
    crashed: list[tuple[str, Exception]] = []

    async def handle(request: Mapping[str, object]) -> dict[str, object]:
        if request["op"] == "status":
            return {"ok": True}
        if isinstance(told, Bug):
            raise told
        return told

    async with serving(path, handle, crashed=lambda op, error: crashed.append((op, error))):
        answer = await asyncio.to_thread(ask, str(path), {"op": "history"}, timeout_s=HANG_S)
        assert answer == {"ok": False, "error": "internal error", "exit_code": 1}
        assert await asyncio.to_thread(ask, str(path), {"op": "status"}, timeout_s=HANG_S) == {"ok": True}
    ((op, error),) = crashed
    assert (op, type(error)) == ("history", Bug if isinstance(told, Bug) else TypeError)


async def test_a_client_that_goes_away_harms_nobody(path: Path) -> None:
    async with serving(path):
        for sent in (b"", b'{"op"', b'{"op": 1}\n'):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(sent)
            writer.transport.abort()
        assert (await talk(path, b'{"op": 1}\n'))["ok"] is True


async def test_a_hundred_megabytes_are_not_taken_in(path: Path) -> None:
    def pour() -> tuple[int, bytes]:
        taken, piece = 0, b"x" * 1_000_000
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(HANG_S)
            connection.connect(str(path))
            with suppress(BrokenPipeError, ConnectionResetError):
                while taken < 100_000_000:
                    taken += connection.send(piece)
            with suppress(ConnectionResetError):
                return taken, connection.recv(MAX_LINE)
        return taken, b""

    async with serving(path):
        taken, answer = await asyncio.to_thread(pour)
        assert taken < 5_000_000, "what the kernel's buffer and the reader's hold, and no more"
        assert b"too long" in answer
        assert (await talk(path, b'{"op": "status"}\n'))["ok"] is True


@pytest.mark.parametrize("sent", [b"", b'{"op": "sta'])
async def test_a_client_that_never_ends_its_request_is_left_and_its_place_comes_free(path: Path, sent: bytes) -> None:
    async with serving(path, patience_s=SHORT_S):
        slow = []
        for _ in range(MAX_CLIENTS):
            slow.append(await asyncio.open_unix_connection(path))
            slow[-1][1].write(sent)
        for reader, writer in slow:
            assert await asyncio.wait_for(reader.read(), HANG_S) == b"", "closed without an answer"
            writer.close()
        await is_served(path)


async def test_a_client_that_never_reads_is_left_and_its_place_comes_free(path: Path) -> None:
    async with serving(path, handle=tell_much, patience_s=SHORT_S):
        with ExitStack() as stack:
            for _ in range(MAX_CLIENTS):
                deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
                deaf.connect(str(path))  # the kernel keeps it: all have asked when the server comes to accept them
                deaf.sendall(b'{"op": 1}\n')
            await is_served(path)


async def test_the_readers_socket_answers_questions_alone(path: Path) -> None:
    async with serving(path, for_readers=True):
        for question in ("status", "history", "decisions"):
            assert (await talk(path, json.dumps({"op": question}).encode() + b"\n"))["ok"] is True
        assert "no JSON object" in str((await talk(path, b"[1]\n"))["error"])
        for sent in (b'{"op": "retune"}\n', b'{"op": ["status"]}\n', b"{}\n"):
            answer = await talk(path, sent)
            assert answer["ok"] is False
            assert "answers status, history, decisions alone" in str(answer["error"])


def test_the_socket_is_its_owners_alone_replaces_what_is_there_and_follows_no_link(path: Path, tmp_path: Path) -> None:
    bind_socket(str(path)).close()
    assert ask(str(path), {}, timeout_s=HANG_S) is None, "left by an agent that was killed"
    bind_socket(str(path)).close()
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    path.unlink()
    path.symlink_to(victim)
    bind_socket(str(path)).close()
    assert victim.read_text(encoding="utf-8") == "precious"
    mode = path.lstat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    for _ in range(2):
        remove_socket(str(path))
    assert not path.exists()
    with pytest.raises(OSError, match="No such file"):
        bind_socket(str(path / "none"))
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert peer_uid(here) == os.geteuid()
