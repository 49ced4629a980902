"""The systemd units, polkit rules and their kin in conf/: systemd's own verdict, and what must not get lost."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from virtksm.cli.main import build_parser
from virtksm.runtime import DEFAULT_RUNTIME_DIR, RuntimePaths

CONF = Path(__file__).parents[2] / "conf"
UNITS = sorted((CONF / "systemd").glob("*.service"))
AGENT = (CONF / "systemd" / "virtksm.service").read_text(encoding="utf-8")
SAFEST = {"virtksm.service": 1.0, "virtksm-ksm.service": 1.5, "virtksm-unmerge.service": 1.5}
"""The highest exposure that systemd may see in each; 0 is none, and 9.6 that of a unit without a line of hardening."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True)


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", text, flags=re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_every_unit_has_its_limit() -> None:
    assert [path.name for path in UNITS] == sorted(SAFEST)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_calls_the_unit_safe(unit: Path) -> None:
    verdict = analyze("security", "--offline=true", "--no-pager", unit)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", verdict.stdout)
    assert exposure is not None, verdict.stderr
    assert float(exposure[1]) <= SAFEST[unit.name], verdict.stdout


def test_with_the_drop_in_for_metrics_systemd_sees_the_network_alone(tmp_path: Path) -> None:
    with_drop_in = (
        tmp_path / "virtksm.service"
    )  # offline, systemd reads no drop-ins: what comes last holds all the same
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
    verified = with_drop_in.with_name("virtksm-verified.service")
    verified.write_text(
        with_drop_in.read_text(encoding="utf-8").replace("/usr/bin/virtksm", "/bin/true"), encoding="utf-8"
    )
    verdict = analyze("verify", "--man=no", verified)
    assert (verdict.returncode, verdict.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name  # the program is not installed where the tests run, and verify looks for it
    copy.write_text(unit.read_text(encoding="utf-8").replace("/usr/bin/virtksm", "/bin/true"), encoding="utf-8")
    verdict = analyze("verify", "--man=no", copy)
    assert (verdict.returncode, verdict.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_calls_commands_and_options_that_exist(unit: Path) -> None:
    for command in re.findall(r"^Exec\w+=/usr/bin/virtksm (.+)$", unit.read_text(encoding="utf-8"), flags=re.MULTILINE):
        name, *options = command.split()
        assert build_parser(name).parse_args([name, *options]).command == name


@pytest.mark.parametrize("spared", ["ProtectProc", "ProcSubset", "PrivateUsers"])
def test_what_would_cost_facts_is_left_out_and_says_why(spared: str) -> None:
    assert spared not in settings(AGENT)
    assert re.search(rf"^# Not {spared}=\w+: ", AGENT, flags=re.MULTILINE)


def test_the_agent_requires_no_libvirt_and_wants_none_that_conflicts_with_another() -> None:
    unit = settings(AGENT)
    assert not {"Requires", "Requisite", "BindsTo", "PartOf", "Wants", "Upholds"} & set(unit)
    after = " ".join(unit["After"]).split()
    assert {"libvirtd.service", "libvirtd.socket", "virtqemud.service", "virtqemud.socket"} <= set(after)


def test_the_folders_are_those_of_the_program() -> None:
    unit = settings(AGENT)
    assert [f"/run/{name}" for name in unit["RuntimeDirectory"]] == [RuntimePaths().agent_dir]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"], "a stopped agent's baseline is needed by `virtksm restore`"
    declared = (CONF / "tmpfiles.d" / "virtksm.conf").read_text(encoding="utf-8")
    made = {(line.split()[0], line.split()[1]) for line in declared.splitlines() if not line.startswith("#")}
    assert made == {("d", DEFAULT_RUNTIME_DIR), ("p", RuntimePaths().poke_fifo)}


def test_ksm_stays_off_while_virtksm_is_switched_off() -> None:
    switch_on = (CONF / "systemd" / "virtksm-ksm.service").read_text(encoding="utf-8")
    assert f"!{RuntimePaths().host_switch('local')}" in settings(switch_on)["ConditionPathExists"]


def test_the_agent_is_in_no_other_group() -> None:
    declared = (CONF / "sysusers.d" / "virtksm.conf").read_text(encoding="utf-8")
    assert [line[0] for line in declared.splitlines() if not line.startswith("#")] == ["u"]
    assert "SupplementaryGroups" not in settings(AGENT)


@pytest.mark.parametrize("name", ["50-virtksm.rules", "50-virtksm-fine-grained.rules"])
def test_polkit_rules_speak_of_the_agents_user_alone(name: str) -> None:
    rules = (CONF / "polkit" / name).read_text(encoding="utf-8")
    assert set(re.findall(r'subject\.user [!=]= "(\w+)"', rules)) == {"virtksm"}
    assert set(re.findall(r"subject\.(\w+)", rules)) == {"user"}
