"""Who may ask the agent what: real sockets, and clients of other users; needs root, as giving up its user does."""

import asyncio
import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S
from tests.lab.stand_in import let_all_end
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.control_client import ask
from virtksm.agent.sockets import MAX_CLIENTS, MAX_OF_A_READER, ControlServer, StatusSocket, bind_for_group, bind_socket
from virtksm.errors import ConfigError
from virtksm.paths import RuntimePaths

pytestmark = pytest.mark.real

GROUP, OTHER_GROUP = "daemon", "bin"
GID = grp.getgrnam(GROUP).gr_gid
NOBODY, SOMEBODY = 65534, 65533
PYTHON = str(Path(sys.executable).resolve())

ASK = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
except OSError as error:
    sys.exit(type(error).__name__)
try:
    connection.sendall(sys.argv[2].encode() + b"\\n")
except (BrokenPipeError, ConnectionResetError):
    pass  # turned away already; what was said is still there
print(connection.makefile().readline())
"""
HOLD = """
import socket, sys
held = []
for _ in range(1000):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


async def echo(request: Mapping[str, object]) -> dict[str, object]:
    return {"ok": True, "asked": request["op"]}


def gid_of(group: str) -> int | None:
    return grp.getgrnam(group).gr_gid if group else None


def open_to_all(paths: RuntimePaths) -> None:
    Path(paths.agent_dir).chmod(0o755)
    Path(paths.control_socket).chmod(0o666)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_there(path: str) -> bool:
    return os.path.lexists(path)


@asynccontextmanager
async def serving(paths: RuntimePaths, group: str) -> AsyncIterator[StatusSocket]:
    """Serve both sockets as the agent does; who holds a place holds it."""
    control = ControlServer(bind_socket(paths.control_socket), echo, patience_s=HANG_S)
    readers = StatusSocket(paths, echo, patience_s=HANG_S)
    readers.follow(group, gid_of(group))
    try:
        yield readers
    finally:
        readers.close()
        control.clients.close()
        await let_all_end()


async def ask_as(uid: int, gids: list[int], path: str, op: str) -> dict[str, object] | str:
    """Ask as another user; return the answer, or the name of the error that connecting met."""
    done = await asyncio.to_thread(
        subprocess.run,
        [PYTHON, "-I", "-S", "-c", ASK, path, json.dumps({"op": op})],
        user=uid,
        group=NOBODY,
        extra_groups=gids,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    if done.returncode:
        return done.stderr.strip()
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def hold(uid: int, path: str) -> subprocess.Popen[str]:
    """Have another user, a member of the group, open 1,000 connections and hold them."""
    return subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", HOLD, path],
        user=uid,
        group=NOBODY,
        extra_groups=[GID],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@asynccontextmanager
async def thousand_connections(uid: int, path: str) -> AsyncIterator[None]:
    with hold(uid, path) as holding:
        try:
            assert holding.stdout is not None
            assert await asyncio.to_thread(holding.stdout.readline) == "held\n"
            yield
        finally:
            holding.kill()


STATUS: dict[str, object] = {"ok": True, "asked": "status"}


async def test_a_member_of_the_group_may_read_status_and_nobody_else_and_change_nothing(paths: RuntimePaths) -> None:
    async with serving(paths, GROUP):
        assert await ask_as(NOBODY, [GID], paths.status_socket, "status") == STATUS
        assert await ask_as(NOBODY, [], paths.status_socket, "status") == "PermissionError"
        assert await ask_as(0, [], paths.status_socket, "status") == STATUS
        answer = await ask_as(NOBODY, [GID], paths.status_socket, "retune")
        assert isinstance(answer, dict)
        assert answer["ok"] is False
        assert "only root and the agent's own user may ask more" in str(answer["error"])
        assert await ask_as(NOBODY, [GID], paths.control_socket, "retune") == "PermissionError"


async def test_without_a_group_there_is_no_socket_and_whoever_reaches_the_control_socket_may_not_ask(
    paths: RuntimePaths,
) -> None:
    bind_for_group(paths.status_socket, GID).close()
    async with serving(paths, ""):
        assert not is_there(paths.status_socket), "also where a killed agent left one"
        assert await ask_as(NOBODY, [GID], paths.control_socket, "status") == "PermissionError"
        open_to_all(paths)
        for op in ("status", "retune"):
            answer = await ask_as(NOBODY, [GID], paths.control_socket, op)
            assert isinstance(answer, dict)
            assert answer["error"] == "only root and the agent's own user may ask here"


async def test_a_thousand_connections_of_a_member_keep_nobody_from_being_served_and_no_pass_from_running(
    paths: RuntimePaths,
) -> None:
    async with serving(paths, GROUP):
        before = count_descriptors()
        async with thousand_connections(NOBODY, paths.status_socket):
            answer = await ask_as(NOBODY, [GID], paths.status_socket, "status")
            assert isinstance(answer, dict)
            assert answer["error"] == "too many clients"
            retuned = await asyncio.to_thread(ask, paths.control_socket, {"op": "retune"}, timeout_s=HANG_S)
            assert retuned == {"ok": True, "asked": "retune"}
            assert await BlockingCalls().run("pass", lambda: "passed", HANG_S) == "passed"
            assert await ask_as(SOMEBODY, [GID], paths.status_socket, "status") == STATUS
            grown = count_descriptors() - before
            assert grown <= MAX_OF_A_READER + 16, "those with a place, and the pipes of the clients here"


async def test_a_member_with_many_uids_takes_no_other_members_place(paths: RuntimePaths) -> None:
    """A user namespace gives a member as many as /etc/subuid has for him."""
    async with serving(paths, GROUP), AsyncExitStack() as stack:
        for number in range(MAX_CLIENTS // MAX_OF_A_READER):
            await stack.enter_async_context(thousand_connections(60_000 + number, paths.status_socket))
        for uid in (NOBODY, SOMEBODY, 0):
            assert await ask_as(uid, [GID], paths.status_socket, "status") == STATUS


async def test_the_group_follows_the_configuration_and_one_that_cannot_be_had_changes_nothing(
    paths: RuntimePaths,
) -> None:
    async with serving(paths, GROUP) as readers:
        other = gid_of(OTHER_GROUP)
        assert other is not None
        readers.follow(OTHER_GROUP, other)
        with pytest.raises(ConfigError) as unknown:
            readers.follow("no-such-group", None)
        (finding,) = unknown.value.faults
        assert (finding.file, finding.key) == (paths.status_socket, "status_group")
        assert "no such group" in finding.problem
        assert "groupadd" in finding.remedy
        assert await ask_as(NOBODY, [GID], paths.status_socket, "status") == "PermissionError"
        assert await ask_as(NOBODY, [other], paths.status_socket, "status") == STATUS
        readers.follow("", None)
        assert not is_there(paths.status_socket)


def test_a_folder_that_cannot_be_opened_to_the_group_is_an_error(paths: RuntimePaths) -> None:
    Path(paths.agent_dir).rmdir()
    elsewhere = Path(paths.root).parent / "elsewhere"
    elsewhere.mkdir()
    Path(paths.agent_dir).symlink_to(elsewhere)

    async def follow() -> None:
        StatusSocket(paths, echo).follow(GROUP, GID)

    with pytest.raises(ConfigError, match="cannot be given the socket: Not a directory; the agent's user must be"):
        asyncio.run(follow())
    assert list(elsewhere.iterdir()) == []
    assert elsewhere.stat().st_gid != GID


def test_at_no_step_may_anybody_connect_who_may_not_in_the_end(
    paths: RuntimePaths, at_every_step: Callable[[Callable[[], None]], None]
) -> None:
    seen: set[tuple[str, int, int]] = set()

    def look() -> None:
        for path in (paths.status_socket, f"{paths.status_socket}.new"):
            if os.path.lexists(path):
                status = os.lstat(path)
                seen.add((path, stat.S_IMODE(status.st_mode), status.st_gid))

    at_every_step(look)
    umask = os.umask(0)
    try:
        listener = bind_for_group(paths.status_socket, GID)
    finally:
        os.umask(umask)
    look()
    listener.close()
    assert (f"{paths.status_socket}.new", 0o600, 0) in seen
    assert {step for step in seen if step[0] == paths.status_socket} == {(paths.status_socket, 0o660, GID)}
    assert {step[1:] for step in seen} <= {(0o600, 0), (0o600, GID), (0o660, GID)}


@pytest.fixture
def at_every_step() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Have something called before each call of a C function: each bind, chown, chmod, rename."""
    yield lambda look: sys.setprofile(lambda _frame, event, _function: look() if event == "c_call" else None)
    sys.setprofile(None)


def test_planted_links_are_replaced_and_what_they_point_to_is_left_alone(paths: RuntimePaths) -> None:
    victim = Path(paths.root) / "victim"
    victim.write_text("precious", encoding="utf-8")
    victim.chmod(0o600)
    Path(paths.status_socket).symlink_to(victim)
    Path(f"{paths.status_socket}.new").symlink_to(victim)
    bind_for_group(paths.status_socket, GID).close()
    assert victim.read_text(encoding="utf-8") == "precious"
    assert (stat.S_IMODE(victim.stat().st_mode), victim.stat().st_gid) == (0o600, 0)
    assert stat.S_ISSOCK(Path(paths.status_socket).lstat().st_mode)
