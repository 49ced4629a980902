"""`virtksm pause`, `resume`, `unmerge` and `verify-off` without kernel and libvirt: what is said, read and kept."""

import asyncio
import json
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes import FakeSwitch
from tests.lab.agent_bench import requests_without_libvirt
from tests.lab.full_disk import full_disk
from tests.lab.hang import HANG_S
from tests.lab.hostile_agent import PASS as AGENTS_PASS
from tests.lab.ksm import wait_until
from tests.lab.listening import listening
from tests.lab.nobody import run_as_nobody
from virtksm.cli.layout import to_lines
from virtksm.cli.main import main
from virtksm.cli.pause import DONE
from virtksm.cli.unmerge import merged_rows, read_here, unmerge
from virtksm.cli.verify_off import find_doubts
from virtksm.errors import AlreadyRunning, ExitCode, SensingFailed, VirtksmError
from virtksm.host.local_facts import ProcFacts
from virtksm.host.systemd import has_unit
from virtksm.model.decision import Pause
from virtksm.model.snapshot import KsmState, Settings
from virtksm.paths import RuntimePaths
from virtksm.store.files import locked
from virtksm.store.state import StateFile
from virtksm.store.switch import SwitchFile
from virtksm.values import replace

NOTHING = KsmState.counted({"pages_shared": 0, "pages_sharing": 0, "ksm_zero_pages": 0}.get, 4)
SOME = KsmState.counted({"pages_shared": 10, "pages_sharing": 90}.get, 4)
UNKNOWN = replace(NOTHING, pages_shared=None, pages_sharing=None)
OFF = Pause(since="2026-01-02T03:04:05Z")
PARKED_KSM = replace(NOTHING, settings=Settings(pages_to_scan=0, sleep_millisecs=10_000), run=1, advisor_mode="none")
URI = "qemu:///system?socket=/nonexistent/socket"
PASS = {
    **AGENTS_PASS,
    "uri": URI,
    "source": "local",
    "decision": {**AGENTS_PASS["decision"], "reason": "as told", "rule": "paused"},
    "outcome": "unchanged",
    "refused": [],
    "warnings": [],
}
"""A pass as an agent answers it."""


def test_what_is_merged_is_told_and_what_unmerges_it_where_that_fits() -> None:
    def shown(ksm: KsmState, available_kib: int, *, is_local: bool = True) -> list[str]:
        return to_lines(merged_rows(ksm, available_kib, is_local=is_local))

    assert shown(SOME, 400) == [
        "Merged     0.4 MiB saved: 10 pages shared, 90 more sharing them",
        "Unmerge    virtksm unmerge (unmerging needs up to 0.4 MiB, 0.4 MiB available: ok)",
    ]
    assert shown(SOME, 400, is_local=False)[1].startswith("Unmerge    virtksm unmerge, on that host (")
    assert shown(SOME, 300)[1:] == ["Unmerge    unmerging needs 0.1 MiB more free memory"]
    assert shown(NOTHING, 0) == ["Merged     nothing"]
    assert "unknown" in shown(UNKNOWN, 0)[0], "not offered is not nothing"


def doubts(ksm: KsmState, *, off: Pause | None = OFF, uncounted: bool = False, hidden: bool = False) -> str:
    return "\n".join(find_doubts(off, ksm, has_uncounted_zero_pages=uncounted, numa_hides_pages=hidden))


def test_off_parked_and_nothing_merged_is_certain_and_each_doubt_has_its_remedy() -> None:
    scanning = Settings(pages_to_scan=100, sleep_millisecs=20)
    assert doubts(PARKED_KSM) == ""
    for run in (0, 2):
        off = replace(PARKED_KSM, settings=scanning, run=run, advisor_mode="scan-time")
        assert doubts(off) == "", "while KSM itself is off its settings do not matter"
    assert "(virtksm pause)" in doubts(PARKED_KSM, off=None)
    assert "file: is damaged" in doubts(PARKED_KSM, off=Pause(damage="file: is damaged"))
    assert "100 pages" in doubts(replace(PARKED_KSM, settings=scanning))
    assert "advisor_mode" in doubts(replace(PARKED_KSM, advisor_mode="scan-time"))
    merged = replace(PARKED_KSM, pages_shared=10, pages_sharing=90, ksm_zero_pages=5)
    assert "90 pages share 10, 5 zero pages" in doubts(merged)
    assert "1 zero pages" in doubts(replace(PARKED_KSM, ksm_zero_pages=1))
    assert "use_zero_pages" in doubts(PARKED_KSM, uncounted=True)
    assert "sysctl kernel.numa_balancing=0" in doubts(PARKED_KSM, hidden=True)
    for unknown in (NOTHING, replace(PARKED_KSM, pages_shared=None)):
        assert doubts(unknown) != "", "what is not known is no proof"


def test_a_unit_counts_where_systemd_runs_and_has_it_and_nobody_has_masked_it(tmp_path: Path) -> None:
    etc, vendor = tmp_path / "etc", tmp_path / "vendor"
    for folder in (etc, vendor):
        folder.mkdir()
    (vendor / "one.service").write_text("[Service]\n")
    folders = [str(tmp_path / "none"), str(etc), str(vendor)]
    assert has_unit("one.service", folders, str(tmp_path))
    assert not has_unit("two.service", folders, str(tmp_path))
    assert not has_unit("one.service", folders, str(tmp_path / "no systemd"))
    (etc / "one.service").touch()
    assert not has_unit("one.service", folders, str(tmp_path)), "an empty file masks"
    (etc / "one.service").unlink()
    (etc / "one.service").symlink_to("/dev/null")
    assert not has_unit("one.service", folders, str(tmp_path)), "as systemctl mask does it"


def test_it_reads_this_machines_own_counters_and_a_kernel_that_tells_nothing_is_no_proof(tmp_path: Path) -> None:
    facts = ProcFacts(lambda: 0.0, sys_ksm=str(tmp_path))
    with pytest.raises(SensingFailed, match="CONFIG_KSM"):
        read_here(facts)
    values = {
        "pages_shared": "3", "pages_sharing": "7", "ksm_zero_pages": "2", "run": "1", "pages_to_scan": "0",
        "sleep_millisecs": "10000", "advisor_mode": "[none] scan-time",
    }  # fmt: skip
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    ksm, available_kib = read_here(facts)
    assert (ksm.run, ksm.advisor_mode, ksm.settings.pages_to_scan) == (1, "none", 0)
    assert (ksm.pages_shared, ksm.pages_sharing, ksm.ksm_zero_pages) == (3, 7, 2)
    assert available_kib > 0


@dataclass
class Starts:
    """systemctl in a test: `allowed` has for each start whether the file was there by which the unit does not ask."""

    allowance: Path
    code: int = 0
    allowed: list[bool] = field(default_factory=list)

    def __call__(self) -> int:
        self.allowed.append(self.allowance.exists())
        return self.code


def kernel_with(folder: Path, pages: int) -> ProcFacts:
    """Return a kernel whose KSM has merged so many pages."""
    values = {"pages_shared": pages, "pages_sharing": 0, "ksm_zero_pages": 0, "run": 1, "pages_to_scan": 0}
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")
    return ProcFacts(lambda: 0.0, sys_ksm=str(folder))


@pytest.mark.real  # as root
def test_unmerging_is_systemds_where_it_fits_or_by_force(tmp_path: Path) -> None:
    few, many, allowance = tmp_path / "few", tmp_path / "many", tmp_path / "run" / "allowance"
    few.mkdir()
    many.mkdir()
    fits, too_much = kernel_with(few, 1), kernel_with(many, 1 << 40)
    start = Starts(allowance)

    def ask(facts: ProcFacts, *, force: bool = False, has_unit: bool = True) -> None:
        unmerge(facts, force=force, has_unit=has_unit, start=start, allowance=str(allowance))

    ask(fits)
    with pytest.raises(VirtksmError, match=r"unmerging needs .* more free memory"):
        ask(too_much)
    ask(too_much, force=True)
    assert (start.allowed, allowance.exists()) == ([False, True], False)
    with pytest.raises(VirtksmError) as refused:
        ask(fits, has_unit=False)
    assert refused.value.remedy == "echo 2 > /sys/kernel/mm/ksm/run"
    start.code = 1
    with pytest.raises(VirtksmError, match=r"virtksm-unmerge\.service has failed"):
        ask(too_much, force=True)
    assert not allowance.exists(), "a unit that is started later asks"
    start.allowed.clear()
    ask(kernel_with(few, 0))
    assert start.allowed == [], "nothing is merged"


@dataclass
class Home:
    """Folders of this test's own, and commands over a libvirt that is not there."""

    folder: Path
    switch: SwitchFile = field(init=False)

    def __post_init__(self) -> None:
        self.configure("")
        self.switch = SwitchFile(str(self.folder / "lib" / "local.off"))

    def configure(self, text: str) -> None:
        (self.folder / "one.toml").write_text(f"call_timeout_s = 1\n{text}", encoding="utf-8")

    def arguments(self, *arguments: str) -> list[str]:
        folders = ["--runtime-dir", str(self.folder / "run"), "--state-dir", str(self.folder / "lib")]
        return ["--config", str(self.folder / "one.toml"), *folders, *arguments]

    def run_unnamed(self, *arguments: str) -> int:
        return main(self.arguments(*arguments))

    def run(self, *arguments: str, uri: str = URI) -> int:
        return self.run_unnamed(*arguments, *([] if "--connect" in arguments else ["--connect", uri]))

    def agent(self, answer: bytes | Mapping[str, object] | None) -> AbstractContextManager[list[bytes]]:
        """Have something answer in an agent's place."""
        if isinstance(answer, Mapping):
            answer = json.dumps(answer).encode() + b"\n"
        socket = Path(RuntimePaths(str(self.folder / "run")).control_socket)
        socket.unlink(missing_ok=True)
        return listening(socket, answer)


@pytest.fixture
def home(paths: RuntimePaths) -> Home:
    return Home(Path(paths.root).parent)


def test_without_libvirt_the_switch_is_turned_all_the_same_and_that_is_said(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    for op in ("pause", "resume"):
        assert home.run(op) == ExitCode.UNREACHABLE
        assert f"{DONE[op]}, but no pass was possible yet" in capsys.readouterr().err
        assert (home.switch.read() is None) is (op == "resume")
    with StateFile(RuntimePaths(str(home.folder / "run")), "local").locked():
        assert home.run("pause", "--direct") == ExitCode.UNREACHABLE
        assert home.switch.read() is not None, "a pass that holds the lock does not hold the switch"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\n",
        b"[]\n",
        b"{}\n",
        b"[" * 5000 + b"\n",
        b'{"ok": true}\n',
        b'{"ok": true, "pass": []}\n',
        b'{"ok": true, "pass": {}}\n',
        b'{"ok": true, "pass": {"refused": [], "source": "local", "uri": 1, "sensed": null, "decision": null}}\n',
        b'{"ok": true, "pass": {"refused": 1, "sensed": {"pages_shared": "x", "free_kib": 1}}}\n',
        b'{"ok": false, "error": "\\u001b[31m", "exit_code": 0}\n',
        b'{"ok": false, "exit_code": "4"}\n',
    ],
)
def test_whatever_an_agent_answers_the_switch_is_turned_and_what_it_did_not_do_is_said(
    home: Home, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    for op in ("pause", "resume"):
        with home.agent(answer):
            assert home.run(op) == ExitCode.UNREACHABLE
        told = capsys.readouterr()
        assert (told.out, "\x1b" in told.err) == ("", False)
        *warnings, last, hint = told.err.splitlines()
        assert hint.startswith("hint: ")
        assert warnings[0].startswith("virtksm: warning: the agent ")
        assert warnings[0].endswith("; this is done without it")
        assert last.startswith(f"virtksm: error: {DONE[op]}, but no pass was possible yet: {URI}: ")
        assert (home.switch.read() is None) is (op == "resume")


def test_an_agent_that_never_answers_keeps_nobody_waiting_for_ever(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtksm.cli.pause.SLACK_S", 0.2)
    with home.agent(None):
        assert home.run("pause") == ExitCode.UNREACHABLE
    assert "does not answer: timed out; this is done without it" in capsys.readouterr().err
    assert home.switch.read() is not None


def test_a_host_that_an_agent_names_is_never_opened(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    program = home.folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {home.folder}/ran\n", encoding="ascii")
    program.chmod(0o755)
    evil = f"qemu+ext:///system?command={program}"
    for answer in ({"ok": False, "other_uri": evil}, {"ok": True, "pass": {**PASS, "uri": evil}}):
        with home.agent(answer):
            for op in ("pause", "resume", "retune"):
                home.run(op)
    assert not (home.folder / "ran").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("op", ["pause", "resume", "retune"])
def test_an_agent_is_asked_about_its_own_host_unless_another_is_named(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    answer = {"ok": True, "pass": {**PASS, "uri": "qemu+unix:///system?socket=/its/own"}}
    with home.agent(answer) as asked:
        assert home.run_unnamed(op) == ExitCode.DONE
        assert home.run(op) == ExitCode.DONE
    assert "qemu+unix:///system?socket=/its/own (local)" in capsys.readouterr().out
    assert ["uri" in json.loads(line) for line in asked] == [False, True]
    assert json.loads(asked[1])["uri"] == URI


def test_an_agent_of_another_host_is_no_proof_for_this_one(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it did there, this host's switch is turned, and its pass is tried (refused: the configuration)."""
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    home.configure('policy = "best"\n')
    home.switch.turn_off()
    answer = {"ok": True, "pass": {**PASS, "uri": "qemu+ssh://there/system", "source": "libvirt"}}
    with home.agent(answer):
        assert home.run_unnamed("resume") == ExitCode.USAGE
    assert home.switch.read() is None
    assert "the agent serves qemu+ssh://there/system, which it has resumed" in capsys.readouterr().err


def test_what_an_agent_gives_retune_that_is_no_pass_is_one_error(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in (b"{}", b'{"refused": [], "sensed": null}', b'{"refused": [], "sensed": {"free_kib": "x"}}'):
        with home.agent(b'{"ok": true, "pass": ' + answer + b"}\n"):
            assert home.run("retune") == ExitCode.FAILED
        told = capsys.readouterr()
        assert len(told.err.splitlines()) == 2
        assert "cannot be understood" in told.err
        assert "systemctl restart virtksm" in told.err


def test_a_broken_configuration_is_a_warning_for_off_and_decides_nothing_for_on(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.configure('policy = "best"\n')
    assert home.run("pause") == ExitCode.UNREACHABLE
    warning, *_, last, _ = capsys.readouterr().err.splitlines()
    assert "the configuration has faults" in warning
    assert "paused, but no pass was possible yet" in last
    assert home.switch.read() is not None
    assert home.run("resume") == ExitCode.USAGE
    assert "resumed, but no pass was possible yet: the configuration has faults" in capsys.readouterr().err
    assert home.switch.read() is None


@pytest.mark.parametrize("command", ["retune", "guests", "headroom", "pause"])
def test_only_who_needs_a_group_asks_for_it(home: Home, capsys: pytest.CaptureFixture[str], command: str) -> None:
    home.configure('status_group = "there-is-no-such-group"\n')
    assert home.run(command) == ExitCode.UNREACHABLE
    assert "status_group" not in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize("planted", ["switch", "folder"])
def test_what_is_planted_in_the_switchs_place_is_off_and_off_goes_on(
    home: Home, capsys: pytest.CaptureFixture[str], planted: str
) -> None:
    if planted == "switch":
        (home.folder / "lib" / "local.off").mkdir(parents=True)
    else:
        (home.folder / "lib").write_text("a file", encoding="utf-8")
    assert home.run("pause") == ExitCode.UNREACHABLE
    warning, *_, last, _ = capsys.readouterr().err.splitlines()
    assert warning.endswith("virtksm counts as paused all the same")
    assert "paused, but no pass was possible yet" in last
    assert home.run("resume") == ExitCode.FAILED
    assert f"virtksm: error: not resumed: {home.switch.path}: " in capsys.readouterr().err


def test_a_switch_that_cannot_be_written_is_said_to_be_as_it_was(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.folder / "lib").mkdir()
    with full_disk():
        assert home.run("pause") == ExitCode.FAILED
    assert f"virtksm: error: not paused: {home.switch.path}: File too large\nhint: ls -la " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["unmerge", "--check"], ["verify-off"]], ids=" ".join)
def test_who_asks_about_this_machine_asks_neither_libvirt_nor_configuration_nor_agent(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    home.configure("[[")
    with home.agent(None):
        home.run_unnamed(*command)
    assert capsys.readouterr().err.count("configuration") == 0
    for uri, said in (
        ("alias", "alias is an alias, which only libvirt knows"),
        ("qemu+ssh://there/system", "hint: run this command on that host"),
    ):
        assert home.run(*command, "--connect", uri) == ExitCode.FAILED
        assert said in capsys.readouterr().err


def test_restoring_on_exit_does_what_the_valid_part_of_a_broken_configuration_says(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.configure('policy = "best"\n')
    assert home.run("restore", "--on-exit") == ExitCode.UNREACHABLE
    assert "the configuration has faults" in capsys.readouterr().err
    home.configure('policy = "best"\non_exit = "leave"\n')
    assert home.run("restore", "--on-exit", "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "action": "leave"}


def test_an_agent_may_start_while_a_restore_waits_for_libvirt(home: Home) -> None:
    (home.folder / "one.toml").write_text("call_timeout_s = 600\n", encoding="utf-8")
    sock, paths = home.folder / "libvirt", RuntimePaths(str(home.folder / "run"))
    with ThreadPoolExecutor(1) as beside:
        with listening(sock) as connected:
            restoring = beside.submit(home.run, "restore", uri=f"qemu:///system?socket={sock}")
            wait_until(lambda: bool(connected), HANG_S, "the restore to ask libvirt")
            with locked(paths.agent_lock, AlreadyRunning("the restore holds it")):
                assert not restoring.done()
        assert restoring.result(HANG_S) == ExitCode.UNREACHABLE


@pytest.mark.real  # as root: it becomes nobody
@pytest.mark.parametrize("state", ["pause", "resume", "never made"])
@pytest.mark.parametrize("op", ["pause", "resume"])
def test_nobody_is_told_that_only_root_may_and_nothing_is_turned(home: Home, op: str, state: str) -> None:
    if state != "never made":
        home.switch.turn_off()
    if state == "resume":
        home.switch.turn_on()
    before = home.switch.read()
    arguments = home.arguments(op, "--connect", URI)
    done = run_as_nobody(*arguments)
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    command = shlex.join(["sudo", "virtksm", *arguments])
    assert done.stderr == f"virtksm: error: only root may do this\nhint: {command}\n"
    assert home.switch.read() == before


def test_an_agent_without_libvirt_turns_its_hosts_switch_and_says_that_no_pass_was_possible(tmp_path: Path) -> None:
    def ask(op: str, uri: str, switch: FakeSwitch | SwitchFile, of_agent: str = URI) -> dict[str, object]:
        return asyncio.run(requests_without_libvirt(switch, of_agent).handle({"op": op, "uri": uri}))

    switch = FakeSwitch()
    assert ask("pause", "qemu+ssh://there/system", switch) == {"ok": False, "other_uri": URI}
    unknown = ask("pause", "lab", switch, of_agent="lab")
    assert unknown["exit_code"] == ExitCode.UNREACHABLE
    assert "switched" not in str(unknown["error"])
    assert switch.read() is None
    for op in ("pause", "resume"):
        answer = ask(op, URI, switch)
        assert (switch.read() is not None) is (op == "pause")
        assert (answer["ok"], answer["exit_code"]) == (False, ExitCode.UNREACHABLE)
        assert str(answer["error"]).startswith(f"{DONE[op]}, but no pass was possible yet")
    (tmp_path / "lib").write_text("a file", encoding="utf-8")
    answer = ask("pause", URI, SwitchFile(str(tmp_path / "lib" / "local.off")))
    assert (answer["ok"], answer["exit_code"]) == (False, ExitCode.FAILED)
    assert f"ls -ld {tmp_path / 'lib'}" in str(answer["remedy"])
