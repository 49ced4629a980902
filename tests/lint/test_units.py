"""The systemd units, polkit rules and their kin in conf/: systemd's own verdict, and what must not get lost."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from virtksm.cli.main import parse
from virtksm.cli.unmerge import ALLOWANCE
from virtksm.paths import DEFAULT_RUNTIME_DIR, RuntimePaths

CONF = Path(__file__).parents[2] / "conf"
UNITS = sorted((CONF / "systemd").glob("*.service"))
ALL_UNITS = [*UNITS, CONF / "systemd" / "virtksm-retune.socket"]
AGENT = (CONF / "systemd" / "virtksm.service").read_text(encoding="utf-8")
SAFEST = {
    "virtksm.service": 1.0,
    "virtksm-after-ksmtuned.service": 1.0,
    "virtksm-ksm.service": 1.5,
    "virtksm-retune.service": 1.0,
    "virtksm-unmerge.service": 1.5,
}
"""The highest exposure that systemd may see in each; 0 is none, and 9.6 that of a unit without a line of hardening."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True)


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", text, flags=re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_systemd_calls_every_unit_safe() -> None:
    assert [path.name for path in UNITS] == sorted(SAFEST)
    for unit in UNITS:
        verdict = analyze("security", "--offline=true", "--no-pager", unit)
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", verdict.stdout)
        assert exposure is not None, verdict.stderr
        assert float(exposure[1]) <= SAFEST[unit.name], verdict.stdout


def test_with_the_drop_in_for_metrics_systemd_sees_the_network_alone(tmp_path: Path) -> None:
    with_drop_in = tmp_path / "virtksm.service"  # offline, systemd reads no drop-ins: what comes last holds
    with_drop_in.write_text(f"{AGENT}\n{(CONF / 'prometheus' / 'listen.conf').read_text(encoding='utf-8')}")
    opened = {"PrivateNetwork=", "RestrictAddressFamilies=~AF_(INET|INET6)", "IPAddressDeny="}
    bare, wide = (
        {
            line.split()[1]
            for line in analyze("security", "--offline=true", "--no-pager", unit).stdout.splitlines()
            if line.startswith("✗")
        }
        for unit in (CONF / "systemd" / "virtksm.service", with_drop_in)
    )
    assert wide - bare == opened


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    copies = [tmp_path / unit.name for unit in ALL_UNITS]
    for unit, copy in zip(ALL_UNITS, copies, strict=True):  # the program that verify looks for is not installed here
        copy.write_text(unit.read_text(encoding="utf-8").replace("/usr/bin/virtksm", "/bin/true"), encoding="utf-8")
    verdict = analyze("verify", "--man=no", *copies)
    assert (verdict.returncode, verdict.stderr) == (0, "")


def test_a_unit_calls_commands_and_options_that_exist() -> None:
    texts = "".join(unit.read_text(encoding="utf-8") for unit in ALL_UNITS)
    for command in re.findall(r"^Exec\w+=.*/usr/bin/virtksm ([^'\n]+)", texts, flags=re.MULTILINE):
        assert callable(parse(command.split()).run)


def test_the_agent_requires_no_libvirt_and_wants_none_that_conflicts_with_another() -> None:
    unit = settings(AGENT)
    assert not {"Requires", "Requisite", "BindsTo", "PartOf", "Upholds"} & set(unit)
    assert unit["Wants"] == ["virtksm-after-ksmtuned.service"]
    after = " ".join(unit["After"]).split()
    assert {"libvirtd.service", "libvirtd.socket", "virtqemud.service", "virtqemud.socket"} <= set(after)


def test_the_folders_are_those_of_the_program() -> None:
    unit = settings(AGENT)
    assert [f"/run/{name}" for name in unit["RuntimeDirectory"]] == [RuntimePaths().agent_dir]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"], "a stopped agent's baseline is needed by `virtksm restore`"
    declared = (CONF / "tmpfiles.d" / "virtksm.conf").read_text(encoding="utf-8")
    made = {(line.split()[0], line.split()[1]) for line in declared.splitlines() if not line.startswith("#")}
    assert made == {("d", DEFAULT_RUNTIME_DIR), ("p", RuntimePaths().poke_fifo)}


def test_unmerging_asks_whether_it_fits_but_for_the_commands_allowance() -> None:
    text = (CONF / "systemd" / "virtksm-unmerge.service").read_text(encoding="utf-8")
    assert f"sh -c 'rm {ALLOWANCE} 2>/dev/null || exec /usr/bin/virtksm unmerge --check'" in text


def test_ksm_stays_off_while_virtksm_is_paused() -> None:
    switch_on = (CONF / "systemd" / "virtksm-ksm.service").read_text(encoding="utf-8")
    assert f"!{RuntimePaths().host_switch('local')}" in settings(switch_on)["ConditionPathExists"]


class SwitchUnit:
    """The commands of virtksm-ksm.service, on folders and a ksmd of the test's own."""

    def __init__(self, folder: Path, ksmd: int = 0) -> None:
        self.ksm, self.kept, children = folder / "ksm", folder / "run", folder / "children"
        self.ksm.mkdir()
        self.kept.mkdir()
        children.write_text(f"{os.getpid()} {ksmd} ", encoding="ascii")
        for name in ("run", "use_zero_pages"):
            (self.ksm / name).write_text("0\n", encoding="ascii")
        text = (CONF / "systemd" / "virtksm-ksm.service").read_text(encoding="utf-8")
        text = text.replace("\\\n", "").replace("$$", "$").replace("/sys/kernel/mm/ksm", str(self.ksm))
        self.text = text.replace("/run/virtksm", str(self.kept)).replace("/proc/2/task/2/children", str(children))

    def runs(self, kind: str, **environment: str) -> str:
        """Run the commands of this kind, each; return what they say of what went wrong."""
        told, given = "", {"USE_ZERO_PAGES": "keep", "KSMD_CPUS": "keep", **environment}
        for command in re.findall(rf"^Exec{kind}=-?(/bin/.+)$", self.text, flags=re.MULTILINE):
            done = subprocess.run(shlex.split(command), check=False, env=given, capture_output=True, text=True)
            assert bool(done.stderr) == bool(done.returncode), done
            told += done.stderr
        return told

    def stops(self) -> None:
        assert (self.runs("StopPost"), [*self.kept.iterdir()]) == ("", [])

    def numbers(self) -> tuple[str, str]:
        return (self.ksm / "run").read_text().strip(), (self.ksm / "use_zero_pages").read_text().strip()


STARTS = "(?:StartPre|Start)"


def test_ksm_s_switch_and_use_zero_pages_are_put_back_as_they_were_found(tmp_path: Path) -> None:
    unit = SwitchUnit(tmp_path)
    for found in ("0", "0"), ("0", "1"), ("1", "0"):
        for name, value in zip(("run", "use_zero_pages"), found, strict=True):
            (unit.ksm / name).write_text(f"{value}\n", encoding="ascii")
        for asked, done, error in (
            ("keep", found[1], ""),
            ("1", "1", ""),
            ("0", "0", ""),
            ("on", found[1], "USE_ZERO_PAGES is none of 0, 1 and keep: on (systemctl edit virtksm-ksm)\n"),
        ):
            for _ in range(2):
                assert unit.runs(STARTS, USE_ZERO_PAGES=asked) == error
                assert unit.numbers() == ("1", done), "also twice: what was found first counts"
            unit.stops()
            assert unit.numbers() == found
    unit.stops()
    assert unit.numbers() == found, "what did not start changes nothing"


def test_ksmd_keeps_to_the_cpus_told_and_gets_back_those_it_had(tmp_path: Path) -> None:
    """On a process that is called ksmd, with the real taskset."""
    shutil.copy("/bin/sleep", tmp_path / "ksmd")
    with subprocess.Popen([tmp_path / "ksmd", "600"]) as ksmd:
        try:
            unit, found = SwitchUnit(tmp_path, ksmd.pid), os.sched_getaffinity(ksmd.pid)
            last = max(found)
            for _ in range(2):
                assert unit.runs(STARTS, KSMD_CPUS=str(last)) == ""
                assert os.sched_getaffinity(ksmd.pid) == {last}
            unit.stops()
            assert os.sched_getaffinity(ksmd.pid) == found
            for wrong in ("all", str(os.sysconf("SC_NPROCESSORS_CONF") + 1000)):
                said = unit.runs(STARTS, KSMD_CPUS=wrong)
                assert said.endswith(
                    f"KSMD_CPUS is no list of CPUs of this host: {wrong} (systemctl edit virtksm-ksm)\n"
                )
                assert os.sched_getaffinity(ksmd.pid) == found
        finally:
            ksmd.terminate()


def test_a_host_that_shows_no_ksmd_is_told_so(tmp_path: Path) -> None:
    unit = SwitchUnit(tmp_path)
    assert unit.runs(STARTS) == "", "nothing is asked of it"
    assert unit.runs(STARTS, KSMD_CPUS="0") == "KSMD_CPUS is set, and ksmd is not seen here\n"
    unit.stops()


@pytest.mark.parametrize("unit", ["virtksm-after-ksmtuned.service", "virtksm-retune.service"])
def test_what_acts_in_the_agents_place_has_its_folders_and_no_more_rights(unit: str) -> None:
    own, agents = settings((CONF / "systemd" / unit).read_text(encoding="utf-8")), settings(AGENT)
    assert set(own.pop("SystemCallFilter")) < set(agents.pop("SystemCallFilter"))
    differs = {name for name in {*own, *agents} if own.get(name) != agents.get(name)}
    assert differs <= {
        *("Description", "Documentation", "After", "Before", "Conflicts", "Wants", "WantedBy", "ConditionPathExists"),
        *("Type", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStopPost"),
        *("StartLimitIntervalSec", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec"),
        *("Restart", "RestartSec", "RestartPreventExitStatus", "OOMScoreAdjust", "Environment"),
    }


def test_the_agent_and_the_socket_that_stands_for_it_stop_each_other() -> None:
    socket = settings((CONF / "systemd" / "virtksm-retune.socket").read_text(encoding="utf-8"))
    assert socket["ListenFIFO"] == [RuntimePaths().poke_fifo]
    assert "virtksm.service" in " ".join(socket["Conflicts"]).split()
    assert {"virtksm-retune.socket", "ksmtuned.service"} <= set(" ".join(settings(AGENT)["Conflicts"]).split())
    assert "virtksm-retune.socket" in " ".join(settings(AGENT)["After"]).split(), "or the two stop and start at once"
