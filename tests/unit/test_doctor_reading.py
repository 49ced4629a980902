"""What `virtksm doctor` reads, from trees of files: a healthy host, one thing changed, things that are no answer."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.healthy_host import DAEMON, FILES, HEALTHY, HERE, OWN, STATUS, URI, write_tree
from virtksm.adapters.state_file import dump_state
from virtksm.config.schema import Config
from virtksm.doctor.checks import examine
from virtksm.doctor.checks.hook import HOOK
from virtksm.doctor.facts import AgentSeen, Daemon, Facts, Here, HookFile, Swap, Tuned, Unknown
from virtksm.doctor.finding import Outcome
from virtksm.doctor.reading import read_here
from virtksm.doctor.reading.files import MOST_BYTES, Root
from virtksm.doctor.reading.kernel import parse_count, parse_swap
from virtksm.doctor.reading.own import parse_agent, read_config, read_own
from virtksm.doctor.reading.processes import is_read_only, parse_roots_name, parse_start_s, read_daemon
from virtksm.doctor.reading.units import mentions_ksm, parse_includes
from virtksm.ownership import HostState, Ownership
from virtksm.runtime import RuntimePaths

NOW_S = 2_000_000_000.0


def read(root: Path, uri: str = URI) -> Here:
    return read_here(Root(str(root)), uri, now_s=NOW_S)


def outcome(here: Here, check: str) -> Outcome:
    facts = Facts(here=here, libvirt=HEALTHY.libvirt, own=HEALTHY.own)
    return next(finding.outcome for finding in examine(facts) if finding.check == check)


def text(here: Here, check: str) -> str:
    found = outcome(here, check)
    return f"{found.verdict.value} {found.detail}"


def test_a_healthy_tree_is_read_as_healthy_facts(tmp_path: Path) -> None:
    here = read(write_tree(tmp_path))
    assert here.kernel == replace(HERE.kernel, page_kib=os.sysconf("SC_PAGE_SIZE") // 1024)
    assert here.processes == HERE.processes
    assert (here.units, here.tuned, here.booted) == (HERE.units, HERE.tuned, False)
    age_s = 6000.0 - 100_000 / os.sysconf("SC_CLK_TCK")
    assert here.daemon == replace(DAEMON, age_s=age_s)
    assert here.hooks.files == ()


def test_an_empty_tree_crashes_nothing_and_passes_nothing_that_it_cannot_show(tmp_path: Path) -> None:
    here = read(tmp_path)
    assert text(here, "ksm_built").startswith("FAIL Linux of unknown release")
    assert text(here, "swap") == "WARN cannot tell: /proc/meminfo is missing: is /proc mounted, with ProcSubset=all?"
    assert text(here, "ksmtuned").startswith("WARN cannot tell: /proc hides")
    assert text(here, "sys_writable").startswith("WARN cannot tell: /proc hides")


@pytest.mark.parametrize(
    ("file", "content", "check", "says"),
    [
        ("sys/kernel/mm/ksm/run", "0\n", "ksm_run", "FAIL run is 0"),
        ("sys/kernel/mm/ksm/run", "on\n", "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run holds no number"),
        ("sys/kernel/mm/ksm/run", "1" * 30, "ksm_run", "WARN cannot tell"),
        ("sys/kernel/mm/ksm/run", "1\n" * MOST_BYTES, "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run is longer"),
        ("sys/kernel/mm/ksm/advisor_mode", "none [scan-time]\n", "advisor", "FAIL advisor_mode is scan-time"),
        ("sys/kernel/mm/ksm/advisor_mode", None, "advisor", "PASS this kernel has none"),
        ("sys/kernel/mm/ksm/advisor_mode", "\x1b[2J", "advisor", "WARN cannot tell"),
        ("sys/kernel/mm/ksm/ksm_zero_pages", None, "use_zero_pages", "PASS use_zero_pages is off"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[never]\n", "huge_pages", "PASS the kernel makes none"),
        ("sys/kernel/mm/transparent_hugepage/enabled", None, "huge_pages", "PASS the kernel makes none"),
        ("sys/devices/system/node/has_memory", "0-1\n", "numa", "WARN merge_across_nodes is 1 with 2 NUMA nodes"),
        ("sys/devices/system/node/has_memory", None, "numa", "PASS one NUMA node"),
        ("sys/devices/system/node/has_memory", "x\n", "numa", "WARN cannot tell"),
        ("proc/meminfo", "MemTotal: 1 kB\n", "headroom", "WARN cannot tell: /proc/meminfo: MemFree is missing"),
        ("proc/meminfo", "garbage", "swap", "WARN cannot tell: /proc/meminfo: SwapTotal or SwapFree is missing"),
        (
            "proc/50/mountinfo",
            "1 0 0:5 / /home ro - ext4 x rw\n",
            "sys_writable",
            "WARN cannot tell: /proc/50/mountinfo",
        ),
        ("proc/50/mountinfo", "1 0 0:5 / /sys ro,nosuid - sysfs sysfs rw ro\n", "sys_writable", "FAIL libvirtd (pid"),
        ("proc/50/mountinfo", None, "sys_writable", "WARN cannot tell: process 50 has ended"),
    ],
)
def test_one_thing_changed(tmp_path: Path, file: str, content: str | None, check: str, says: str) -> None:
    assert text(read(write_tree(tmp_path, **{file: content})), check).startswith(says)


def test_what_is_no_file_hangs_nobody(tmp_path: Path) -> None:
    write_tree(tmp_path, **{"sys/kernel/mm/ksm/run": None, "sys/kernel/mm/ksm/max_page_sharing": None})
    os.mkfifo(tmp_path / "sys/kernel/mm/ksm/run")
    (tmp_path / "sys/kernel/mm/ksm/max_page_sharing").mkdir()
    here = read(tmp_path)
    assert text(here, "ksm_run") == "WARN cannot tell: /sys/kernel/mm/ksm/run is no regular file"
    assert text(here, "max_page_sharing").endswith("max_page_sharing is no regular file")


def test_a_link_that_leads_in_circles_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, **{"sys/kernel/mm/ksm/run": None})
    (tmp_path / "sys/kernel/mm/ksm/run").symlink_to("run")
    assert "Too many levels of symbolic links" in text(read(tmp_path), "ksm_run")


@pytest.mark.parametrize(
    ("name", "uid", "says"),
    [
        ("ksmtuned", 0, "FAIL ksmtuned runs"),
        ("ksmtuned", 1000, "PASS"),
        ("ksmtuned2", 0, "PASS"),
    ],
)
def test_a_process_of_that_name_counts_if_it_is_roots(tmp_path: Path, name: str, uid: int, says: str) -> None:
    status = STATUS.format(name=name, pid=77, uid=uid)
    assert text(read(write_tree(tmp_path, **{"proc/77/status": status})), "ksmtuned").startswith(says)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (STATUS.format(name="a b", pid=1, uid=0), "a b"),
        (STATUS.format(name="x", pid=1, uid=5), None),
        ("Name:\tx\nUid:\t1000\t0\t0\t0\n", "x"),
        ("Name:\tx\nState:\tZ (zombie)\nUid:\t0\t0\t0\t0\n", None),
        ("Name:\tx\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\n", "x"),
        ("Name:\tx\n", None),
        ("", None),
    ],
)
def test_roots_processes_are_told_by_their_effective_user(status: str, name: str | None) -> None:
    assert parse_roots_name(status) == name


def test_a_unit_is_enabled_where_another_wants_it_and_masked_is_not(tmp_path: Path) -> None:
    write_tree(tmp_path, **{"usr/lib/systemd/system/ksmtuned.service": "[Unit]\n"})
    assert text(read(tmp_path), "ksmtuned") == "PASS ksmtuned.service is installed, and neither runs nor is enabled"
    etc = tmp_path / "etc/systemd/system"
    wants = etc / "multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "ksmtuned.service").symlink_to("/usr/lib/systemd/system/ksmtuned.service")
    assert text(read(tmp_path), "ksmtuned").startswith("WARN ksmtuned.service is enabled")
    (etc / "ksmtuned.service").symlink_to("/dev/null")
    assert text(read(tmp_path), "ksmtuned").startswith("PASS")


def test_a_link_left_by_a_removed_package_enables_nothing(tmp_path: Path) -> None:
    wants = write_tree(tmp_path) / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "ksmtuned.service").symlink_to("/usr/lib/systemd/system/ksmtuned.service")
    assert text(read(tmp_path), "ksmtuned") == "PASS neither installed nor running"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"usr/lib/tuned/throughput/script.sh": "disable_ksm\n"}, "/usr/lib/tuned/throughput/script.sh"),
        ({"usr/lib/tuned/throughput/script.sh": "# ksm is left alone\n"}, None),
        ({"etc/tuned/virtual-host/tuned.conf": "[x]\n/sys/kernel/mm/ksm=0"}, "/etc/tuned/virtual-host/tuned.conf"),
        ({"usr/lib/tuned/throughput/tuned.conf": "[main]\ninclude=virtual-host,../../etc\n"}, None),
        ({"usr/lib/tuned/other/tuned.conf": "ksm"}, None),
    ],
)  # fmt: skip
def test_a_profile_is_read_with_what_it_includes(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    assert read(write_tree(tmp_path, **files)).tuned == Tuned(profiles=("virtual-host",), ksm_in=found)


def test_a_tuned_without_a_profile_is_silent(tmp_path: Path) -> None:
    assert read(write_tree(tmp_path, **{"etc/tuned/active_profile": None})).tuned == Tuned(profiles=(), ksm_in=None)


def test_of_comments_nothing_is_taken() -> None:
    assert not mentions_ksm("; KSM\n # ksm\n")
    assert mentions_ksm("[x]\nstop=ksmtuned\n")
    assert parse_includes("[main]\ninclude = a, b c\n#include=d\n") == ["a", "b", "c"]


def test_hooks_are_read_as_the_daemon_sees_them(tmp_path: Path) -> None:
    write_tree(tmp_path)
    ours = tmp_path / "etc/libvirt/hooks/qemu.d/virtksm"
    its = tmp_path / "proc/50/root/etc/libvirt/hooks/qemu.d/virtksm"
    for file, mode in ((ours, 0o644), (its, 0o775)):
        file.parent.mkdir(parents=True)
        file.write_text("#!/bin/sh\n", encoding="ascii")
        file.chmod(mode)
    (found,) = known_files(read(tmp_path))
    assert (found.path, found.is_executable, found.is_roots) == (HOOK, True, False)
    assert found.changed_s == pytest.approx(NOW_S - its.stat().st_ctime)
    (tmp_path / "proc/50/root").rename(tmp_path / "elsewhere")
    (found,) = known_files(read(tmp_path))
    assert (found.is_executable, found.is_roots) == (False, os.geteuid() == 0)


@pytest.mark.parametrize(
    ("file", "says"), [("proc/uptime", "/proc/uptime holds no time"), ("proc/50/stat", "/proc/50/stat does not tell")]
)
def test_a_daemon_of_unknown_age_may_have_seen_the_hook_or_not(tmp_path: Path, file: str, says: str) -> None:
    write_tree(tmp_path, **{file: "soon", HOOK.lstrip("/"): "#!/bin/sh\n"})
    assert text(read(tmp_path), "hook_seen").startswith(f"WARN cannot tell: {says}")


def known_files(here: Here) -> tuple[HookFile, ...]:
    assert not isinstance(here.hooks.files, Unknown)
    return here.hooks.files


def test_a_folder_of_that_name_is_no_hook_that_runs(tmp_path: Path) -> None:
    (write_tree(tmp_path) / HOOK.lstrip("/")).mkdir(parents=True)
    assert text(read(tmp_path), "hook_executable").startswith("FAIL it is not executable")


def test_the_hooks_program_is_where_a_link_leads(tmp_path: Path) -> None:
    real, link = write_tree(tmp_path) / "opt/virtksm", tmp_path / "usr/bin/virtksm"
    real.parent.mkdir()
    real.write_text("#!/bin/sh\n", encoding="ascii")
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert read(tmp_path).hooks.program is None, "it is not executable"
    real.chmod(0o755)
    assert read(tmp_path).hooks.program == str(real)


def test_apparmor_and_selinux_are_told_by_their_own_files(tmp_path: Path) -> None:
    here = read(write_tree(tmp_path))
    assert (here.hooks.apparmor_is_on, here.hooks.selinux_enforces) == (False, False)
    files = {
        "sys/module/apparmor/parameters/enabled": "Y\n",
        "sys/fs/selinux/enforce": "1",
        "proc/50/attr/current": "libvirtd (enforce)\n",
    }
    here = read(write_tree(tmp_path, **files))
    assert (here.hooks.apparmor_is_on, here.hooks.selinux_enforces) == (True, True)
    assert isinstance(here.daemon, Daemon)
    assert here.daemon.confined_by == "libvirtd (enforce)"


@pytest.fixture
def listener() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vd", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "s"
        server.bind(str(path))
        server.listen()
        yield path


def test_the_daemon_is_whoever_holds_the_socket_that_the_uri_names(tmp_path: Path, listener: Path) -> None:
    daemon = read_daemon(Root(str(write_tree(tmp_path))), f"{URI}?socket={listener}", (), uptime_s=1.0)
    assert isinstance(daemon, Daemon)
    assert daemon.pid == os.getpid()


@pytest.mark.parametrize("uri", ["test:///default", "qemu:///embed?root=/x"])
def test_a_driver_in_this_process_has_no_daemon(tmp_path: Path, uri: str) -> None:
    assert read(write_tree(tmp_path), uri).daemon is None


def test_without_any_daemon_that_is_unknown(tmp_path: Path) -> None:
    here = read(write_tree(tmp_path, **{"proc/50/status": None}))
    assert here.daemon == Unknown(why="no process of libvirt's daemon is seen")


def test_the_uppermost_mount_over_the_place_decides() -> None:
    over = "1 0 0:1 / / ro - ext4 /dev/x rw\n2 1 0:2 / /sys rw - sysfs sysfs rw\n"
    assert not is_read_only(over, "/sys/kernel/mm/ksm")
    assert is_read_only(f"{over}3 1 0:2 / /sys ro,nosuid shared:7 - sysfs sysfs rw\n", "/sys/kernel/mm/ksm")
    assert is_read_only(f"{over}3 1 0:2 / /sys/kernel/mm/ksm rw - sysfs sysfs ro\n", "/sys/kernel/mm/ksm")
    assert not is_read_only(f"{over}3 1 0:2 / /sys/kernel/mm/ksmx ro shared:1 - sysfs sysfs rw\n", "/sys/kernel/mm/ksm")
    assert is_read_only("nonsense\n", "/sys/kernel/mm/ksm") is None


def test_small_texts() -> None:
    assert [parse_count(one) for one in ("0\n", "0-1\n", "0-1,4\n", "7")] == [1, 2, 3, 1]
    assert parse_swap(FILES["proc/meminfo"]) == Swap(total_kib=1_048_576, free_kib=1_048_576)
    assert parse_start_s(FILES["proc/50/stat"], 100) == 1000.0
    assert parse_start_s("1 (a) b) c) S 1 2", 100) is None
    with pytest.raises(ValueError, match="no list"):
        parse_count("0-\n")


class Home:
    """Runtime and state folders of this test's own."""

    def __init__(self, folder: Path) -> None:
        self.paths = RuntimePaths(str(folder / "run"), str(folder / "lib"))
        self.root, self.agent = folder / "run", folder / "run/agent"

    def faults(self) -> tuple[str, ...]:
        return read_own(URI, Config(), self.paths, None).folders.faults


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_what_is_missing_is_no_fault_and_is_not_made(home: Home) -> None:
    own = read_own(URI, Config(), home.paths, None)
    assert (own.agent, own.off, own.folders.faults, own.folders.kept) == (None, None, (), HostState())
    assert not home.root.exists()


def test_faults_of_the_folder_are_told(home: Home) -> None:
    home.root.write_text("", encoding="ascii")
    assert home.faults()[0].endswith("run is not a folder")
    home.root.unlink()
    home.agent.mkdir(parents=True)
    Path(home.paths.state_dir).symlink_to(home.root)
    assert home.faults() == (f"{home.paths.state_dir} is not a folder",)
    Path(home.paths.state_dir).unlink()
    home.root.chmod(0o777)
    assert home.faults() == (f"{home.root} may be written to by others (mode 0777)",)
    home.root.chmod(0o755)
    (home.root / "poke").write_text("", encoding="ascii")
    assert home.faults() == (f"{home.root}/poke is not a FIFO",)
    (home.root / "poke").unlink()
    os.mkfifo(home.root / "poke", 0o600)
    assert home.faults() == ()
    (home.agent / "local.json").write_text("{}", encoding="ascii")
    assert home.faults() == (f"{home.agent}/local.json: not a virtksm state of schema 1",)


def test_what_is_kept_of_the_host_is_read(home: Home) -> None:
    home.agent.mkdir(parents=True)
    kept = HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=5, applied=5)})
    (home.agent / "local.json").write_text(dump_state(kept), encoding="ascii")
    assert read_own(URI, Config(), home.paths, None).folders.kept == kept


def test_an_agents_status_is_taken_apart() -> None:
    status = {
        "uri": URI,
        "libvirt": {"answers": False, "error": "it hangs", "silent_since": "noon", "waiting_for": "pass"},
        "stranded": {"possible": True, "worst_core_percent": 12.5},
        "last_pass": {
            "outcome": "refused",
            "refused": [{"parameter": "pages_to_scan", "cause": "advisor_on", "message": "x"}],
            "decision": {"numbers": {"others_kib": 4096}},
        },
    }
    silence = "since noon, waiting for pass (it hangs)"
    assert parse_agent(status) == AgentSeen(
        uri=URI,
        silence=silence,
        is_stranded=True,
        worst_core_percent=12.5,
        outcome="refused",
        refusal="pages_to_scan, advisor on",
        others_kib=4096,
    )


def test_every_fault_of_the_configuration_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "virtksm.toml"
    file.write_text("policy = 7\nnonsense = 1\n", encoding="ascii")
    faults = read_config(str(file))
    assert isinstance(faults, tuple)
    assert len(faults) == 2
    file.write_text("", encoding="ascii")
    assert read_config(str(file)) == replace(OWN.configuration, private_guests=())  # type: ignore[type-var]  # a Config
