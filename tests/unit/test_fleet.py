"""`virtksm fleet`: which hosts are meant, how they are asked at once, and what is told of them; without any daemon."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from manual.json_schema import json_schema
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from tests.lab.samples import NOW, a_pass, agent_facts
from tests.real.agent_process import VIRTKSM
from virtksm.cli.fleet import NOTES, judge, progress_text, result_of
from virtksm.cli.fleet.hosts import FleetHost, find_hosts, list_inventory, parse_hosts, parse_inventory
from virtksm.cli.fleet.processes import Answer
from virtksm.cli.fleet.table import COLUMNS, report_items
from virtksm.cli.layout import to_lines
from virtksm.cli.main import ACTIONS, main
from virtksm.errors import ConfigError, ExitCode, VirtksmError
from virtksm.json_output import to_output
from virtksm.model.current import after_pass

PROJECT = Path(__file__).parents[2]
INVENTORY = {
    "_meta": {
        "hostvars": {
            "far": {"virtksm_uri": "qemu+tls://far/system", "ansible_host": "10.0.0.1"},
            "here": {"ansible_connection": "local"},
            "v6": {"ansible_host": "fe80::1", "ansible_port": 2222},
            "web1": {"ansible_user": "root", "ansible_host": "10.0.0.7"},
        }
    },
    "all": {"children": ["ungrouped", "compute", "other"]},
    "compute": {"children": ["gpu"], "hosts": ["web1", "v6"]},
    "gpu": {"hosts": ["gpu1", "web1"]},
    "other": {"hosts": ["far", "here"]},
}
"""As ansible-inventory 2.19 lists one."""


def uris(hosts: Sequence[FleetHost]) -> list[str]:
    return [one.uri for one in hosts]


def test_a_file_has_a_host_a_line_by_its_name_or_by_a_uri() -> None:
    text = "# all\nweb1\n\n  root@web-2.site:22  # new\n[fe80::1]\nqemu+tls://web3/system?pkipath=/x#y\n"
    assert parse_hosts(text, "hosts.txt") == [
        FleetHost(name="web1", uri="qemu+ssh://web1/system"),
        FleetHost(name="root@web-2.site:22", uri="qemu+ssh://root@web-2.site:22/system"),
        FleetHost(name="[fe80::1]", uri="qemu+ssh://[fe80::1]/system"),
        FleetHost(name="qemu+tls://web3/system?pkipath=/x#y", uri="qemu+tls://web3/system?pkipath=/x#y"),
    ]


def test_every_line_that_names_no_host_is_a_fault_of_its_own() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_hosts("web1\ntwo words\nfe80::1\n-oProxyCommand=x\nweb\x1b[2J\nqemu:///\x07\n:22\n", "hosts.txt")
    assert [fault.message for fault in raised.value.faults] == [
        f"hosts.txt: line {number}: {told} is neither the name of a host nor a libvirt URI"
        for number, told in [
            (2, "'two words'"),
            (3, "'fe80::1'"),
            (4, "'-oProxyCommand=x'"),
            (5, r"'web\\x1b[2J'"),
            (6, r"'qemu:///\\x07'"),
            (7, "':22'"),
        ]
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file"), (b"\xff\n", "cannot be read: 'utf-8'"), (b"# none\n", "has no hosts")],
)
def test_a_file_without_hosts_is_an_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "hosts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        find_hosts([], str(file), None, None)


def test_hosts_stay_in_their_order_and_are_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "hosts.txt"
    file.write_text("b\na\nqemu+ssh://b/system\nc\n", encoding="utf-8")
    found = find_hosts(["qemu+ssh://c/system", "alias"], str(file), None, None)
    assert uris(found) == ["qemu+ssh://c/system", "alias", "qemu+ssh://b/system", "qemu+ssh://a/system"]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, ["root@10.0.0.7", "[fe80::1]:2222", "gpu1", "qemu+tls://far/system", "qemu:///system"]),
        ("compute", ["root@10.0.0.7", "[fe80::1]:2222", "gpu1"]),
        ("gpu", ["gpu1", "root@10.0.0.7"]),
        ("v6", ["[fe80::1]:2222"]),
    ],
)
def test_an_inventory_has_groups_of_hosts_with_their_addresses(limit: str | None, expected: list[str]) -> None:
    found = parse_inventory(json.dumps(INVENTORY), "site.yml", limit)
    assert uris(found) == [one if "://" in one else f"qemu+ssh://{one}/system" for one in expected]


def test_what_an_inventory_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"site\.yml: none: no group or host has this name"):
        parse_inventory(json.dumps(INVENTORY), "site.yml", "none")
    with pytest.raises(ConfigError, match=r"site\.yml: has no hosts"):
        parse_inventory('{"_meta": {"hostvars": {}}, "all": {"children": ["ungrouped"]}}', "site.yml")
    unknown = INVENTORY | {"_meta": {"hostvars": {"gpu1": {"ansible_host": "{{ x }}"}}}}
    with pytest.raises(ConfigError, match=r"site.yml: gpu1: '\{\{ x \}\}' is neither .* resolves no templates: give"):
        parse_inventory(json.dumps(unknown), "site.yml", "gpu")
    with pytest.raises(ConfigError, match=r"site\.yml: ansible-inventory prints no JSON: "):
        parse_inventory("Warning\n{}", "site.yml")


def test_ansible_reads_its_inventory_itself(tmp_path: Path) -> None:
    program = tmp_path / "ansible-inventory"
    with pytest.raises(VirtksmError, match="which is not installed: install ansible-core"):
        list_inventory("site.yml", str(program))
    program.write_text('#!/bin/sh\n[ "$1" = --inventory=site.yml ] || { echo no >&2; exit 4; }\necho "$2"\n')
    program.chmod(0o755)
    assert list_inventory("site.yml", str(program)) == "--list\n"
    with pytest.raises(VirtksmError, match=r"other\.yml: ansible-inventory refuses it: no: .*--list"):
        list_inventory("other.yml", str(program))


PROGRAM = """
import json, os, resource, signal, subprocess, sys, time
from virtksm.cli.fleet.hosts import FleetHost
from virtksm.cli.fleet.processes import ask_all

def ask(host):
    print("asked", host.name)
    match host.name.partition("-")[0]:
        case "hangs":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "3600"])
            open(host.uri, "w").write(f"{os.getpid()} {child.pid}\\n")
            child.wait()
        case "leaves":
            open(host.uri, "w").write(f"{subprocess.Popen(['sleep', '3600']).pid}\\n")
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raises":
            raise ValueError("odd")
        case "talks":
            print("x" * 1_000_000)
        case "asks":
            print(repr(input()))
        case "prompts":
            open("/dev/tty")
    print("a warning", file=sys.stderr)
    return 4

def notice(done, asked):
    assert len(asked) <= jobs, asked
    if len(done) == ends_after:
        while not all(os.path.exists(host.uri) and os.path.getsize(host.uri) for host in asked):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

names, jobs, limit_s, ends_after, ignores, files = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else signal.SIG_DFL)
hosts = [FleetHost(name=name, uri=os.path.join(sys.argv[2], name)) for name in names]
answers, ended_by = ask_all(hosts, ask, jobs=jobs, limit_s=limit_s, notice=notice)
told = {host.name: (one.exit_code, one.printed[-20:], one.said) for host, one in answers.items()}
print(json.dumps([told, ended_by]), flush=True)
os._exit(0)
"""


def asked(
    folder: Path,
    *names: str,
    jobs: int = 4,
    limit_s: float = HANG_S,
    ends_after: int = -1,
    ignores: bool = False,
    files: int = 100,
) -> tuple[dict[str, tuple[int, str, str]], int]:
    """Return the answers of these hosts, and the signal by which the program has ended, in a process of its own.

    It sends itself SIGTERM after so many answers, which it may ignore, and may open so many files.
    """
    given = json.dumps([names, jobs, limit_s, ends_after, ignores, files])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given, str(folder)],
        cwd=PROJECT, capture_output=True, text=True, timeout=HANG_S, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    answers, ended_by = json.loads(done.stdout)
    return {name: tuple(one) for name, one in answers.items()}, ended_by


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; nobody may have buried it."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_gone(*files: Path) -> bool:
    return all(is_gone(int(pid)) for file in files for pid in file.read_text(encoding="ascii").split())


def test_each_host_is_asked_in_a_process_of_its_own_and_none_hides_another(tmp_path: Path) -> None:
    names = ("well", "crashes", "raises", "talks", "asks", "prompts", "leaves")
    answers, ended_by = asked(tmp_path, *names)
    fault = "\nhint: report this fault of virtksm\n"
    assert answers == {
        "well": (4, "asked well\n", "a warning\n"),
        "crashes": (1, "", "virtksm: error: its process died (exit code -11)"),
        "raises": (1, "asked raises\n", f"virtksm: error: ValueError: odd{fault}"),
        "talks": (4, "x" * 19 + "\n", "a warning\n"),
        "asks": (1, "asked asks\n", f"virtksm: error: EOFError: EOF when reading a line{fault}"),
        "prompts": (
            1,
            "asked prompts\n",
            f"virtksm: error: OSError: [Errno 6] No such device or address: '/dev/tty'{fault}",
        ),
        "leaves": (4, "asked leaves\n", "a warning\n"),
    }
    assert ended_by == 0
    wait_until(lambda: all_gone(tmp_path / "leaves"), HANG_S, "what was started to end with its process")


def test_one_that_hangs_keeps_its_place_alone_and_ends_with_the_program(tmp_path: Path) -> None:
    answers, ended_by = asked(tmp_path, "hangs", "a", "b", "c", jobs=2, ends_after=3)
    assert (sorted(answers), ended_by) == (["a", "b", "c"], 15)
    wait_until(lambda: all_gone(tmp_path / "hangs"), HANG_S, "all that was started to end")


def test_one_over_the_limit_is_ended(tmp_path: Path) -> None:
    answers, ended_by = asked(tmp_path, "hangs-1", "hangs-2", "hangs-3", jobs=2, limit_s=0.5)
    late = (3, "", "virtksm: error: no answer within 0.5 s\nhint: a longer --timeout")
    assert answers == dict.fromkeys(("hangs-1", "hangs-2", "hangs-3"), late)
    assert ended_by == 0
    written = [file for file in tmp_path.iterdir() if file.read_text(encoding="ascii")]
    wait_until(lambda: all_gone(*written), HANG_S, "all that was started to end")


def test_what_may_not_be_started_at_once_is_asked_one_after_the_other(tmp_path: Path) -> None:
    names = [f"well-{number}" for number in range(12)]
    answers, _ = asked(tmp_path, *names, jobs=12, files=24)
    assert sorted(answers) == sorted(names)
    with pytest.raises(subprocess.CalledProcessError):
        asked(tmp_path, *names, jobs=12, files=10)


def test_a_signal_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    answers, ended_by = asked(tmp_path, "leaves-1", "leaves-2", jobs=1, ends_after=1, ignores=True)
    assert (sorted(answers), ended_by) == (["leaves-1", "leaves-2"], 0)


def status(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """Return what `virtksm status --json` prints."""
    extra = {"agent": False, "ksmd": {"cpu_seconds": None, "core_percent": None, "over_s": None}}
    told: dict[str, Any] = to_output({**agent_facts(current=after_pass(a_pass())).as_dict(NOW), **extra})
    told["now"] |= {"origin": "libvirt", "ksm_run": None}
    return {**told, **changes}


def result(name: str, code: int, printed: object = None, said: str = "", action: str = "status") -> dict[str, Any]:
    answer = Answer(exit_code=code, printed="" if printed is None else json.dumps(printed), said=said, took_s=0.5)
    return result_of(action, FleetHost(name=name, uri=f"qemu+ssh://{name}/system"), answer)


def told(action: str, *results: dict[str, Any]) -> list[str]:
    report = {"action": action, "hosts": results, "notes": [NOTES[action]]}
    return to_lines(report_items(report))


def test_a_hosts_error_its_remedy_and_warnings_are_what_the_command_says() -> None:
    said = (
        "virtksm: warning: w\nvirtksm: error: qemu+ssh://a/system: cannot be reached (x: y)\nhint: ssh a\nTraceback\n"
    )
    assert result("a", 3, said=said) == {
        "host": "a",
        "uri": "qemu+ssh://a/system",
        "exit_code": 3,
        "answer": None,
        "error": "cannot be reached (x: y)",
        "remedy": "ssh a",
        "warnings": ["w"],
        "took_s": 0.5,
    }


def test_a_status_is_well_where_libvirt_answers_whoever_serves_the_host() -> None:
    silent = status(libvirt={**status()["libvirt"], "answers": False, "error": "off"})
    assert [judge("status", 1, values) for values in (status(), silent)] == [ExitCode.DONE, ExitCode.UNREACHABLE]
    assert judge("status", 3, None) == 3
    assert judge("doctor", 1, {}) == 1


def test_progress_counts_what_failed_by_the_same_exit_codes() -> None:
    results = [result("a", 1, status()), result("b", 3, said="virtksm: error: off")]
    assert progress_text(results, [FleetHost(name="c", uri="x")], 3) == "2 of 3 done, 1 failed; waiting for c"


def test_the_table_has_the_hosts_in_their_order_and_what_is_wrong_beside_them() -> None:
    lines = told(
        "status",
        result("b", 1, status()),
        result("a", 3, said="virtksm: error: no answer within 5 s\nhint: see\n"),
        result("c", 1, status(paused=True)),
    )
    assert lines == [
        "HOST  KSM               GUESTS  RESIDENT           SAVED  NOTE",
        "b     scanning               1   1.0 MiB  0.5 MiB (48 %)",
        "a     -                      -         -               -  no answer within 5 s -> see",
        "c     paused, scanning       1   1.0 MiB  0.5 MiB (48 %)",
        "",
        "Hosts      2 of 3 ok",
        "Failed     a",
        f"Note       {NOTES['status']}",
    ]


def test_this_machine_tells_more() -> None:
    here = status(ksmd={"cpu_seconds": 9.0, "core_percent": 1.25, "over_s": 60.0})
    here["now"] |= {"origin": "local", "ksm_run": 0}
    idle, advised, bare = status(), status(agent=True), status(now=None)
    idle["now"]["settings"]["pages_to_scan"] = 0
    advised["now"] |= {"origin": "local", "advisor_mode": "scan-time", "saved_percent": None}
    rows = [result(name, 1, one) for name, one in (("a", here), ("b", idle), ("c", advised), ("d", bare))]
    assert told("status", *rows)[:5] == [
        "HOST  KSM      GUESTS  RESIDENT           SAVED   KSMD  NOTE",
        "a     off           1   1.0 MiB  0.5 MiB (48 %)  1.2 %  no agent",
        "b     idle          1   1.0 MiB  0.5 MiB (48 %)      -",
        "c     advisor       1   1.0 MiB         0.5 MiB      -",
        "d     -             -         -               -      -",
    ]


@pytest.mark.parametrize("action", ["retune", "pause", "resume"])
def test_passes_have_their_outcome_and_reason(action: str) -> None:
    report = to_output(a_pass().as_dict(with_thresholds=True))
    refused = {**report, "outcome": "refused", "refused": [{"message": "no: do"}], "warnings": ["w"]}
    printed = [one if action == "retune" else {"pass": one} for one in (report, refused)]
    rows = [result(name, 0, one, action=action) for name, one in zip("ab", printed, strict=True)]
    assert told(action, *rows)[:5] == [
        "HOST  OUTCOME            GUESTS    SAVED  REASON",
        f"a     applied, scanning       1  0.5 MiB  {report['decision']['reason']}",
        f"b     refused, scanning       1  0.5 MiB  {report['decision']['reason']}",
        "b                                         no: do",
        "b                                         w",
    ]


def test_doctors_findings_are_lines_beside_their_host() -> None:
    finding = {"group": "kernel", "what": "numa", "detail": "two", "remedy": "set it"}
    findings = [{**finding, "verdict": verdict} for verdict in ("PASS", "WARN", "FAIL")]
    rows = [
        result("a", 1, {"worst": "FAIL", "findings": findings}, action="doctor"),
        result("b", 0, {"worst": "PASS", "findings": findings[:1]}, action="doctor"),
    ]
    assert told("doctor", *rows) == [
        "HOST  WORST  FINDING",
        "a     FAIL   kernel: numa: two -> set it",
        "a            kernel: numa: two -> set it",
        "b     PASS",
        "",
        "Hosts      1 of 2 ok",
        "Failed     a",
        f"Note       {NOTES['doctor']}",
    ]


def test_many_that_failed_are_some_names_and_a_number() -> None:
    lines = told("status", *(result(f"n{number}", 3, said="virtksm: error: off") for number in range(12)))
    assert "Failed     n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 and 2 more" in lines
    assert set(NOTES) == set(COLUMNS) == set(ACTIONS["fleet"])


class Home:
    """Folders of its own, and a file of hosts: one far away that nothing leads to, and one that never answers."""

    def __init__(self, folder: Path) -> None:
        self.hangs = folder / "hangs"
        self.hangs.write_text('#!/bin/sh\necho $$ >"$0.pid"\nexec sleep 3600\n', encoding="utf-8")
        self.hangs.chmod(0o755)
        self.config = folder / "virtksm.toml"
        self.config.write_text("", encoding="utf-8")
        self.dead = f"qemu+ext:///system?command={folder}/none"
        self.hosts = folder / "hosts.txt"
        self.hosts.write_text(f"{self.dead}\n", encoding="utf-8")
        (folder / "lib").mkdir()
        folders = ["--runtime-dir", f"{folder}/run", "--state-dir", f"{folder}/lib"]
        self.options = ["--config", str(self.config), *folders, "--hosts", str(self.hosts)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize(("action", "code"), [("status", 3), ("retune", 3), ("pause", 3), ("resume", 3), ("doctor", 1)])
def test_hosts_that_cannot_be_reached_are_named_and_the_highest_exit_code_is_the_commands(
    home: Home, action: str, code: int
) -> None:
    here = "qemu:///system?socket=/nonexistent"
    command = [VIRTKSM, "fleet", action, *home.options, "-c", here, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    printed = json.loads(done.stdout)
    schema = {**json.loads(json_schema()), "$ref": f"#/$defs/virtksm fleet {action}"}
    assert [error.message for error in Draft202012Validator(schema).iter_errors(printed)] == []
    assert [(one["host"], one["exit_code"]) for one in printed["hosts"]] == [(here, code), (home.dead, code)]
    assert printed["notes"] == [NOTES[action]]
    if action == "doctor":
        return
    far = printed["hosts"][1]
    assert "the host cannot be reached" in far["error"]
    assert not far["error"].startswith("qemu"), "the host is named already"
    assert "systemctl status" in far["remedy"]


def test_a_terminal_sees_for_whom_it_waits_and_ctrl_c_ends_that(home: Home) -> None:
    home.hosts.write_text(f"{home.dead}\nqemu+ext:///system?command={home.hangs}\n", encoding="utf-8")
    terminal = PseudoTerminal([VIRTKSM, "fleet", "retune", *home.options], columns=200)
    try:
        wait_until(
            lambda: f"1 of 2 done, 1 failed; waiting for qemu+ext:///system?command={home.hangs}" in terminal.said,
            HANG_S, "the line of progress",
        )  # fmt: skip
        wait_until(lambda: home.hangs.with_suffix(".pid").exists(), HANG_S, "the host that hangs to be asked")
        terminal.type(b"\x03")
        assert terminal.wait_ended() == 130
        _, _, table = terminal.said.partition("HOST ")
        assert "the host cannot be reached" in table
        assert "interrupted" in table
        assert "Hosts      0 of 2 ok" in table
    finally:
        terminal.close()
    wait_until(lambda: all_gone(home.hangs.with_suffix(".pid")), HANG_S, "what libvirt has started to end")


SSH = """#!/bin/sh
# Asks for a password where OpenSSH does: in the terminal, else in a window, else it tries an empty one.
case " $* " in
    *BatchMode=yes*" web "*) asks=nobody ;;
    *)
        if (: </dev/tty) 2>/dev/null; then
            asks=terminal
            echo "password: " >/dev/tty
        elif [ -n "${DISPLAY-}" ]; then
            asks=window
        else
            asks=tries
        fi
        ;;
esac
while [ "$1" != -- ]; do shift; done
echo "$asks" >"$0.$2"
head -c 1 >/dev/null  # of libvirt's first call: what ssh says is told of a call that gets no answer
echo "$2: Permission denied (publickey,password)." >&2
exit 255
"""
"""A host jump is as one behind another ssh, which is not told of BatchMode."""


def asks(folder: Path, *words: str) -> tuple[int, str, dict[str, str]]:
    """Run virtksm in a terminal, under a desktop; return its exit code, what was shown, and whom ssh asked, by host."""
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH, encoding="ascii")
    ssh.chmod(0o755)
    desktop = {"DISPLAY": ":0", "WAYLAND_DISPLAY": "w", "SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force"}
    environ = {**desktop, "PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    terminal = PseudoTerminal([VIRTKSM, *words], columns=250, environ=environ)
    try:
        code = terminal.wait_ended()
        asked = {file.suffix[1:]: file.read_text(encoding="ascii").strip() for file in ssh.parent.glob("ssh.*")}
        return code, terminal.said, asked
    finally:
        terminal.close()


@pytest.mark.parametrize("action", ["status", "retune"])
def test_a_host_whose_ssh_would_ask_is_named_with_a_remedy_and_asks_nobody(home: Home, action: str) -> None:
    home.hosts.write_text("web\njump\n", encoding="utf-8")
    code, said, asked = asks(home.config.parent, "fleet", action, *home.options)
    assert (code, asked) == (3, {"web": "nobody", "jump": "tries"})
    assert "password: " not in said
    for host in ("web", "jump"):
        assert f"-> ssh-copy-id {host}; for a key with a passphrase: ssh-add" in said


def test_an_inventory_that_would_ask_or_is_broken_is_refused_with_what_ansible_says(home: Home) -> None:
    program = home.config.parent / "ansible-inventory"
    asking = '(echo "Vault password: " >/dev/tty) 2>/dev/null'
    saying = 'printf "[WARNING]: w\\n[ERROR]: no secrets\\n" >&2'
    program.write_text(f"#!/bin/sh\n{asking}\n{saying}\nexit 4\n", encoding="ascii")
    program.chmod(0o755)
    environ = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = [VIRTKSM, "fleet", "status", *home.options[:-2], "--inventory", "site.yml"]
    terminal = PseudoTerminal(command, columns=250, environ=environ)
    try:
        assert terminal.wait_ended() == ExitCode.FAILED
        assert (
            "site.yml: ansible-inventory refuses it: [ERROR]: no secrets\r\nhint: ansible-inventory " in terminal.said
        )
        assert "password" not in terminal.said
    finally:
        terminal.close()


def test_one_host_may_ask_the_terminal(home: Home) -> None:
    code, said, asked = asks(home.config.parent, "retune", *home.options[:-2], "-c", "qemu+ssh://web/system")
    assert (code, asked) == (3, {"web": "terminal"})
    assert "password: " in said


@pytest.mark.parametrize(
    ("configured", "options", "said"),
    [
        ("", [], "no hosts are named\nhint: -c URI (may be repeated), --hosts FILE or --inventory FILE"),
        ("call_timeout_s = 0", ["-c", "a:b"], "virtksm.toml: call_timeout_s: "),
        ("", ["-c", "a:b", "--limit", "web"], "--limit is a part of an inventory\nhint: name it: --inventory FILE"),
        ("", ["-c", "a:b", "--jobs", "0"], "argument --jobs: '0' is no number from 1 to 256"),
        ("", ["-c", "a:b", "--timeout", "0"], "argument --timeout: '0' is no time from 1 s to 1 d"),
    ],
)
def test_what_no_host_can_be_asked_with_ends_it_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], configured: str, options: list[str], said: str
) -> None:
    config = tmp_path / "virtksm.toml"
    config.write_text(configured, encoding="utf-8")
    assert main(["fleet", "retune", "--config", str(config), *options]) == ExitCode.USAGE
    assert said in capsys.readouterr().err
