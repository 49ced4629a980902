"""The control socket's protocol from both ends: whatever bytes come, an answer or a documented error comes out."""

import asyncio
import json
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.lab.hang import HANG_S
from tests.lab.stand_in import let_all_end
from virtksm.agent.control_client import MAX_ANSWER, MAX_LINE, ask
from virtksm.agent.sockets import ControlServer, bind_socket
from virtksm.errors import ExitCode
from virtksm.values import parse_object

NESTED = b"[" * 60_000
"""Deeper than Python's parser goes."""

parts = st.sampled_from([b"{", b"}", b"[", b"]", b'"op"', b":", b'"status"', b",", b"1", b"\n", b"\0", b"\xff", b"NaN"])
sendings = st.binary() | st.lists(parts, max_size=20).map(b"".join)


async def echo(request: Mapping[str, object]) -> dict[str, object]:
    return {"ok": True, "asked": sorted(request)}


async def exchange(path: str, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    with suppress(BrokenPipeError, ConnectionResetError):
        writer.write(sent)
        writer.write_eof()
        await writer.drain()
    answer = await asyncio.wait_for(reader.readline(), HANG_S)
    writer.close()
    return answer


async def serve(sent: bytes) -> tuple[bytes, bytes]:
    """Send bytes to a server, then a request; return both answers."""
    with tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder:
        server = ControlServer(bind_socket(f"{folder}/s"), echo)
        answers = await exchange(f"{folder}/s", sent), await exchange(f"{folder}/s", b'{"op": 1}\n')
        server.clients.close()
        await let_all_end()
        return answers


@given(sent=sendings)
@example(sent=NESTED + b"\n")
@example(sent=b"9" * 5000 + b"\n")
@example(sent=b"x" * (MAX_LINE + 1))
@settings(max_examples=50)
def test_any_bytes_are_answered_and_the_next_request_is_served(sent: bytes) -> None:
    answer, after = asyncio.run(serve(sent))
    assert bool(answer) == bool(sent), "who says nothing is told nothing"
    if sent and not (told := json.loads(answer))["ok"]:
        assert told["exit_code"] == ExitCode.USAGE
        assert told["error"].startswith("the request is no JSON ")
    assert json.loads(after) == {"ok": True, "asked": ["op"]}


def ask_one_that_says(said: bytes) -> dict[str, object] | ValueError | None:
    """Ask somebody who says these bytes, whatever the question."""
    with tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()

        def say() -> None:
            connection, _ = listener.accept()
            with connection, suppress(BrokenPipeError, ConnectionResetError):
                connection.recv(MAX_LINE)
                connection.sendall(said)

        saying = threading.Thread(target=say)
        saying.start()
        try:
            return ask(f"{folder}/s", {"op": "status"}, timeout_s=HANG_S)
        except ValueError as error:
            return error
        finally:
            saying.join(HANG_S)


@given(said=sendings)
@example(said=NESTED)
@example(said=b"")
@settings(max_examples=50)
def test_any_answer_is_an_object_or_a_value_error(said: bytes) -> None:
    answer = ask_one_that_says(said)
    assert isinstance(answer, dict | ValueError)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "9" * 400, "9" * 5000])
def test_a_number_that_no_counter_has_is_no_answer(number: str) -> None:
    for said in (f'{{"a": {number}}}\n', f'{{"a": [{{"b": {number}}}]}}\n'):
        with pytest.raises(ValueError, match="no number of a counter"):
            parse_object(said, "the agent's answer")
    assert parse_object('{"a": [-3, 1.5, 18446744073709551615]}', "it") == {"a": [-3, 1.5, 18446744073709551615]}


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    answer = ask_one_that_says(b'{"much": "' + b"x" * MAX_ANSWER + b'"}\n')
    assert isinstance(answer, ValueError)
    assert "does not end" in str(answer)
