"""What `virtksm doctor` reads, from trees of files: a healthy host, one thing changed, things that are no answer."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.lab.healthy_host import DAEMON, FILES, HEALTHY, HERE, OWN, STATUS, URI, write_tree
from virtksm.config.schema import Config
from virtksm.doctor.checks import examine
from virtksm.doctor.checks.hook import HOOK
from virtksm.doctor.facts import AgentSeen, Daemon, Facts, Here, HookFile, Own, Swap, Tuned, Unknown
from virtksm.doctor.finding import Outcome
from virtksm.doctor.reading import read_here, read_kept_off
from virtksm.doctor.reading.boot import parse_commands
from virtksm.doctor.reading.files import MAX_BYTES, Root
from virtksm.doctor.reading.kernel import parse_count, parse_swap
from virtksm.doctor.reading.own import parse_agent, read_config, read_own
from virtksm.doctor.reading.processes import (
    NO_DAEMON,
    Process,
    find_daemon,
    find_peer,
    is_read_only,
    parse_process,
    parse_start_s,
    read_daemon,
)
from virtksm.doctor.reading.units import keeps_ksm_off, mentions_ksm, parse_includes
from virtksm.paths import RuntimePaths
from virtksm.store.state import dump_host_state
from virtksm.tuning.ownership import HostState, Ownership

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
    assert (here.units, here.tuned, here.boot, here.booted) == (HERE.units, HERE.tuned, HERE.boot, True)
    assert (here.agent_rule, here.has_agent_user) == (HERE.agent_rule, True)
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
        ("ksm/run", "0\n", "ksm_run", "FAIL run is 0"),
        ("ksm/run", "on\n", "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run holds no number"),
        ("ksm/run", "1" * 30, "ksm_run", "WARN cannot tell"),
        ("ksm/run", "1\n" * MAX_BYTES, "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run is longer"),
        ("ksm/advisor_mode", "none [scan-time]\n", "advisor", "FAIL advisor_mode is scan-time"),
        ("ksm/advisor_mode", None, "advisor", "PASS this kernel has none"),
        ("ksm/advisor_mode", "\x1b[2J", "advisor", "WARN cannot tell"),
        ("ksm/ksm_zero_pages", None, "use_zero_pages", "PASS use_zero_pages is off"),
        ("transparent_hugepage/enabled", "[never]\n", "huge_pages", "PASS the kernel makes none"),
        ("transparent_hugepage/enabled", None, "huge_pages", "PASS the kernel makes none"),
        ("has_memory", "0-1\n", "numa", "WARN merge_across_nodes is 1 with 2 NUMA nodes"),
        ("has_memory", None, "numa", "PASS one NUMA node"),
        ("has_memory", "x\n", "numa", "WARN cannot tell"),
        ("meminfo", "MemTotal: 1 kB\n", "headroom", "WARN cannot tell: /proc/meminfo: MemFree is missing"),
        ("meminfo", "garbage", "swap", "WARN cannot tell: /proc/meminfo: SwapTotal or SwapFree is missing"),
        ("50/mountinfo", "1 0 0:5 / /home ro - ext4 x rw\n", "sys_writable", "WARN cannot tell: /proc/50/mountinfo"),
        ("50/mountinfo", "1 0 0:5 / /sys ro,nosuid - sysfs sysfs rw ro\n", "sys_writable", "FAIL libvirtd (pid"),
        ("50/mountinfo", None, "sys_writable", "WARN cannot tell: process 50 has ended"),
    ],
)
def test_one_thing_changed(tmp_path: Path, file: str, content: str | None, check: str, says: str) -> None:
    (whole,) = (one for one in FILES if one.endswith(f"/{file}"))
    assert text(read(write_tree(tmp_path, **{whole: content})), check).startswith(says)


def test_what_is_no_file_hangs_nobody_and_a_link_that_leads_in_circles_is_told(tmp_path: Path) -> None:
    names = ("run", "max_page_sharing", "use_zero_pages")
    fifo, folder, circle = (tmp_path / "sys/kernel/mm/ksm" / name for name in names)
    write_tree(tmp_path, **{f"sys/kernel/mm/ksm/{name}": None for name in names})
    os.mkfifo(fifo)
    folder.mkdir()
    for link in (circle, tmp_path / "etc/rc.local"):
        link.symlink_to(link.name)
    here = read(tmp_path)
    assert text(here, "ksm_run") == "WARN cannot tell: /sys/kernel/mm/ksm/run is no regular file"
    assert text(here, "max_page_sharing").endswith("max_page_sharing is no regular file")
    assert "Too many levels of symbolic links" in text(here, "use_zero_pages")
    (boot,) = here.boot.unread
    assert boot.startswith("/etc/rc.local: Too many levels")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (STATUS.format(name="ksmtuned", pid=77, uid=0), "FAIL ksmtuned runs"),
        (STATUS.format(name="ksmtuned", pid=77, uid=1000), "PASS"),
        (STATUS.format(name="ksmtuned2", pid=77, uid=0), "PASS"),
    ],
)
def test_a_process_of_that_name_counts_if_it_is_roots(tmp_path: Path, status: str, says: str) -> None:
    assert text(read(write_tree(tmp_path, **{"proc/77/status": status})), "ksmtuned").startswith(says)


VDSMD_RUNS = {"etc/systemd/system/multi-user.target.wants/vdsmd.service": ""}
VDSMD = {"usr/lib/systemd/system/vdsmd.service": "[Unit]\nWants=mom-vdsm.service\n"}
OF_CGROUP = "system.slice/mom-vdsm.service/cgroup.procs"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"proc/77/status": STATUS.format(name="momd", pid=77, uid=36)}, "WARN momd runs"),
        ({"proc/77/status": STATUS.format(name="momd", pid=77, uid=1000)}, "PASS"),
        ({"proc/77/status": STATUS.format(name="supervdsmd", pid=77, uid=0)}, "WARN supervdsmd runs"),
        ({f"sys/fs/cgroup/{OF_CGROUP}": "77\n"}, "WARN mom-vdsm.service runs"),
        ({f"sys/fs/cgroup/systemd/{OF_CGROUP}": "77\n"}, "WARN mom-vdsm.service runs"),
        ({f"sys/fs/cgroup/{OF_CGROUP}": ""}, "PASS mom-vdsm.service is installed"),
        ({**VDSMD_RUNS, **VDSMD}, "WARN mom-vdsm.service is enabled"),
        (
            {**VDSMD_RUNS, "etc/systemd/system/vdsmd.service.d/m.conf": "[Unit]\nRequires=x.service mom-vdsm.service"},
            "WARN mom-vdsm.service is enabled",
        ),
        (VDSMD, "PASS"),
    ],
)
def test_mom_is_seen_as_ovirt_runs_it(tmp_path: Path, files: dict[str, str], says: str) -> None:
    installed = {"usr/lib/systemd/system/mom-vdsm.service": "[Service]\nUser=vdsm\n"}
    assert text(read(write_tree(tmp_path, **installed, **files)), "mom").startswith(says)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (STATUS.format(name="a b", pid=1, uid=0), "a b"),
        ("Name:\tx\nUid:\t1000\t0\t0\t0\n", None),
        ("Name:\tx\nUid:\t0\t1000\t0\t0\n", None),
        ("Name:\tx\nState:\tZ (zombie)\nUid:\t0\t0\t0\t0\n", None),
        ("Name:\tx\n", None),
    ],
)
def test_a_process_is_who_is_its_real_and_effective_user(status: str, name: str | None) -> None:
    process = parse_process(7, status)
    assert (process and process.name) == name


def daemons(*processes: tuple[int, str, int, int]) -> tuple[Process, ...]:
    return tuple(Process(pid=pid, name=name, user_id=user, parent=parent) for pid, name, user, parent in processes)


@pytest.mark.parametrize(
    ("processes", "pid"),
    [
        (daemons((5, "libvirtd", 0, 1), (9, "libvirtd", 0, 4)), 5),
        (daemons((5, "libvirtd", 0, 4), (9, "libvirtd", 0, 1)), 9),
        (daemons((5, "libvirtd", 0, 1), (9, "virtqemud", 0, 1)), 9),
        (daemons((5, "libvirtd", 0, 1), (9, "virtqemud", 36, 1)), 5),
        (daemons((5, "virtlogd", 0, 1)), None),
    ],
)
def test_of_several_daemons_it_is_roots_and_inits(processes: tuple[Process, ...], pid: int | None) -> None:
    assert find_daemon(processes) == pid


def test_a_unit_is_enabled_where_another_wants_it_and_masked_is_not(tmp_path: Path) -> None:
    file = "usr/lib/systemd/system/ksmtuned.service"
    write_tree(tmp_path, **{file: "[Unit]\n"})
    assert text(read(tmp_path), "ksmtuned") == "PASS ksmtuned.service is installed, and neither runs nor is enabled"
    etc = tmp_path / "etc/systemd/system"
    wants = etc / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "ksmtuned.service").symlink_to(f"/{file}")
    assert text(read(tmp_path), "ksmtuned").startswith("WARN ksmtuned.service is enabled")
    (etc / "ksmtuned.service").symlink_to("/dev/null")
    assert text(read(tmp_path), "ksmtuned").startswith("PASS")
    for removed in (etc / "ksmtuned.service", tmp_path / file):
        removed.unlink()
    assert text(read(tmp_path), "ksmtuned") == "PASS neither installed nor running", "whatever link a package left"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"throughput/script.sh": "disable_ksm\n"}, "throughput/script.sh"),
        ({"throughput/script.sh": "# ksm is left alone\n"}, None),
        ({"throughput/tuned.conf": "[main]\ninclude=virtual-host,../../etc\n", "other/tuned.conf": "ksm"}, None),
        (
            {"throughput/tuned.conf": "[main]\ninclude=${f:virt_check:guest:bare}\n", "bare/tuned.conf": "x=ksm\n"},
            "bare/tuned.conf",
        ),
    ],
)
def test_a_profile_is_read_with_what_it_includes(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    tuned = read(write_tree(tmp_path, **{f"usr/lib/tuned/{name}": text for name, text in files.items()})).tuned
    assert tuned == Tuned(profiles=("virtual-host",), ksm_in=found and f"/usr/lib/tuned/{found}", keeps_off=ANY)


def test_a_profile_of_etc_comes_first_and_no_active_one_is_silent(tmp_path: Path) -> None:
    own = write_tree(tmp_path, **{"etc/tuned/virtual-host/tuned.conf": "[x]\n/sys/kernel/mm/ksm=0"})
    assert read(own).tuned == Tuned(
        profiles=("virtual-host",), ksm_in="/etc/tuned/virtual-host/tuned.conf", keeps_off=ANY
    )
    (own / "etc/tuned/active_profile").unlink()
    assert read(own).tuned == Tuned(profiles=(), ksm_in=None)


@pytest.mark.parametrize(
    ("include", "unknown"),
    [
        ("${f:regex_search_ternary:${x}:a:b:c}", ("${f:regex_search_ternary:${x}:a:b:c}",)),
        ("base-${isolated}, throughput", ("base-${isolated}",)),
        ("${f:virt_check:a:throughput}", ()),
    ],
)
def test_an_include_that_only_tuned_can_make_out_is_told(
    tmp_path: Path, include: str, unknown: tuple[str, ...]
) -> None:
    conf = f"[main]\ninclude={include}\n"
    here = read(write_tree(tmp_path, **{"usr/lib/tuned/virtual-host/tuned.conf": conf}))
    assert isinstance(here.tuned, Tuned)
    assert here.tuned.unknown_includes == unknown
    assert text(here, "tuned").startswith("WARN cannot tell" if unknown else "PASS")


@pytest.mark.parametrize(
    ("line", "off"),
    [
        ("    disable_ksm", True),
        ("disable_ksm()", False),
        ("# disable_ksm", False),
        ("/sys/kernel/mm/ksm/run = 2", True),
        ("/sys/kernel/mm/ksm/run=0", True),
        ("/sys/kernel/mm/ksm/run=1", False),
        ("echo 2 > /sys/kernel/mm/ksm/run", True),
        ("/sys/kernel/mm/ksm/pages_to_scan=100", False),
    ],
)
def test_a_profile_that_switches_ksm_off_is_told_from_one_that_sets_it(line: str, off: bool) -> None:
    assert keeps_ksm_off(f"start() {{\n{line}\n}}\n") is off


CPU_PARTITIONING = {
    "etc/tuned/active_profile": "mine\n",
    "etc/tuned/mine/tuned.conf": "[main]\ninclude=cpu-partitioning\n",
    "usr/lib/tuned/cpu-partitioning/tuned.conf": "[main]\n",
    "usr/lib/tuned/cpu-partitioning/script.sh": "start() {\n    disable_ksm\n}\n",
    "usr/lib/systemd/system/tuned.service": "[Unit]\n",
}
WANTS = "etc/systemd/system/multi-user.target.wants"
QEMU_KVM_RUNS = {"usr/lib/systemd/system/qemu-kvm.service": "", f"{WANTS}/qemu-kvm.service": ""}
RUN, PAGES, SLEEP, ADVISOR = (
    f"/sys/kernel/mm/ksm/{name}" for name in ("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")
)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, None),
        ({**CPU_PARTITIONING, f"{WANTS}/tuned.service": ""}, "tuned's profile mine switches it off"),
        (CPU_PARTITIONING, None),
        ({"etc/tmpfiles.d/ksm.conf": f"w {RUN} - - - - 0\n"}, "/etc/tmpfiles.d/ksm.conf"),
        ({"etc/tmpfiles.d/ksm.conf": f"#w {RUN} - - - - 0\n"}, None),
        ({"etc/sysfs.d/ksm.conf": "kernel/mm/ksm/run = 2\n"}, "/etc/sysfs.d/ksm.conf"),
        ({"etc/default/qemu-kvm": "KSM_ENABLED=0\n"}, None),
        ({"etc/default/qemu-kvm": 'KSM_ENABLED="0"\n', **QEMU_KVM_RUNS}, "/etc/default/qemu-kvm"),
    ],
)
def test_by_what_a_host_keeps_ksm_off(tmp_path: Path, files: dict[str, str], says: str | None) -> None:
    kept = read_kept_off(Root(str(write_tree(tmp_path, **files))))
    assert (kept is None) == (says is None), kept
    assert (says or "") in (kept or "")


def test_a_masked_ksm_service_keeps_it_off(tmp_path: Path) -> None:
    for folder in ("etc", "run"):
        unit = write_tree(tmp_path / f"masked in {folder}") / folder / "systemd/system/ksm.service"
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.symlink_to("/dev/null")
        assert read_kept_off(Root(str(tmp_path / f"masked in {folder}"))) == "ksm.service is masked"


UNIT = "etc/systemd/system/mine.service"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (
            {"etc/tmpfiles.d/a.conf": f"w {ADVISOR} - - - - scan-time\n"},
            ("etc/tmpfiles.d/a.conf", ADVISOR, "scan-time"),
        ),
        ({"etc/tmpfiles.d/a.conf": "", "usr/lib/tmpfiles.d/a.conf": f"w {ADVISOR} - - - - scan-time\n"}, None),
        ({"etc/sysfs.conf": "kernel/mm/ksm/sleep_millisecs = 20\n"}, ("etc/sysfs.conf", SLEEP, "20")),
        ({"etc/rc.local": f"#!/bin/sh\necho 1000 > {PAGES}\n"}, ("etc/rc.local", PAGES, "1000")),
        ({"etc/rc.local": f"#!/bin/sh\n# echo 1000 > {PAGES}\n"}, None),
        ({"etc/rc.local": f"#!/bin/sh\ncat {RUN}\n"}, None),
        ({"etc/udev/rules.d/9.rules": f"RUN+=\"sh -c 'echo 1 > {RUN}'\"\n"}, ("etc/udev/rules.d/9.rules", RUN, "1")),
        ({"var/spool/cron/crontabs/root": f"@reboot echo 0 > {RUN}\n"}, ("var/spool/cron/crontabs/root", RUN, "0")),
        ({UNIT: f"[Service]\nExecStart=/bin/sh -c 'echo 5 > {SLEEP}'\n"}, None),
        (
            {f"{WANTS}/mine.service": "", UNIT: f"[Service]\nExecStart=/bin/sh -c 'echo 5 > \\\n {SLEEP}'\n"},
            (UNIT, SLEEP, "5"),
        ),
        ({f"{WANTS}/mine.service": "", UNIT: f"[Service]\nReadWritePaths={RUN}\n"}, None),
        (
            {
                "etc/systemd/system/timers.target.wants/mine.timer": "",
                UNIT: f"[Service]\nExecStart=/bin/sh -c 'echo 5 >{SLEEP}'\n",
            },
            (UNIT, SLEEP, "5"),
        ),
        (
            {
                f"{WANTS}/mine.service": "",
                UNIT: "[Service]\nExecStart=/home/u/ksm.sh\n",
                "home/u/ksm.sh": f"#!/bin/sh\necho 1 > {RUN}\n",
            },
            None,
        ),
        (
            {
                f"{WANTS}/mine@a.service": "",
                "etc/systemd/system/mine@.service": f"[Service]\nExecStart=sh -c 'echo 7 >{RUN}'\n",
            },
            ("etc/systemd/system/mine@.service", RUN, "7"),
        ),
        (
            {
                f"{WANTS}/virtksm-ksm.service": "",
                "usr/lib/systemd/system/virtksm-ksm.service": f"ExecStart=sh -c 'echo 1 >{RUN}'\n",
            },
            None,
        ),
    ],
)
def test_what_else_sets_ksm_at_boot(tmp_path: Path, files: dict[str, str], found: tuple[str, str, str] | None) -> None:
    settings = read(write_tree(tmp_path, **files)).boot.settings
    told = [(one.file[1:], f"/sys/kernel/mm/ksm/{one.name}", one.value) for one in settings]
    assert told == ([] if found is None else [found])


def test_what_a_unit_runs_sets_ksm_at_boot(tmp_path: Path) -> None:
    script = '#!/bin/sh\nK=/sys/kernel/mm/ksm\necho 1 > $K/run\necho $N | tee "${K}/pages_to_scan"\n'
    more = "[Service]\nExecStartPost=-/opt/ksm.sh -v\n"
    files = {f"{WANTS}/mine.service": "", f"{UNIT}.d/more.conf": more, "opt/ksm.sh": script}
    settings = read(write_tree(tmp_path, **files)).boot.settings
    assert [(one.file, one.name, one.value) for one in settings] == [
        ("/opt/ksm.sh", "run", "1"),
        ("/opt/ksm.sh", "pages_to_scan", None),
    ]


def test_what_is_no_file_sets_nothing_at_boot_and_hides_what_has_its_name(tmp_path: Path) -> None:
    root = write_tree(tmp_path, **{"usr/lib/tmpfiles.d/a.conf": "w /sys/kernel/mm/ksm/run - - - - 0\n"})
    (root / "etc/init.d/functions").mkdir(parents=True)
    (root / "etc/tmpfiles.d").mkdir()
    assert len(read(root).boot.settings) == 1
    (root / "etc/tmpfiles.d/a.conf").symlink_to("/dev/null")
    assert read(root).boot == HERE.boot


def test_a_line_without_end_is_looked_through_quickly() -> None:
    assert parse_commands("/sys/kernel/mm/ksm" + "> $a" * 100_000) == []
    assert parse_commands("echo " + "1" * 900 + "> /sys/kernel/mm/ksm/run") == [("run", None)]


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
    ("file", "says"),
    [("proc/uptime", "/proc/uptime holds no time"), ("proc/50/stat", "/proc/50/stat has no start time")],
)
def test_a_daemon_of_unknown_age_may_have_seen_the_hook_or_not(tmp_path: Path, file: str, says: str) -> None:
    write_tree(tmp_path, **{file: "soon", HOOK.lstrip("/"): "#!/bin/sh\n"})
    assert text(read(tmp_path), "hook_seen").startswith(f"WARN cannot tell: {says}")


def known_files(here: Here) -> tuple[HookFile, ...]:
    assert not isinstance(here.hooks.files, Unknown)
    return here.hooks.files


def test_a_folder_of_that_name_is_no_hook_that_runs_and_its_program_is_where_a_link_leads(tmp_path: Path) -> None:
    real, link = write_tree(tmp_path) / "opt/virtksm", tmp_path / "usr/bin/virtksm"
    for folder in (tmp_path / HOOK.lstrip("/"), real.parent, link.parent):
        folder.mkdir(parents=True)
    real.write_text("#!/bin/sh\n", encoding="ascii")
    link.symlink_to(real)
    here = read(tmp_path)
    assert text(here, "hook_executable").startswith("FAIL it is not executable")
    assert here.hooks.program is None, "it is not executable"
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


def test_the_daemon_is_whoever_holds_the_other_end_of_libvirts_own_connection(listener: Path) -> None:
    uri = f"{URI}?socket={listener}"
    held = sorted(Path("/proc/self/fd").iterdir())
    assert find_peer(uri) is None, "nothing connects for that"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(listener))
        assert find_peer(uri) == os.getpid()
        assert find_peer(f"{URI}?socket=/other") is None
    assert find_peer(uri) is None
    assert sorted(Path("/proc/self/fd").iterdir()) == held


def test_where_systemd_holds_the_socket_the_daemon_is_known_by_its_name(tmp_path: Path) -> None:
    root = Root(str(write_tree(tmp_path)))
    for peer_pid, pid in ((50, 50), (1, 50), (None, 50)):
        daemon = read_daemon(root, URI, daemons((50, "libvirtd", 0, 1)), uptime_s=1.0, peer_pid=peer_pid)
        assert isinstance(daemon, Daemon)
        assert daemon.pid == pid


def test_a_driver_in_this_process_has_no_daemon_and_elsewhere_that_is_unknown(tmp_path: Path) -> None:
    root = write_tree(tmp_path, **{"proc/50/status": None})
    assert [read(root, uri).daemon for uri in ("test:///default", "qemu:///embed?root=/x")] == [None, None]
    assert read(root).daemon == NO_DAEMON


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


def test_of_the_folders_what_is_kept_is_read_and_faults_are_told_but_nothing_is_made(tmp_path: Path) -> None:
    paths = RuntimePaths(str(tmp_path / "run"), str(tmp_path / "lib"))
    root, agent, state = tmp_path / "run", tmp_path / "run/agent", tmp_path / "lib"

    def own() -> Own:
        return read_own(URI, Config(), paths, None)

    assert (own().agent, own().off, own().folders.faults, own().folders.state) == (None, None, (), HostState())
    assert not root.exists()
    root.write_text("", encoding="ascii")
    assert own().folders.faults[0].endswith("run is not a folder")
    root.unlink()
    agent.mkdir(parents=True)
    state.symlink_to(root)
    assert own().folders.faults == (f"{state} is not a folder",)
    state.unlink()
    root.chmod(0o777)
    assert own().folders.faults == (f"{root} may be written to by other users (mode 0777)",)
    root.chmod(0o755)
    (root / "poke").write_text("", encoding="ascii")
    assert own().folders.faults == (f"{root}/poke is not a FIFO",)
    (root / "poke").unlink()
    os.mkfifo(root / "poke", 0o600)
    kept = HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=5, applied=5)})
    (agent / "local.json").write_text(dump_host_state(kept), encoding="ascii")
    assert (own().folders.faults, own().folders.state) == ((), kept)
    (agent / "local.json").write_text("{}", encoding="ascii")
    assert own().folders.faults == (f"{agent}/local.json: not a virtksm state of schema 1",)


def test_an_agents_status_is_taken_apart() -> None:
    status = {
        "uri": URI,
        "libvirt": {"answers": False, "error": "it hangs", "silent_since": "noon", "waiting_for": "pass"},
        "stranded": {"possible": True, "worst_core_percent": 12.5},
        "last_pass": {
            "outcome": "refused",
            "refused": [{"parameter": "pages_to_scan", "cause": "advisor_on", "message": "x"}],
            "decision": {"numbers": {"other_processes_kib": 4096}},
            "sensed": {"guests": 6, "guests_unread": 2},
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
        other_processes_kib=4096,
        guests=6,
        guests_unread=2,
    )
    seen = parse_agent({**status, "uri": "x" * 100_000})
    assert isinstance(seen, AgentSeen)
    assert len(seen.uri) < 1000
    wrongs: tuple[object, ...] = (-1, 10**400, 1.5, "2", None, [])
    for wrong in wrongs:
        last = {**status["last_pass"], "sensed": {"guests": 6, "guests_unread": wrong}}  # type: ignore[dict-item]
        assert isinstance(parse_agent({**status, "last_pass": last}), Unknown)
        last = {**status["last_pass"], "decision": {"numbers": {"other_processes_kib": wrong}}}  # type: ignore[dict-item]
        assert isinstance(parse_agent({**status, "last_pass": last}), Unknown) or wrong is None


def test_every_fault_of_the_configuration_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "virtksm.toml"
    file.write_text("policy = 7\nnonsense = 1\n", encoding="ascii")
    faults, _ = read_config(str(file))
    assert isinstance(faults, tuple)
    assert len(faults) == 2
    file.write_text('[adaptive]\nmerge_across_nodes = "keep"\n', encoding="ascii")
    plain = replace(OWN.configuration, private_guests=())  # type: ignore[type-var]  # a Config
    assert read_config(str(file)) == (plain, frozenset({"adaptive.merge_across_nodes"}))
