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


class Maintained:
    """A root of its own for Debian's maintainer scripts, with its own deb-systemd-invoke; systemctl notes its calls."""

    def __init__(self, root: Path) -> None:
        self._root, self._calls = root, root / "calls"
        self._moved = {
            "/usr/share/debconf/confmodule": self._write("confmodule", "db_get() { RET=true; }"),
            "/run/systemd/system": root,
            "/run/virtksm": self._write("run/installs", "").parent,
            "/var/lib/virtksm": root / "absent",
            "/etc/ksmtuned.conf": root / "absent",
        }
        for name in ("virtksm", "deb-systemd-helper"):
            self._write(name, "#!/bin/sh")

    def _write(self, name: str, text: str) -> Path:
        file = self._root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
        file.chmod(0o755)
        return file

    def forbid_starts(self) -> None:
        self._write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101")

    def do(self, script: str, *arguments: str, is_enabled: bool = True) -> list[str]:
        """Return what a maintainer script has systemctl do to a unit."""
        asked = f"[ {int(is_enabled)} = 1 ] && echo enabled"
        self._write("systemctl", f"#!/bin/sh\ncase $* in *is-enabled*) {asked};; *) echo $* >>{self._calls};; esac")
        self._calls.touch()
        text = (PACKAGING / "debian" / f"virtksm.{script}").read_text(encoding="utf-8")
        for there, here in self._moved.items():
            text = text.replace(there, str(here))
        environ = {"PATH": f"{self._root}:/usr/bin:/bin", "DPKG_ROOT": str(self._root)}
        subprocess.run(["sh", "-c", text, script, *arguments], check=True, capture_output=True, env=environ)
        called = self._calls.read_text(encoding="utf-8").splitlines()
        self._calls.unlink()
        words = (" ".join(word for word in call.split() if not word.startswith("--")) for call in called)
        return [call for call in words if re.match("start|restart|reload|stop", call)]


SWITCH = "virtksm-ksm.service"
REMOVAL = ("in-favour", "ksmtuned", "1")


def test_a_removal_that_is_called_off_starts_what_it_has_stopped(tmp_path: Path) -> None:
    """dpkg does so for `apt install ksmtuned` if that cannot be unpacked: prerm remove, postinst abort-remove."""
    debian = Maintained(tmp_path)
    assert debian.do("prerm", "remove", *REMOVAL) == [f"stop {SWITCH}"]
    assert debian.do("postinst", "abort-remove", *REMOVAL) == [f"start {SWITCH}"]
    assert debian.do("postinst", "abort-remove", *REMOVAL, is_enabled=False) == []
    assert debian.do("prerm", "upgrade", "2") == debian.do("prerm", "deconfigure", *REMOVAL) == []


def test_where_policy_rc_d_says_no_nothing_is_switched_on_or_reloaded(tmp_path: Path) -> None:
    reloads = ["reload libvirtd.service", "reload virtqemud.service"]
    allowed = Maintained(tmp_path / "allowed")
    assert allowed.do("postinst", "configure", "") == [f"restart {SWITCH}", *reloads]
    forbidden = Maintained(tmp_path / "forbidden")
    forbidden.forbid_starts()
    assert forbidden.do("postinst", "configure", "") == []
    assert forbidden.do("postinst", "abort-remove", *REMOVAL) == []


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
