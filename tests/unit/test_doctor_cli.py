"""`virtksm doctor` as people and programs see it: lines, colours, exit codes, JSON, other machines."""

import json
from pathlib import Path

import pytest

from tests.lab.healthy_host import AGENT, GUEST, HEALTHY, with_libvirt, with_numbers
from tests.lab.listening import listening
from virtksm.cli.doctor import ask_about, choose, counted, finding_rows
from virtksm.cli.layout import to_lines
from virtksm.cli.main import main
from virtksm.config.schema import Config
from virtksm.doctor.checks import CHECKS, examine
from virtksm.doctor.facts import Here, find_kept_off, read_facts
from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.libvirt import Guests, GuestSeen, LibvirtSeen, read_libvirt
from virtksm.doctor.reading.own import Status
from virtksm.errors import ExitCode
from virtksm.guests.xml import GuestXml
from virtksm.paths import RuntimePaths, host_key
from virtksm.store.switch import SwitchFile
from virtksm.values import replace

NOWHERE = "qemu:///system?socket=/nonexistent/socket"


def run(tmp_path: Path, *arguments: str) -> int:
    config = tmp_path / "virtksm.toml"
    config.touch()
    folders = ["--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "lib")]
    return main(["--config", str(config), *folders, "doctor", *arguments])


def test_a_finding_is_a_line_and_its_remedy_another_and_colour_marks_the_verdict_alone() -> None:
    findings = examine(with_numbers(run=0))
    failure, remedy, summary = to_lines(finding_rows(findings, shows_all=False))
    assert failure == "FAIL       kernel: KSM is switched on: run is 0: nothing merges"
    assert remedy == "           -> systemctl restart virtksm-ksm.service"
    assert summary == counted(findings)
    assert summary.endswith(" checks passed, 1 failure, 1 not judged")
    failure, remedy, _ = to_lines(finding_rows(findings, shows_all=False), colour=True)
    assert failure.startswith("\033[31mFAIL       \033[0mkernel")
    assert "\033" not in remedy
    assert len(to_lines(finding_rows(findings, shows_all=True))) == len(CHECKS) + 2
    assert to_lines(finding_rows(examine(HEALTHY), shows_all=False)) == [counted(examine(HEALTHY))]


def test_what_cannot_be_judged_for_one_reason_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--connect", "qemu+unix://nowhere.invalid/system?socket=/nonexistent/socket")
    lines = capsys.readouterr().out.splitlines()
    (elsewhere,) = [line for line in lines if "another machine" in line]
    assert elsewhere.startswith("INFO       ")
    assert elsewhere.endswith(" checks: another machine: run this command there")


def test_checks_are_chosen_by_name_or_group_and_a_word_that_means_none_is_told_with_one_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(None) == {check.name for check in CHECKS}
    assert choose(["swap", "kernel"]) == {"swap", *(check.name for check in CHECKS if check.group == "kernel")}
    for word, hint in (("kernl", "did you mean kernel?"), ("x\x1b", "did you mean one of guests, hook, ")):
        assert run(tmp_path, "--only", word) == ExitCode.USAGE
        assert hint in capsys.readouterr().err
    run(tmp_path, "--connect", NOWHERE, "--only", "libvirt_version", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["worst"], [one["check"] for one in told["findings"]]) == ("PASS", ["libvirt_version"])


def test_a_guests_name_cannot_forge_lines() -> None:
    bad = replace(GUEST, name="x\n kernel: fine : PASS\033[2J")
    guests = Guests(running=(GuestSeen(bad, GuestXml(is_shared=True)),))
    lines = to_lines(finding_rows(examine(with_libvirt(guests=guests)), shows_all=False))
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 3


def test_without_libvirt_it_still_answers_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--connect", NOWHERE, "--json") == ExitCode.FAILED
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["uri"], told["worst"]) == (1, NOWHERE, "FAIL")
    assert [one["check"] for one in told["findings"]] == [check.name for check in CHECKS]
    by_name = {one["check"]: one for one in told["findings"]}
    assert by_name["libvirt_reachable"]["verdict"] == "FAIL"
    assert by_name["libvirt_version"] == {
        "check": "libvirt_version",
        "group": "libvirt",
        "what": "new enough",
        "verdict": "INFO",
        "detail": "no connection to libvirt",
        "remedy": None,
    }
    assert all((one["remedy"] is None) == (one["verdict"] in ("PASS", "INFO")) for one in told["findings"])


def test_what_keeps_ksm_off_is_told_without_asking_libvirt(tmp_path: Path) -> None:
    code = run(tmp_path, "--connect", NOWHERE, "--kept-off")
    assert code == (ExitCode.DONE if find_kept_off(Here(Root(), "")) is None else ExitCode.FAILED)


@pytest.mark.parametrize("option", ["--json", "--all", "--only=boot", "--strict"])
def test_what_keeps_ksm_off_is_one_line_and_no_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(tmp_path, "--kept-off", option) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert (out, "--kept-off makes no checks" in err) == ("", True)


def test_it_makes_no_folder(tmp_path: Path) -> None:
    run(tmp_path, "--connect", NOWHERE)
    assert [path.name for path in tmp_path.iterdir()] == ["virtksm.toml"]


def test_a_faulty_configuration_is_a_finding_and_the_rest_is_still_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "virtksm.toml").write_text("policy = 1\n", encoding="ascii")
    assert run(tmp_path, "--connect", NOWHERE, "--all") == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "configuration" in out
    assert "policy: is 1, not a string" in out
    assert "built with KSM" in out


@pytest.mark.parametrize("uri", ["qemu+unix://nowhere.invalid/system?socket=/nonexistent/socket", "nowhere"])
def test_another_machine_and_an_unknown_alias_are_not_judged_by_this_ones_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    assert run(tmp_path, "--connect", uri, "--json") == ExitCode.FAILED
    findings = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["ksm_built"]["verdict"] == findings["swap"]["verdict"] == "INFO"
    assert findings["libvirt_reachable"]["verdict"] == "FAIL"


def test_a_driver_without_ksm_is_told_by_libvirts_own_test_driver() -> None:
    seen, _ = read_libvirt("test:///default", RuntimePaths(), Config())
    assert isinstance(seen, LibvirtSeen)
    assert seen.ksm is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b'{"ok": true, "status": {"uri": 1}}\n', "cannot be understood"),
        (b'{"ok": true, "status": []}\n', "cannot be understood"),
        (b'{"ok": false, "error": "no"}\n', "the agent answers: no"),
        (b"garbage\n", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_an_agent_that_talks_nonsense_is_unknown(paths: RuntimePaths, answer: bytes, why: str) -> None:
    with listening(Path(paths.control_socket), answer):
        seen = ask_about(paths)
    assert isinstance(seen, CannotTell)
    assert why in str(seen)


def test_this_machines_agent_and_switch_say_nothing_about_another(tmp_path: Path) -> None:
    away = "qemu+unix://nowhere.invalid/system?socket=/nonexistent/socket"
    paths, config = RuntimePaths(str(tmp_path / "run"), str(tmp_path / "lib")), tmp_path / "virtksm.toml"
    config.write_text('host = "local"', encoding="utf-8")
    SwitchFile(paths.host_switch("local")).turn_off()

    def own(uri: str, agent: Status = AGENT) -> tuple[bool, bool]:
        found = read_facts(uri, str(config), paths, agent)
        return found.known_agent is not None, found.paused is not None

    assert own(NOWHERE) == (True, True)
    assert own(away) == own("alias") == (False, False)
    assert own(away, {**AGENT, "uri": away}) == (True, False), "an agent here serves it"
    SwitchFile(paths.host_switch(host_key(away, local=False))).turn_off()
    assert own(away) == (False, True), "paused from here"
