"""What is declared once must be true everywhere: the pins fit pyproject.toml, packages take all, the program starts."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

from virtksm import __version__

PROJECT = Path(__file__).parents[2]
PIN_FILES = sorted((PROJECT / "requirements").glob("*.txt"))
PACKAGING = PROJECT / "packaging"
SPEC = (PACKAGING / "rpm" / "virtksm.spec").read_text(encoding="utf-8")
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def parse_pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, flags=re.MULTILINE))


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]


def test_pins_are_hashed_and_name_no_index_folder_or_address() -> None:
    names = ["ansible.txt", "build.txt", "dev.txt", "kubernetes.txt", "lock.txt", "run.txt"]
    assert [path.name for path in PIN_FILES] == names
    one = r"(?:[a-z0-9-]+==[\w.]+( \\\n +--hash=sha256:[0-9a-f]{64})+\n|[ ]*#.*\n|\n)+"
    assert [path.name for path in PIN_FILES if not re.fullmatch(one, path.read_text())] == []


def test_what_pyproject_asks_for_is_pinned() -> None:
    pins = {path.name: parse_pins(path.read_text()) for path in PIN_FILES}
    run = {name_of(requirement) for requirement in DECLARED["project"]["dependencies"]}
    extras = {name_of(one) for extra in DECLARED["project"]["optional-dependencies"].values() for one in extra}
    groups = DECLARED["dependency-groups"]

    assert run == set(pins["run.txt"])
    assert run | extras | {name_of(requirement) for requirement in groups["dev"]} <= set(pins["dev.txt"])
    assert {name_of(requirement) for requirement in groups["build"]} == set(pins["build.txt"])
    assert {name_of(requirement) for requirement in groups["kubernetes"]} <= set(pins["kubernetes.txt"])


def test_what_is_tested_is_what_runs() -> None:
    run, dev = (parse_pins((PROJECT / f"requirements/{name}.txt").read_text()) for name in ("run", "dev"))

    assert {name: dev[name] for name in run} == run
    assert {name: metadata.version(name) for name in run} == run


def test_the_installed_program_is_this_tree() -> None:
    program = Path(sysconfig.get_path("scripts")) / "virtksm"
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd="/")

    assert run.stdout.split() == ["virtksm", __version__]
    assert metadata.version("virtksm") == __version__
    site_packages = Path(sysconfig.get_path("purelib"))
    assert not list(site_packages.glob("__editable__*finder*")), "an import hook costs start-up time"


def test_every_package_has_this_version() -> None:
    changelog = (PACKAGING / "debian" / "changelog").read_text(encoding="utf-8")
    assert changelog.startswith(f"virtksm ({__version__}-")
    assert re.findall(r"^Version: +(\S+)$", SPEC, flags=re.MULTILINE) == [__version__]
    galaxy = (PACKAGING / "ansible" / "galaxy.yml").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", galaxy, flags=re.MULTILINE) == [__version__]
    assert f"## {__version__}" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    kubernetes = "".join(path.read_text(encoding="utf-8") for path in (PACKAGING / "kubernetes").iterdir())
    assert {*re.findall(r"\bvirtksm:([\d.]+)", kubernetes)} == {__version__}


def test_every_package_takes_all_that_a_host_needs() -> None:
    debian = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGING / "debian").iterdir() if path.is_file())
    needed = [path.relative_to(PROJECT) for path in (PROJECT / "conf").rglob("*") if path.is_file()]
    assert len(needed) > 10
    for path in (*needed, Path("hooks/virtksm")):
        for package in (debian, SPEC):
            assert str(path) in package or f"{path.parent}/*" in package, path


def test_debian_starts_what_is_to_be_started_and_names_every_unit() -> None:
    rules = (PACKAGING / "debian" / "rules").read_text(encoding="utf-8")
    [others] = re.findall(r"for name in (.*);", rules)
    [switch] = re.findall(r"dh_installsystemd --name=virtksm-ksm (.*)", rules)
    assert switch == "--no-enable --no-start --no-stop-on-upgrade", "KSM's switch is postinst's"
    assert {*re.findall(r"--name=(virtksm[\w-]*)", rules), *others.split()} == {
        path.stem for path in (PROJECT / "conf" / "systemd").iterdir()
    }


def test_the_ansible_role_puts_every_unit_in_place() -> None:
    files = (PACKAGING / "ansible/roles/virtksm/vars/main.yml").read_text(encoding="utf-8")
    assert [path.name for path in (PROJECT / "conf/systemd").iterdir() if f"systemd/{path.name}:" not in files] == []


IMPORTS_ALL = """
import fnmatch, importlib, pkgutil, sys
import virtksm
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # None: an import of it fails
names = [one.name for one in pkgutil.walk_packages(virtksm.__path__, "virtksm.")]
for name in names:
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in sys.argv[2:]):
        importlib.import_module(name)
print(len(names))
"""


def test_the_rpms_check_imports_every_module_without_what_is_only_suggested() -> None:
    [line] = re.findall(r"^%pyproject_check_import (.*)$", SPEC, flags=re.MULTILINE)
    excluded = re.findall(r"-e '([^']+)'", line)
    extras = {name_of(one) for extra in DECLARED["project"]["optional-dependencies"].values() for one in extra}
    blocked = " ".join(name.replace("-", "_") for name in extras)
    done = subprocess.run([sys.executable, "-c", IMPORTS_ALL, blocked, *excluded], check=True, capture_output=True)
    assert int(done.stdout) > 100


def test_the_rpm_brings_the_structlog_that_is_tested() -> None:
    [bundled] = re.findall(r"^%global structlog (\S+)$", SPEC, flags=re.MULTILINE)
    pins = (PROJECT / "requirements" / "run.txt").read_text(encoding="utf-8")
    assert f"structlog=={bundled} " in pins


def test_every_extra_is_suggested_by_both_packages() -> None:
    control = (PACKAGING / "debian" / "control").read_text(encoding="utf-8")
    for extra in DECLARED["project"]["optional-dependencies"].values():
        for name in (name_of(one) for one in extra):
            assert f"python3-{name}" in control
            assert re.search(rf"^Suggests: +python3-{name.replace('-', '[-_]')}$", SPEC, flags=re.MULTILINE)


def test_a_libvirt_that_does_not_answer_stops_no_removal() -> None:
    prerm = (PACKAGING / "debian" / "virtksm.prerm").read_text(encoding="utf-8")
    for script in (prerm, SPEC):
        assert re.findall(r"(\S+ \d+) virtksm restore", script) == ["--kill-after=5 60"]


def test_a_removal_that_is_called_off_starts_what_it_has_stopped(tmp_path: Path) -> None:
    """dpkg does so for `apt install ksmtuned` if that cannot be unpacked: prerm remove, postinst abort-remove."""
    moved = {
        "/usr/share/debconf/confmodule": "/dev/null",
        "/run/systemd/system": str(tmp_path),
        "/run/virtksm": str(tmp_path / "absent"),
        "/var/lib/virtksm": str(tmp_path / "absent"),
    }

    def do(script: str, *arguments: str, is_enabled: bool) -> list[str]:
        """Return what a maintainer script has systemctl do."""
        (tmp_path / "systemctl").write_text(f'#!/bin/sh\n[ "$2" = is-enabled ] && exit {0 if is_enabled else 1}\n')
        (tmp_path / "systemctl").chmod(0o755)
        text = (PACKAGING / "debian" / f"virtksm.{script}").read_text(encoding="utf-8")
        for there, here in moved.items():
            text = text.replace(there, here)
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        traced = ["sh", "-x", "-c", text, script, *arguments]
        done = subprocess.run(traced, check=True, capture_output=True, text=True, env=environ)
        return [
            line for line in re.findall(r"^\+ systemctl (.*)$", done.stderr, re.MULTILINE) if "is-enabled" not in line
        ]

    switch = "virtksm-ksm.service"
    removal = ("in-favour", "ksmtuned", "1")
    assert do("prerm", "remove", *removal, is_enabled=True) == [f"stop {switch}"]
    assert do("postinst", "abort-remove", *removal, is_enabled=True) == [f"start {switch}"]
    assert do("postinst", "abort-remove", *removal, is_enabled=False) == []
    assert do("prerm", "upgrade", "2", is_enabled=True) == do("prerm", "deconfigure", *removal, is_enabled=True) == []


def test_what_the_removal_compiles_is_not_written() -> None:
    prerm = (PACKAGING / "debian" / "virtksm.prerm").read_text(encoding="utf-8")
    assert re.findall(r"^ *(\S+) timeout .*virtksm restore", prerm, flags=re.MULTILINE) == ["PYTHONDONTWRITEBYTECODE=1"]
    assert "PYTHONDONTWRITEBYTECODE" not in (PROJECT / "tests/boot/claims@.service").read_text(encoding="utf-8")


def test_the_account_that_purge_removes_is_the_packages_own() -> None:
    [comment] = re.findall(
        r'^u virtksm - "(.+)"$', (PROJECT / "conf/sysusers.d/virtksm.conf").read_text(), re.MULTILINE
    )
    assert f'= "{comment}" ]' in (PACKAGING / "debian" / "virtksm.postrm").read_text(encoding="utf-8")


def test_debian_is_told_the_package_of_every_requirement() -> None:
    overrides = (PACKAGING / "debian" / "py3dist-overrides").read_text(encoding="utf-8")
    required = {name_of(one) for one in DECLARED["project"]["dependencies"]}
    assert {line.split()[0] for line in overrides.splitlines()} == required
