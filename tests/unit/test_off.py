"""`virtksm off` and `on` without kernel and libvirt: what unmerges is named or not, what is read, what is kept."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes import FakeSwitch
from virtksm.adapters.local_facts import ProcFacts
from virtksm.adapters.switch_file import SwitchFile
from virtksm.adapters.systemd import Notifier, has_unit
from virtksm.agent.agent import Agent, FreshConfig
from virtksm.agent.blocking import BlockingCalls
from virtksm.agent.link import Link
from virtksm.agent.reporting import Reporter
from virtksm.cli.main import main
from virtksm.cli.off import BY_HAND, name_unmerging, read_here
from virtksm.cli.render import merged_lines
from virtksm.config.schema import Config
from virtksm.errors import ExitCode, SensingFailed
from virtksm.merged import Merged
from virtksm.ports import Switch

NOTHING = Merged(pages_shared=0, pages_sharing=0, zero_pages=0, page_kib=4)
SOME = Merged(pages_shared=10, pages_sharing=90, zero_pages=None, page_kib=4)
URI = "qemu:///system?socket=/nonexistent/socket"


def test_the_command_is_named_where_it_fits_or_is_forced() -> None:
    assert name_unmerging(NOTHING, 10_000, is_local=False, force=True) is None
    assert name_unmerging(SOME, 400, is_local=False, force=False) == BY_HAND
    assert name_unmerging(SOME, 399, is_local=False, force=False) is None
    assert name_unmerging(SOME, 399, is_local=True, force=True) == BY_HAND, "the unit would refuse"


def test_what_is_missing_is_told_instead() -> None:
    lines = "\n".join(merged_lines(SOME, 399, None))
    assert "0.4 MiB are saved" in lines
    assert "0.0 MiB are missing" in lines
    assert "unmerge   not now" in lines
    assert BY_HAND not in lines
    assert merged_lines(NOTHING, 0, None) == ["merged    nothing"]
    assert f"unmerge   as root on that host: {BY_HAND}" in merged_lines(SOME, 400, BY_HAND)


def test_a_unit_counts_where_systemd_runs_and_has_it(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "one.service").touch()
    folders = [str(tmp_path / "none"), str(tmp_path / "units")]
    assert has_unit("one.service", folders, str(tmp_path))
    assert not has_unit("two.service", folders, str(tmp_path))
    assert not has_unit("one.service", folders, str(tmp_path / "no systemd"))


def test_it_reads_this_machines_own_counters(tmp_path: Path) -> None:
    values = {
        "pages_shared": "3", "pages_sharing": "7", "ksm_zero_pages": "2", "run": "1", "pages_to_scan": "0",
        "sleep_millisecs": "10000", "advisor_mode": "[none] scan-time",
    }  # fmt: skip
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    ksm, merged, available_kib = read_here(ProcFacts(lambda: 0.0, sys_ksm=str(tmp_path)))
    assert (ksm.run, ksm.advisor_mode, ksm.settings.pages_to_scan) == (1, "none", 0)
    assert (merged.pages_shared, merged.pages_sharing, merged.zero_pages) == (3, 7, 2)
    assert available_kib > 0


def test_a_kernel_that_tells_nothing_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(SensingFailed, match="CONFIG_KSM"):
        read_here(ProcFacts(lambda: 0.0, sys_ksm=str(tmp_path)))


@pytest.mark.parametrize("option", ["--fits", "--verify"])
def test_another_machine_is_looked_at_over_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "one.toml").touch()
    arguments = ["--config", str(tmp_path / "one.toml"), "off", option, "--connect", "qemu+ssh://there/system"]
    assert main(arguments) == ExitCode.FAILED
    assert "run this command there" in capsys.readouterr().err


@dataclass
class Home:
    """Folders of this test's own, and commands over a libvirt that is not there."""

    folder: Path
    switch: SwitchFile = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "one.toml").touch()
        self.switch = SwitchFile(str(self.folder / "lib" / "local.off"))

    def run(self, *arguments: str) -> int:
        folders = ["--runtime-dir", str(self.folder / "run"), "--state-dir", str(self.folder / "lib")]
        return main(["--config", str(self.folder / "one.toml"), *folders, *arguments, "--connect", URI])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_without_libvirt_the_switch_is_turned_all_the_same_and_that_is_said(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert home.run("off") == ExitCode.UNREACHABLE
    assert "switched off, but no pass was possible yet" in capsys.readouterr().err
    assert home.switch.read() is not None
    assert home.run("on") == ExitCode.UNREACHABLE
    assert "switched on, but no pass was possible yet" in capsys.readouterr().err
    assert home.switch.read() is None


def agent_with(switch: Switch, uri: str = URI) -> Agent:
    """Build an agent that has no connection yet."""
    reporter, calls = Reporter(Notifier({})), BlockingCalls()
    return Agent(
        uri=uri,
        config=Config(),
        link=Link(calls, reporter.connect_failed),
        calls=calls,
        reporter=reporter,
        make_cycle=lambda *_: pytest.fail("there is no connection"),
        make_switch=lambda _uri, _config: switch,
        read_config=lambda: FreshConfig(config=Config()),
    )


@pytest.mark.parametrize("op", ["off", "on"])
def test_an_agent_without_libvirt_turns_the_switch_and_says_that_no_pass_was_possible(op: str) -> None:
    switch = FakeSwitch()
    if op == "on":
        switch.turn_off()
    answer = asyncio.run(agent_with(switch).handle({"op": op, "uri": URI}))
    assert (switch.read() is not None) is (op == "off")
    assert (answer["ok"], answer["exit_code"]) == (False, ExitCode.UNREACHABLE)
    assert str(answer["error"]).startswith(f"switched {op}, but no pass was possible yet")


def test_an_agent_turns_no_other_hosts_switch() -> None:
    switch = FakeSwitch()
    answer = asyncio.run(agent_with(switch).handle({"op": "off", "uri": "qemu+ssh://there/system"}))
    assert answer == {"ok": False, "other_uri": URI}
    assert switch.read() is None


def test_an_agent_that_does_not_know_yet_what_host_its_alias_means_turns_nothing() -> None:
    switch = FakeSwitch()
    answer = asyncio.run(agent_with(switch, "lab").handle({"op": "off", "uri": "lab"}))
    assert answer["exit_code"] == ExitCode.UNREACHABLE
    assert "switched" not in str(answer["error"])
    assert switch.read() is None


def test_an_agent_that_cannot_keep_the_switch_says_so(tmp_path: Path) -> None:
    (tmp_path / "lib").write_text("a file", encoding="utf-8")
    switch = SwitchFile(str(tmp_path / "lib" / "local.off"))
    answer = asyncio.run(agent_with(switch).handle({"op": "off", "uri": URI}))
    assert (answer["ok"], answer["exit_code"]) == (False, ExitCode.FAILED)
    assert "--state-dir" in str(answer["error"])


def test_a_host_that_is_switched_off_shows_no_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.write_text("1\n")
    monkeypatch.setattr("virtksm.cli.demo.KSM_RUN", run)
    SwitchFile(str(tmp_path / "local.off")).turn_off()
    code = main(["--state-dir", str(tmp_path), "demo", "--payload", str(run)])
    assert code == ExitCode.FAILED
    assert "virtksm is switched off on this host: a demonstration merges: `virtksm on` first" in capsys.readouterr().err
