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
from virtksm.config.schema import Config
from virtksm.doctor.checks import examine
from virtksm.doctor.checks.hook import HOOK
from virtksm.doctor.facts import AgentSeen, Daemon, Facts, Here, HookFile, Swap, Tuned, Unknown
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
        ("sys/kernel/mm/ksm/run", "0\n", "ksm_run", "FAIL run is 0"),
        ("sys/kernel/mm/ksm/run", "on\n", "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run holds no number"),
        ("sys/kernel/mm/ksm/run", "1" * 30, "ksm_run", "WARN cannot tell"),
        ("sys/kernel/mm/ksm/run", "1\n" * MAX_BYTES, "ksm_run", "WARN cannot tell: /sys/kernel/mm/ksm/run is longer"),
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


VDSM = 36


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"proc/77/status": STATUS.format(name="momd", pid=77, uid=VDSM)}, "WARN momd runs"),
        ({"proc/77/status": STATUS.format(name="momd", pid=77, uid=1000)}, "PASS"),
        ({"proc/77/status": STATUS.format(name="supervdsmd", pid=77, uid=0)}, "WARN supervdsmd runs"),
        ({"sys/fs/cgroup/system.slice/mom-vdsm.service/cgroup.procs": "77\n"}, "WARN mom-vdsm.service runs"),
        ({"sys/fs/cgroup/systemd/system.slice/mom-vdsm.service/cgroup.procs": "77\n"}, "WARN mom-vdsm.service runs"),
        ({"sys/fs/cgroup/system.slice/mom-vdsm.service/cgroup.procs": ""}, "PASS mom-vdsm.service is installed"),
        (
            {
                "etc/systemd/system/multi-user.target.wants/vdsmd.service": "",
                "usr/lib/systemd/system/vdsmd.service": "[Unit]\nWants=mom-vdsm.service\n",
            },
            "WARN mom-vdsm.service is enabled",
        ),
        (
            {
                "etc/systemd/system/multi-user.target.wants/vdsmd.service": "",
                "etc/systemd/system/vdsmd.service.d/mom.conf": "[Unit]\nRequires=x.service mom-vdsm.service\n",
            },
            "WARN mom-vdsm.service is enabled",
        ),
        ({"usr/lib/systemd/system/vdsmd.service": "[Unit]\nWants=mom-vdsm.service\n"}, "PASS"),
    ],
)
def test_mom_is_seen_as_ovirt_runs_it(tmp_path: Path, files: dict[str, str], says: str) -> None:
    installed = {"usr/lib/systemd/system/mom-vdsm.service": "[Service]\nUser=vdsm\n"}
    assert text(read(write_tree(tmp_path, **installed, **files)), "mom").startswith(says)


def test_a_program_with_the_setuid_bit_is_its_callers(tmp_path: Path) -> None:
    status = STATUS.format(name="ksmtuned", pid=77, uid=0).replace("Uid:\t0\t0", "Uid:\t1000\t0")
    assert text(read(write_tree(tmp_path, **{"proc/77/status": status})), "ksmtuned").startswith("PASS")


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (STATUS.format(name="a b", pid=1, uid=0), "a b"),
        (STATUS.format(name="x", pid=1, uid=5), "x"),
        ("Name:\tx\nUid:\t1000\t0\t0\t0\n", None),
        ("Name:\tx\nUid:\t0\t1000\t0\t0\n", None),
        ("Name:\tx\nState:\tZ (zombie)\nUid:\t0\t0\t0\t0\n", None),
        ("Name:\tx\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\n", "x"),
        ("Name:\tx\n", None),
        ("", None),
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
    write_tree(tmp_path, **{"usr/lib/systemd/system/ksmtuned.service": "[Unit]\n"})
    assert text(read(tmp_path), "ksmtuned") == "PASS ksmtuned.service is installed, and neither runs nor is enabled"
    etc = tmp_path / "etc/systemd/system"
    wants = etc / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "ksmtuned.service").symlink_to("/usr/lib/systemd/system/ksmtuned.service")
    assert text(read(tmp_path), "ksmtuned").startswith("WARN ksmtuned.service is enabled")
    (etc / "ksmtuned.service").symlink_to("/dev/null")
    assert text(read(tmp_path), "ksmtuned").startswith("PASS")


def test_a_link_left_by_a_removed_package_enables_nothing(tmp_path: Path) -> None:
    wants = write_tree(tmp_path) / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
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
        (
            {
                "usr/lib/tuned/throughput/tuned.conf": "[main]\ninclude=${f:virt_check:guest:bare}\n",
                "usr/lib/tuned/bare/tuned.conf": "x=ksm\n",
            },
            "/usr/lib/tuned/bare/tuned.conf",
        ),
    ],
)  # fmt: skip
def test_a_profile_is_read_with_what_it_includes(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    tuned = read(write_tree(tmp_path, **files)).tuned
    assert isinstance(tuned, Tuned)
    assert (tuned.profiles, tuned.ksm_in) == (("virtual-host",), found)


@pytest.mark.parametrize(
    ("conf", "unknown"),
    [
        ("[main]\ninclude=${f:regex_search_ternary:${x}:a:b:c}\n", ("${f:regex_search_ternary:${x}:a:b:c}",)),
        ("[main]\ninclude=base-${isolated}, throughput\n", ("base-${isolated}",)),
        ("[main]\ninclude=${f:virt_check:a:throughput}\n", ()),
    ],
)
def test_an_include_that_only_tuned_can_make_out_is_told(tmp_path: Path, conf: str, unknown: tuple[str, ...]) -> None:
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
ENABLES_TUNED = {"etc/systemd/system/multi-user.target.wants/tuned.service": ""}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, None),
        ({**CPU_PARTITIONING, **ENABLES_TUNED}, "tuned's profile mine switches it off"),
        (CPU_PARTITIONING, None),
        ({"etc/tmpfiles.d/ksm.conf": "w /sys/kernel/mm/ksm/run - - - - 0\n"}, "/etc/tmpfiles.d/ksm.conf"),
        ({"etc/tmpfiles.d/ksm.conf": "#w /sys/kernel/mm/ksm/run - - - - 0\n"}, None),
        ({"etc/sysfs.d/ksm.conf": "kernel/mm/ksm/run = 2\n"}, "/etc/sysfs.d/ksm.conf"),
        ({"etc/default/qemu-kvm": "KSM_ENABLED=0\n"}, None),
        (
            {
                "etc/default/qemu-kvm": 'KSM_ENABLED="0"\n',
                "usr/lib/systemd/system/qemu-kvm.service": "",
                "etc/systemd/system/multi-user.target.wants/qemu-kvm.service": "",
            },
            "/etc/default/qemu-kvm",
        ),
    ],
)
def test_by_what_a_host_keeps_ksm_off(tmp_path: Path, files: dict[str, str], says: str | None) -> None:
    kept = read_kept_off(Root(str(write_tree(tmp_path, **files))))
    assert (kept is None) == (says is None), kept
    assert (says or "") in (kept or "")


@pytest.mark.parametrize("folder", ["etc", "run"])
def test_a_masked_ksm_service_keeps_it_off(tmp_path: Path, folder: str) -> None:
    unit = write_tree(tmp_path) / folder / "systemd/system/ksm.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.symlink_to("/dev/null")
    assert read_kept_off(Root(str(tmp_path))) == "ksm.service is masked"


WANTED = "etc/systemd/system/multi-user.target.wants/mine.service"
UNIT = "etc/systemd/system/mine.service"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (
            {"etc/tmpfiles.d/a.conf": "w /sys/kernel/mm/ksm/advisor_mode - - - - scan-time\n"},
            [("/etc/tmpfiles.d/a.conf", "advisor_mode", "scan-time")],
        ),
        (
            {
                "etc/tmpfiles.d/a.conf": "",
                "usr/lib/tmpfiles.d/a.conf": "w /sys/kernel/mm/ksm/advisor_mode - - - - scan-time\n",
            },
            [],
        ),
        ({"etc/sysfs.conf": "kernel/mm/ksm/sleep_millisecs = 20\n"}, [("/etc/sysfs.conf", "sleep_millisecs", "20")]),
        (
            {"etc/rc.local": "#!/bin/sh\necho 1000 > /sys/kernel/mm/ksm/pages_to_scan\n"},
            [("/etc/rc.local", "pages_to_scan", "1000")],
        ),
        ({"etc/rc.local": "#!/bin/sh\n# echo 1000 > /sys/kernel/mm/ksm/pages_to_scan\n"}, []),
        ({"etc/rc.local": "#!/bin/sh\ncat /sys/kernel/mm/ksm/run\n"}, []),
        (
            {"etc/udev/rules.d/9.rules": "RUN+=\"/bin/sh -c 'echo 1 > /sys/kernel/mm/ksm/run'\"\n"},
            [("/etc/udev/rules.d/9.rules", "run", "1")],
        ),
        (
            {"var/spool/cron/crontabs/root": "@reboot echo 0 > /sys/kernel/mm/ksm/run\n"},
            [("/var/spool/cron/crontabs/root", "run", "0")],
        ),
        ({UNIT: "[Service]\nExecStart=/bin/sh -c 'echo 5 > /sys/kernel/mm/ksm/sleep_millisecs'\n"}, []),
        (
            {
                WANTED: "",
                UNIT: "[Service]\nExecStart=/bin/sh -c 'echo 5 > \\\n /sys/kernel/mm/ksm/sleep_millisecs'\n",
            },
            [(f"/{UNIT}", "sleep_millisecs", "5")],
        ),
        ({WANTED: "", UNIT: "[Service]\nReadWritePaths=/sys/kernel/mm/ksm/run\n"}, []),
        (
            {
                "etc/systemd/system/timers.target.wants/mine.timer": "",
                UNIT: "[Service]\nExecStart=/bin/sh -c 'echo 5 >/sys/kernel/mm/ksm/sleep_millisecs'\n",
            },
            [(f"/{UNIT}", "sleep_millisecs", "5")],
        ),
        (
            {
                WANTED: "",
                f"{UNIT}.d/more.conf": "[Service]\nExecStartPost=-/opt/ksm.sh -v\n",
                "opt/ksm.sh": '#!/bin/sh\nK=/sys/kernel/mm/ksm\necho 1 > $K/run\necho $N | tee "${K}/pages_to_scan"\n',
            },
            [("/opt/ksm.sh", "run", "1"), ("/opt/ksm.sh", "pages_to_scan", None)],
        ),
        (
            {
                WANTED: "",
                UNIT: "[Service]\nExecStart=/home/u/ksm.sh\n",
                "home/u/ksm.sh": "#!/bin/sh\necho 1 > /sys/kernel/mm/ksm/run\n",
            },
            [],
        ),
        (
            {
                "etc/systemd/system/multi-user.target.wants/mine@a.service": "",
                "etc/systemd/system/mine@.service": "[Service]\nExecStart=sh -c 'echo 7 >/sys/kernel/mm/ksm/run'\n",
            },
            [("/etc/systemd/system/mine@.service", "run", "7")],
        ),
        (
            {
                "etc/systemd/system/multi-user.target.wants/virtksm-ksm.service": "",
                "usr/lib/systemd/system/virtksm-ksm.service": "ExecStart=sh -c 'echo 1 >/sys/kernel/mm/ksm/run'\n",
            },
            [],
        ),
    ],
)
def test_what_else_sets_ksm_at_boot(
    tmp_path: Path, files: dict[str, str], found: list[tuple[str, str, str | None]]
) -> None:
    settings = read(write_tree(tmp_path, **files)).boot.settings
    assert [(one.file, one.name, one.value) for one in settings] == found


def test_what_may_not_be_read_at_boot_is_told(tmp_path: Path) -> None:
    (write_tree(tmp_path) / "etc/rc.local").symlink_to("rc.local")
    (boot,) = read(tmp_path).boot.unread
    assert boot.startswith("/etc/rc.local: Too many levels")


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
    ("file", "says"),
    [("proc/uptime", "/proc/uptime holds no time"), ("proc/50/stat", "/proc/50/stat has no start time")],
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


@pytest.mark.parametrize("uri", ["test:///default", "qemu:///embed?root=/x"])
def test_a_driver_in_this_process_has_no_daemon(tmp_path: Path, uri: str) -> None:
    assert read(write_tree(tmp_path), uri).daemon is None


def test_without_any_daemon_that_is_unknown(tmp_path: Path) -> None:
    here = read(write_tree(tmp_path, **{"proc/50/status": None}))
    assert here.daemon == NO_DAEMON


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
    assert (own.agent, own.off, own.folders.faults, own.folders.state) == (None, None, (), HostState())
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
    assert home.faults() == (f"{home.root} may be written to by other users (mode 0777)",)
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
    (home.agent / "local.json").write_text(dump_host_state(kept), encoding="ascii")
    assert read_own(URI, Config(), home.paths, None).folders.state == kept


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
