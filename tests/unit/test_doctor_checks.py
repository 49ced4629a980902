"""Each check of `virtksm doctor`: what makes it pass, and what makes it warn or fail."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

from tests.lab.healthy_host import (
    AGENT,
    FILES,
    GUEST,
    HEALTHY,
    HOOK_FILE,
    LIBVIRT,
    NOW_S,
    STATUS,
    VAULT,
    with_files,
    with_libvirt,
    with_numbers,
)
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.doctor.checks import CHECKS, examine
from virtksm.doctor.facts import Facts, Here, HookFile
from virtksm.doctor.finding import CannotTell, DoesNotApply, Finding, Verdict, worst
from virtksm.doctor.reading.files import MAX_BYTES
from virtksm.doctor.reading.libvirt import Guests, GuestSeen
from virtksm.doctor.reading.zero_pages import ZeroPages, parse_anonymous
from virtksm.errors import Cause, LibvirtUnreachable
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.guests.xml import GuestXml
from virtksm.model.decision import Pause
from virtksm.model.snapshot import Guest, KsmState, OtherProcesses, Settings
from virtksm.tuning.ownership import HostState, Ownership
from virtksm.values import replace

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
INFO, PASS, WARN, FAIL = VERDICTS
Files = Mapping[str, str | None]
UNREADABLE = CannotTell("/some/file: Permission denied")
ELSEWHERE = replace(HEALTHY, here=DoesNotApply("another machine: run this command there"), known_agent=None)
"""As far as this machine knows: its agent serves no other, and nothing was paused from here."""
UNREACHABLE = LibvirtUnreachable("no", remedy="start it")
GIB = 1024 * 1024
OTHERS = OtherProcesses(kib=2 * GIB, processes=3, unread=0)
NO_XML = Guests(running=(GuestSeen(GUEST),), unread=("the XML of 'web' is no XML",))
OFF = Pause(since="2026-01-01T00:00:00Z")
KSM = "sys/kernel/mm/ksm"
THP = "sys/kernel/mm/transparent_hugepage/enabled"
NODES = "sys/devices/system/node/has_memory"
POLKIT_RULE = "usr/share/polkit-1/rules.d/50-virtksm.rules"
WANTS = "etc/systemd/system/multi-user.target.wants"
UNITS = "usr/lib/systemd/system"
NO_KSM: Files = {name: None for name in FILES if name.startswith(KSM)}
NO_DAEMON: Files = {"proc/50/status": None}
NO_SYSTEMD: Files = {"run/systemd/system/x.conf": None}
NO_SWAP: Files = {"proc/meminfo": FILES["proc/meminfo"].replace("1048576 kB\nSwapFree: 1048576", "0 kB\nSwapFree: 0")}
LITTLE_SWAP: Files = {"proc/meminfo": FILES["proc/meminfo"].replace("SwapFree: 1048576", "SwapFree: 104857")}
POOL: Files = {
    "proc/meminfo": f"{FILES['proc/meminfo']}Hugetlb: 409600 kB\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "90\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0\n",
}
ARC: Files = {"proc/spl/kstat/zfs/arcstats": f"size 4 {400 * 2**20}\nc_min 4 {100 * 2**20}\n"}
THROTTLED: Files = {"sys/module/zfs/parameters/zfs_arc_shrinker_limit": "10000\n"}
LIMITED: Files = {
    "sys/fs/cgroup/machine.slice/memory.max": f"{600 * 2**20}\n",
    "sys/fs/cgroup/machine.slice/memory.current": f"{590 * 2**20}\n",
}
STRICT_MEMINFO = f"{FILES['proc/meminfo']}CommitLimit: 100001 kB\nCommitted_AS: 1 kB\n"
STRICT: Files = {"proc/meminfo": STRICT_MEMINFO, "proc/sys/vm/overcommit_memory": "2\n"}
PROFILE: Files = {"etc/tuned/active_profile": "rt\n", "usr/lib/tuned/rt/tuned.conf": ""}
RT: Files = {**PROFILE, "usr/lib/tuned/rt/script.sh": "echo 5 > ksm/pages_to_scan\n"}
REAL_TIME: Files = {**PROFILE, "usr/lib/tuned/rt/script.sh": "disable_ksm\n"}
SHUT_OFF = {"etc/default/qemu-kvm": "KSM_ENABLED=0\n"}
KEPT = HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=500, applied=500)})


def outcome(facts: Facts, check: str) -> Finding:
    (found,) = [finding for finding in examine(facts) if finding.check == check]
    return found


def files(*changed: Files) -> Facts:
    """Return healthy facts but for these files; of several values the last counts."""
    return with_files(**{name: text for one in changed for name, text in one.items()})


def installed(unit: str) -> Files:
    return {f"{UNITS}/{unit}": "[Unit]\n"}


def enabled(unit: str) -> Files:
    return {**installed(unit), f"{WANTS}/{unit}": ""}


def not_enabled(unit: str) -> Files:
    return {f"{WANTS}/{unit}": None}


def active(unit: str) -> Files:
    return {**installed(unit), f"sys/fs/cgroup/system.slice/{unit}/cgroup.procs": "77\n"}


def ksm(name: str, text: str | None) -> Files:
    return {f"{KSM}/{name}": text}


def process(name: str, user: int = 0) -> Files:
    return {"proc/77/status": STATUS.format(name=name, pid=77, uid=user)}


def at_boot(name: str, value: str) -> Files:
    return {"etc/tmpfiles.d/x.conf": f"w /{KSM}/{name} - - - - {value}\n"}


def by_script(name: str, value: str) -> Files:
    return {"etc/rc.local": f"#!/bin/sh\necho {value} > /{KSM}/{name}\n"}


def here(
    *hooks: HookFile, changed: Files | None = None, uri: str = "qemu:///system", reloaded_s: float | None = None
) -> Here:
    found = with_files(**(changed or {})).here
    assert isinstance(found, Here)
    made = Here(found.root, uri, clock=lambda: NOW_S, state_age_s={"libvirtd.service": reloaded_s}.get)
    made.hooks = list(hooks)
    return made


def hooked(*hooks: HookFile, changed: Files | None = None) -> Facts:
    """Return healthy facts but for these hooks, and files."""
    return replace(HEALTHY, here=here(*hooks, changed=changed))


def aged(age_s: float) -> HookFile:
    return HOOK_FILE._replace(changed_at_s=NOW_S - age_s)


def without_agent(facts: Facts) -> Facts:
    return replace(facts, known_agent=None)


def with_agent(facts: Facts = HEALTHY, **changed: Mapping[str, object]) -> Facts:
    return replace(facts, known_agent={**AGENT, **{name: {**AGENT[name], **part} for name, part in changed.items()}})


def after(outcome: str, facts: Facts = HEALTHY, **refused: str) -> Facts:
    """Return facts with an agent whose last pass had this outcome, and the causes of refusals, by parameter."""
    refusals = [{"parameter": parameter, "cause": cause} for parameter, cause in refused.items()]
    return with_agent(facts, last_pass={"outcome": outcome, "refused": refusals})


def decided(*rewriters: str, other_processes_kib: int | None = None) -> dict[str, object]:
    numbers = {"other_processes_kib": other_processes_kib}
    return {"decision": {"numbers": numbers, "rewriters": rewriters}}


ONLY_VAULT = [{"uuid": VAULT.uuid}]
SILENT = {"answers": False, "silent_since": "noon", "waiting_for": "pass", "error": "it hangs"}
NO_ROOM = {"failed": [{"message": "no room"}]}


def configured(facts: Facts, **configuration: object) -> Facts:
    config = Config(**configuration)  # type: ignore[arg-type]  # tests name fields
    return replace(facts, configuration=config, keys_set=frozenset({"adaptive.merge_across_nodes"}))


DROP_IN = "etc/virtksm/conf.d/50-mine.toml"


def hidden_configuration(
    *, folder: int = 0o755, file: int = 0o644, is_its_groups: bool = False, user: str | None = "virtksm"
) -> Facts:
    """Return facts of a host with a drop-in and its folder of these modes."""
    gid = os.getgid() if is_its_groups else os.getgid() + 1
    facts = files(
        {DROP_IN: "", "etc/group": f"virtksm:x:{gid}:\n", **({} if user else {"etc/passwd": "root:x:0:0::/:/bin/sh\n"})}
    )
    path = Path(facts.this_machine.root.path(DROP_IN))
    path.chmod(file)
    path.parent.chmod(folder)
    return replace(facts, agents_files=(f"/{DROP_IN}",))


def nodes(**configuration: object) -> Facts:
    """Return facts of a host with two NUMA nodes and this configuration, written down."""
    return configured(files({NODES: "0-1\n"}), **configuration)


def confined(by: str, *, program: str = "/usr/bin/virtksm", label: str = "", executes: str = "") -> Facts:
    """Return facts of a host with SELinux where its hook has a label, else with AppArmor.

    SELinux lets the daemon execute what has the label `executes`.
    """
    on = {"sys/fs/selinux/enforce": "1"} if label else {"sys/module/apparmor/parameters/enabled": "Y\n"}
    facts = hooked(HOOK_FILE._replace(selinux_label=label), changed={**on, "proc/50/attr/current": f"{by}\n\0"})
    assert isinstance(facts.here, Here)
    facts.here.may_execute = lambda domain, label: (domain, label) == (by, executes)
    link = Path(facts.here.root.path("usr/bin/virtksm"))
    if program != "/usr/bin/virtksm":
        link.unlink()
        link.symlink_to(program)
    return facts


def refused_under(context: str, cause: str) -> Facts:
    facts = files({"sys/fs/selinux/enforce": "1", "proc/50/attr/current": context})
    return after("refused", facts, pages_to_scan=cause)


REPORTING = GuestXml(reports_free_pages=True)


def with_xml(web: GuestXml, vault: GuestXml, **config: tuple[str, ...]) -> Facts:
    guests = Guests(running=(GuestSeen(GUEST, web), GuestSeen(VAULT, vault)))
    return replace(configured(HEALTHY, **config), libvirt=replace(LIBVIRT, guests=guests))


def unmerged(*, is_read: bool = True) -> Facts:
    """Return facts of guests that can merge by their XML, one of them private and unmerged, as this user may read."""
    vault = GuestSeen(VAULT, GuestXml(), is_unmerged=is_read)
    return with_guests(running=(GuestSeen(GUEST, GuestXml()), vault))


def excluding(policy: str = "adaptive", **agent: Mapping[str, object]) -> Facts:
    """Return healthy facts where rewriters are looked for, and what the agent says of them."""
    return with_agent(configured(HEALTHY, policy=policy, adaptive=AdaptiveParams(exclude_rewriters=True)), **agent)


def with_process(guest: Guest, **counted: bool) -> Facts:
    process = GuestProcess(arguments=(), ksm=ProcessKsm(**counted))
    running = HEALTHY.guests.running
    return with_guests(running=tuple(one._replace(process=process) if one.guest == guest else one for one in running))


def with_guests(**changed: object) -> Facts:
    return with_libvirt(guests=replace(HEALTHY.guests, **changed))


def with_zero_pages(*sampled: tuple[int, int]) -> Facts:
    return with_guests(zero_pages=tuple(ZeroPages(*one) for one in sampled))


def swapped(kib: int) -> Facts:
    """Return healthy facts but for a guest that holds 1 GiB, and this much in swap."""
    process = GuestProcess(arguments=(), ksm=None, swapped_kib=kib)
    return with_guests(running=(GuestSeen(replace(GUEST, rss_kib=GIB), process=process), GuestSeen(VAULT)))


def limited(limit_gib: int, memory_gib: int, *, has_hugepages: bool = False) -> Facts:
    limited = GuestXml(limit_kib=limit_gib * GIB, memory_kib=memory_gib * GIB, has_hugepages=has_hugepages)
    return with_xml(limited, GuestXml(limit_kib=GIB))


def with_groups(web: str | None, vault: str | None, *, is_kept_out: bool = False) -> Facts:
    return with_xml(GuestXml(group=web), GuestXml(group=vault, is_kept_out=is_kept_out))


def with_others(others: OtherProcesses | None, *, seen_kib: int | None) -> Facts:
    return with_agent(with_guests(other_processes=others), last_pass=decided(other_processes_kib=seen_kib))


def listening() -> Facts:
    """Return healthy facts but for the agent, in whose place systemd's socket unit listens."""
    return without_agent(files(enabled("virtksm-retune.socket")))


def scanning_without_agent(*hooks: HookFile, **changed: int) -> Facts:
    numbers = {f"{KSM}/{name}": f"{value}\n" for name, value in {"pages_to_scan": 500, **changed}.items()}
    return replace(hooked(*hooks, changed=numbers), known_agent=None, state=KEPT)


CASES: list[tuple[str, Facts, Verdict, str]] = [
    ("ksm_built", files(NO_KSM, {"proc/sys/kernel/osrelease": None}), FAIL, "of unknown release has no /sys/kernel/mm"),
    ("ksm_run", with_numbers(run=0), FAIL, "run is 0: nothing merges"),
    ("ksm_run", replace(with_numbers(run=0), paused=OFF), INFO, "virtksm is paused"),
    ("ksm_run", with_numbers(run=7), WARN, "cannot tell: run is 7"),
    ("ksm_run", files(ksm("run", "1" * 30)), WARN, "cannot tell: /sys/kernel/mm/ksm/run holds no number"),
    ("ksm_run", files(ksm("run", "1\n" * MAX_BYTES)), WARN, "cannot tell: /sys/kernel/mm/ksm/run is longer"),
    ("ksm_run", files(NO_KSM), INFO, "no KSM in this kernel"),
    ("ksm_run", files(ksm("run", "0"), REAL_TIME, enabled("tuned.service")), INFO, "kept off: tuned's profile rt sw"),
    ("ksm_run", files(ksm("run", "0"), REAL_TIME), FAIL, "nothing merges"),
    ("ksm_run", files(ksm("run", "0"), at_boot("run", "0")), INFO, "/etc/tmpfiles.d/x.conf switches it"),
    ("ksm_run", files(ksm("run", "0"), by_script("run", "0")), FAIL, "nothing merges"),
    ("ksm_run", files(ksm("run", "0"), SHUT_OFF), FAIL, "nothing merges"),
    ("ksm_run", files(ksm("run", "0"), SHUT_OFF, enabled("qemu-kvm.service")), INFO, "/etc/default/qemu-kvm"),
    ("ksm_boot", files(not_enabled("virtksm-ksm.service")), WARN, "no unit or file is seen"),
    ("ksm_boot", files(not_enabled("virtksm-ksm.service"), enabled("ksm.service")), PASS, "ksm.service"),
    ("ksm_boot", files(not_enabled("virtksm-ksm.service"), at_boot("run", "1")), PASS, "/etc/tmpfiles.d/x.conf"),
    ("ksm_boot", files(at_boot("run", "2")), WARN, "kept off at the next boot: /etc/tmpfiles.d/x.conf"),
    ("ksm_boot", files(NO_SYSTEMD), INFO, "no systemd"),
    ("ksm_boot", with_numbers(run=0), INFO, "it is off"),
    (
        "advisor",
        files(ksm("advisor_mode", "none [scan-time]\n"), at_boot("advisor_mode", "scan-time")),
        FAIL,
        "scan-time: the kernel refuses pages_to_scan; /etc/tmpfiles.d/x.conf sets advisor_mode to scan-time at boot",
    ),
    ("advisor", files(ksm("advisor_mode", None)), PASS, "this kernel has none"),
    ("advisor", files(ksm("advisor_mode", "\x1b[2J")), WARN, "cannot tell: /sys/kernel/mm/ksm/advisor_mode holds no"),
    ("max_page_sharing", with_numbers(max_page_sharing=None), PASS, "no limit"),
    ("max_page_sharing", with_numbers(max_page_sharing=19), WARN, "costs 5 %"),
    ("max_page_sharing", with_numbers(max_page_sharing=20), PASS, "is 20"),
    ("max_page_sharing", with_numbers(pages_shared=2, pages_sharing=3), PASS, "a merged page serves 2.5 places"),
    ("max_page_sharing", with_numbers(max_page_sharing=257), WARN, "takes longer"),
    ("use_zero_pages", with_numbers(use_zero_pages=1), PASS, "they are counted"),
    ("use_zero_pages", with_numbers(use_zero_pages=1, ksm_zero_pages=None), WARN, "before 6.6"),
    ("use_zero_pages", with_numbers(redhat_only_zero_pages=1), INFO, "zero pages merge, and nothing else does"),
    ("use_zero_pages", files({"proc/vmstat": None}), PASS, "is off: they merge as any others"),
    ("use_zero_pages", HEALTHY, PASS, "visits before the agent; how many there are is for root to measure"),
    ("use_zero_pages", replace(HEALTHY, libvirt=UNREACHABLE), PASS, "for root to measure"),
    ("use_zero_pages", with_zero_pages(), PASS, "some 0.0 MiB of 0.0 MiB"),
    ("use_zero_pages", with_zero_pages((4 * GIB, GIB // 8), (GIB, GIB // 4)), WARN, "some 384.0 MiB of 5.0 GiB of"),
    ("use_zero_pages", with_zero_pages((8 * GIB, GIB * 3 // 8)), PASS, "some 384.0 MiB of 8.0 GiB of"),
    ("use_zero_pages", with_zero_pages((GIB // 2, GIB // 4)), PASS, "some 256.0 MiB of 512.0 MiB of"),
    ("huge_pages", configured(HEALTHY, adaptive=AdaptiveParams(engage="always")), WARN, "each merge splits a huge"),
    ("huge_pages", files({THP: "always madvise [never]\n"}), PASS, "makes none"),
    ("huge_pages", files({THP: None}), PASS, "makes none"),
    ("numa", files({NODES: None}), PASS, "one NUMA node"),
    ("numa", files({NODES: "x\n"}), WARN, "cannot tell: /sys/devices/system/node/has_memory holds no list"),
    ("numa", files({NODES: "0-1\n"}), WARN, "merge_across_nodes is 1 with 2 NUMA nodes"),
    ("numa", nodes(adaptive=AdaptiveParams(merge_across_nodes="keep")), INFO, "or to leave that as it is"),
    ("numa", nodes(adaptive=AdaptiveParams(merge_across_nodes="never")), WARN, "is 1 with 2"),
    ("numa", files({NODES: "0-1\n"}, ksm("merge_across_nodes", "0")), PASS, "each merges its own"),
    ("numa", files({NODES: "0-1\n"}, ksm("merge_across_nodes", None)), PASS, "does not separate them"),
    ("swap", files(LITTLE_SWAP), WARN, "swap is nearly full"),
    ("swap", files(NO_SWAP), PASS, "would fit into memory without"),
    ("swap", files(NO_SWAP, ksm("pages_sharing", "900000")), WARN, "OOM killer"),
    ("swap", files({"proc/meminfo": "garbage"}), WARN, "cannot tell: /proc/meminfo: SwapTotal is missing"),
    ("swap", files({"proc/meminfo": None}), WARN, "cannot tell: /proc/meminfo is missing: is /proc mounted"),
    ("headroom", HEALTHY, PASS, "unmerging takes up to 39.1 MiB, 195.3 MiB are available"),
    ("headroom", with_numbers(pages_shared=0, pages_sharing=0), PASS, "nothing is merged"),
    ("headroom", with_numbers(pages_sharing=100_000), WARN, "would go to swap"),
    ("headroom", with_numbers(pages_sharing=1_000_000), FAIL, "are missing, swap included"),
    ("headroom", with_numbers(pages_shared=None), WARN, "cannot tell: KSM's counters are missing"),
    ("headroom", files({"proc/meminfo": "MemTotal: 1 kB\n"}), WARN, "cannot tell: /proc/meminfo: MemFree is missing"),
    (
        "headroom",
        files({"proc/meminfo": FILES["proc/meminfo"].replace("MemAvailable", "Other")}),
        WARN,
        "cannot tell: /proc/meminfo: MemAvailable is missing",
    ),
    ("headroom", files(ARC), PASS, "495.3 MiB are available"),
    ("headroom", files(LIMITED), WARN, "10.0 MiB are available: 29.1 MiB would go to swap"),
    ("huge_page_pool", files(POOL), PASS, "400.0 MiB, 180.0 MiB unused: guests outside of it share 624.0 MiB"),
    (
        "huge_page_pool",
        files(POOL, {"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "98\n"}),
        WARN,
        "196.0 MiB of its 400.0 MiB are unused, and of the other memory only 195.3 MiB are available",
    ),
    ("overcommit", files(STRICT), WARN, "new guests get 97.7 MiB at most, whatever merges; 195.3 MiB are available"),
    ("overcommit", files(STRICT, {"proc/meminfo": STRICT_MEMINFO.replace("10000", "30000")}), PASS, "get 293.0 MiB"),
    ("overcommit", HEALTHY, PASS, "may ask for more memory"),
    ("zfs_cache", files(ARC), PASS, "up to 300.0 MiB come back"),
    ("zfs_cache", files(ARC, THROTTLED), WARN, "but slowly, as zfs_arc_shrinker_limit is 10000"),
    ("zfs_cache", files({"proc/spl/kstat/zfs/arcstats": "size 4 -1\n"}), WARN, "cannot tell"),
    ("memory_limits", files(LIMITED), WARN, "10.0 MiB of it are left: unmerging takes up to 39.1 MiB"),
    ("memory_limits", files(LIMITED, ksm("pages_sharing", "0")), PASS, "guests may have 600.0 MiB together"),
    ("libvirt_reachable", replace(HEALTHY, libvirt=UNREACHABLE), FAIL, "no"),
    ("libvirt_version", HEALTHY, PASS, "daemon 9.0.0, client 9.0.0"),
    ("libvirt_version", with_libvirt(version=10_001), FAIL, "0.10.1, client 9.0.0: without virNodeSetMemoryParameters"),
    ("libvirt_version", with_libvirt(version=8_000_000), WARN, "older than the tested 9.0"),
    ("libvirt_parameters", HEALTHY, PASS, "pages_to_scan 0, sleep_millisecs 10000, merge_across_nodes 1"),
    ("libvirt_parameters", with_libvirt(ksm=None), FAIL, "not offered: pages_to_scan, sleep_millisecs"),
    (
        "libvirt_parameters",
        with_libvirt(ksm=KsmState(settings=Settings(pages_to_scan=1, sleep_millisecs=None))),
        FAIL,
        "not offered: sleep_millisecs",
    ),
    ("permission", with_libvirt(refused=Cause.NOT_AUTHORIZED), FAIL, "refuses this user (not authorized)"),
    ("permission", with_libvirt(refused=UNREADABLE), WARN, "cannot tell: /some/file: Permission denied"),
    ("permission", with_libvirt(uri="qemu:///session"), FAIL, "a session's daemon"),
    ("sys_writable", HEALTHY, PASS, "libvirtd (pid 50) sees it writable"),
    ("sys_writable", files({"proc/50/mountinfo": "1 0 0:5 / /sys ro - sysfs sysfs rw x\n"}), FAIL, "sees /sys read-on"),
    ("sys_writable", files({"proc/50/mountinfo": "x"}), WARN, "cannot tell: /proc/50/mountinfo names no mount over"),
    ("sys_writable", files({"proc/50/mountinfo": None}), WARN, "cannot tell: process 50 has ended"),
    ("sys_writable", replace(HEALTHY, here=here(uri="qemu:///embed?root=/x")), INFO, "embedded"),
    ("sys_writable", replace(HEALTHY, here=here(uri="test:///default")), INFO, "embedded"),
    ("sys_writable", replace(HEALTHY, here=here(uri="qemu+unix:///system?socket=/x")), PASS, "sees it writable"),
    ("sys_writable", replace(HEALTHY, here=here(uri="qemu+ssh://this.machine/system")), PASS, "sees it writable"),
    ("sys_writable", files(NO_DAEMON), WARN, "cannot tell: no process of libvirt's daemon"),
    ("sys_writable", replace(files(NO_DAEMON), libvirt=UNREACHABLE), INFO, "no connection to libvirt"),
    ("sys_writable", files({"proc/1/status": None}), WARN, "cannot tell: /proc hides"),
    ("sys_writable", refused_under("u:r:virtqemud_t:s0", "unknown"), WARN, "confines it (virtqemud_t)"),
    ("sys_writable", refused_under("u:r:virtqemud_t:s0", "advisor_on"), PASS, "(virtqemud_t), and no"),
    ("sys_writable", refused_under("u:r:virtd_t:s0", "unknown"), PASS, "writable"),
    ("ksmtuned", files(process("ksmtuned")), FAIL, "ksmtuned runs"),
    ("ksmtuned", files(process("ksmtuned", user=1000)), PASS, "neither"),
    ("ksmtuned", files(process("ksmtuned2")), PASS, "neither"),
    ("ksmtuned", files(enabled("ksmtuned.service")), WARN, "ksmtuned.service is enabled and will run after the next"),
    ("ksmtuned", files(installed("ksmtuned.service")), PASS, "installed, and neither runs nor is enabled"),
    ("ksmtuned", files({f"{WANTS}/ksmtuned.service": ""}), PASS, "neither installed nor running"),
    ("tuned", files({"etc/tuned/active_profile": None}), PASS, "no active profile"),
    ("tuned", files(RT, process("tuned")), WARN, "rt mentions KSM in /usr/lib/tuned/rt/script.sh: it may stop or set"),
    ("tuned", files(RT, enabled("tuned.service")), WARN, "it may stop or set KSM"),
    ("tuned", files(RT), PASS, "neither runs nor is enabled"),
    ("tuned", files(REAL_TIME, active("tuned.service")), WARN, "virtksm has nothing to do here"),
    (
        "tuned",
        files({"usr/lib/tuned/virtual-host/tuned.conf": "include=base-${isolated}, throughput"}),
        WARN,
        "cannot tell: profile virtual-host includes base-${isolated}",
    ),
    ("mom", files(process("momd", user=36)), WARN, "momd runs"),
    ("mom", files(process("momd", user=1000)), PASS, "neither"),
    ("mom", files(process("supervdsmd")), WARN, "supervdsmd runs"),
    ("mom", files(active("mom-vdsm.service")), WARN, "mom-vdsm.service runs"),
    ("mom", files({"sys/fs/cgroup/systemd/system.slice/momd.service/cgroup.procs": "7\n"}), WARN, "momd.service runs"),
    ("mom", files(enabled("mom-vdsm.service")), WARN, "mom-vdsm.service is enabled"),
    (
        "mom",
        files(
            enabled("vdsmd.service"),
            installed("mom-vdsm.service"),
            {"etc/systemd/system/vdsmd.service.d/m.conf": "[Unit]\n  Requires=x.service mom-vdsm.service"},
        ),
        WARN,
        "mom-vdsm.service is enabled",
    ),
    ("virt_handler", files(process("virt-handler")), WARN, "ksmConfiguration"),
    ("node_manager", files(process("harvester-node-")), WARN, "harvester-node-manager runs"),
    ("ksm_throttler", files(process("kata-ksm-thrott")), FAIL, "kata-ksm-throttler runs"),
    ("qemu_kvm", files(installed("qemu-kvm.service")), PASS, "not enabled"),
    ("qemu_kvm", files(enabled("qemu-kvm.service")), PASS, "before virtksm"),
    ("qemu_kvm", files(enabled("qemu-kvm.service"), SHUT_OFF), WARN, "KSM_ENABLED=0"),
    ("boot", files(at_boot("advisor_mode", "scan-time")), WARN, "/etc/tmpfiles.d/x.conf sets advisor_mode"),
    ("boot", files(at_boot("advisor_mode", "none")), PASS, "none found"),
    ("boot", files(at_boot("run", "0")), WARN, "/etc/tmpfiles.d/x.conf sets run to 0"),
    ("boot", files(at_boot("run", "1")), PASS, "none found"),
    ("boot", files(SHUT_OFF), PASS, "none found"),
    ("boot", files(by_script("run", "$N")), WARN, "/etc/rc.local sets run at boot"),
    ("boot", files(at_boot("pages_to_scan", "500")), PASS, "none found"),
    ("boot", files(at_boot("merge_across_nodes", "0")), PASS, "none found"),
    ("boot", files(by_script("pages_to_scan", "500")), WARN, "pages_to_scan to 500"),
    ("hook_installed", hooked(), INFO, "needed only where no agent runs"),
    ("hook_installed", with_libvirt(version=6_004_000), FAIL, "libvirt 6.4.0 knows no qemu.d"),
    ("hook_executable", hooked(HOOK_FILE._replace(is_executable=False)), FAIL, "skips it"),
    ("hook_executable", hooked(HOOK_FILE._replace(is_roots=False)), FAIL, "users other than root"),
    ("hook_seen", hooked(aged(4999.0)), INFO, "an agent hears of guests without"),
    ("hook_seen", hooked(aged(4999.96)), PASS, "has started or reloaded since"),
    ("hook_seen", without_agent(hooked(aged(4999.94))), WARN, "newer than libvirtd (pid 50)"),
    ("hook_seen", replace(HEALTHY, here=here(aged(9.0), reloaded_s=8.0)), PASS, "has started or reloaded since"),
    ("hook_seen", replace(HEALTHY, here=here(aged(7.0), reloaded_s=8.0)), INFO, "every hook is newer"),
    ("hook_seen", hooked(HOOK_FILE._replace(path="/etc/libvirt/hooks/qemu"), aged(1.0)), PASS, "reloaded since"),
    ("hook_seen", hooked(aged(1.0), HOOK_FILE._replace(is_executable=False)), INFO, "every hook is newer"),
    ("hook_seen", files({"proc/uptime": "soon"}), WARN, "cannot tell: /proc/uptime holds no time"),
    ("hook_seen", files({"proc/50/stat": "soon"}), WARN, "cannot tell: /proc/50/stat has no start time"),
    ("hook_seen", replace(files(NO_DAEMON), libvirt=UNREACHABLE), INFO, "no connection to libvirt"),
    ("hook_program", files({"usr/bin/virtksm": None}), PASS, "an agent listens"),
    ("hook_program", without_agent(files({"usr/bin/virtksm": None})), FAIL, "no agent listens"),
    ("hook_confinement", confined("libvirtd (enforce)", program="/usr/bin/true"), PASS, "libvirtd (enforce)"),
    ("hook_confinement", confined("libvirtd (enforce)"), WARN, "virtksm leads to"),
    ("hook_confinement", confined("libvirtd (enforce)", program="/nonexistent"), PASS, "libvirtd (enforce)"),
    ("hook_confinement", confined("libvirtd (complain)"), PASS, "complain"),
    ("hook_confinement", confined("unconfined"), PASS, "not confined"),
    ("hook_confinement", confined("u:r:virtd_t:s0", label="u:o:bin_t:s0", executes="u:o:bin_t:s0"), PASS, "bin_t"),
    ("hook_confinement", confined("u:r:virtqemud_t:s0", label="u:o:virt_hook_t:s0"), FAIL, "no guest starts"),
    ("hook_confinement", confined("u:r:unconfined_t:s0", label="u:o:virt_hook_t:s0"), PASS, "not confined"),
    ("guests_merge", HEALTHY, PASS, "2 guests run, 1 of them kept out"),
    (
        "guests_merge",
        with_xml(GuestXml(has_hugepages=True), GuestXml(is_kept_out=True)),
        WARN,
        "2 of 2 cannot: web (huge pages), vault (nosharepages",
    ),
    ("guests_merge", with_libvirt(guests=NO_XML), WARN, "cannot tell: the XML of 'web'"),
    ("guests_merge", with_process(GUEST, is_mergeable=False), WARN, "1 of 2 cannot: web (QEMU offers nothing to KSM)"),
    ("private_guests", with_xml(GuestXml(), GuestXml()), PASS, "none is private"),
    ("private_guests", with_xml(GuestXml(), GuestXml(), private_guests=("v*",)), FAIL, "1 can merge: vault"),
    ("private_guests", with_xml(GuestXml(is_private=True), GuestXml()), FAIL, "1 can merge: web"),
    ("private_guests", unmerged(), PASS, "1 of 2 guests are private, and kept out"),
    ("private_guests", with_agent(unmerged(is_read=False), switched={"unmerged": ONLY_VAULT}), PASS, "kept out"),
    ("private_guests", with_agent(unmerged(is_read=False), switched=NO_ROOM), FAIL, "1 can merge: vault"),
    ("guests_merge", unmerged(), PASS, "1 of them kept out"),
    ("private_guests", with_process(VAULT, merges_any=True), FAIL, "1 can merge, as KSM is on for the whole process"),
    ("private_guests", with_process(VAULT, merges_any=False), PASS, "kept out"),
    ("private_guests", with_process(GUEST, merges_any=True), PASS, "kept out"),
    ("private_guests", with_libvirt(guests=NO_XML), WARN, "cannot tell"),
    ("rewriters", HEALTHY, PASS, "exclude_rewriters is off"),
    ("rewriters", excluding(), PASS, "kept out for a day: none"),
    ("rewriters", excluding(last_pass=decided("vault"), switched={"unmerged": ONLY_VAULT}), PASS, "a day: vault"),
    ("rewriters", excluding(last_pass=decided("vault"), switched=NO_ROOM), WARN, "1 still merge: vault"),
    (
        "rewriters",
        excluding(last_pass=decided("vault"), switched={"merging": ONLY_VAULT}),
        PASS,
        "kept out for a day: none; let merge by `virtksm guest merge`: vault",
    ),
    ("rewriters", excluding(switched={"rewriters_unknown": "no right"}), WARN, "cannot tell: no right"),
    ("rewriters", excluding("observe", last_pass=decided("vault")), PASS, "adaptive would keep out: vault"),
    ("rewriters", excluding("ksmtuned", switched={"rewriters_unknown": "no right"}), PASS, "exclude_rewriters is off"),
    ("rewriters", replace(excluding(), known_agent=None), INFO, "no agent runs"),
    ("groups", HEALTHY, PASS, "no guest declares one"),
    ("groups", with_groups("a", "a"), PASS, "1 declared, and guests of one alone can merge"),
    ("groups", with_groups("a", "b"), WARN, "different groups can merge: a (1), b (1)"),
    ("groups", with_agent(with_groups("a", "b"), switched={"unmerged": ONLY_VAULT}), PASS, "2 declared"),
    ("groups", with_groups("b", None), WARN, "can merge: b (1), no group (1)"),
    ("groups", with_groups("a", "b", is_kept_out=True), PASS, "2 declared"),
    ("free_pages", with_xml(REPORTING, REPORTING), PASS, "all 2 that can"),
    ("free_pages", with_xml(GuestXml(), REPORTING), INFO, "1 of 2 guests do not: web. It is the cheapest saving"),
    ("free_pages", with_xml(GuestXml(pins_memory=True), GuestXml(is_confidential=True)), PASS, "no guest runs"),
    ("free_pages", with_libvirt(guests=NO_XML), WARN, "cannot tell"),
    ("other_processes_seen", with_others(OTHERS, seen_kib=GIB), PASS, "2.0 GiB of 3 processes that"),
    ("other_processes_seen", with_others(OTHERS, seen_kib=GIB - 1), WARN, "the agent sees 1024.0 MiB"),
    ("other_processes_seen", with_others(replace(OTHERS, processes=1), seen_kib=None), PASS, "2.0 GiB of 1 process t"),
    ("other_processes_seen", without_agent(with_others(OTHERS, seen_kib=0)), PASS, "2.0 GiB of 3 processes"),
    ("other_processes_seen", with_others(replace(OTHERS, unread=7), seen_kib=0), INFO, "whether 7 processes may merge"),
    ("other_processes_seen", with_others(None, seen_kib=None), INFO, "before 6.1"),
    ("guests_swapped", swapped(GIB // 8), WARN, "128.0 MiB are in swap: web (128.0 MiB). KSM merges nothing there"),
    ("guests_swapped", swapped(GIB // 10), PASS, "102.4 MiB are in swap"),
    ("guest_limits", limited(1, 2), WARN, "1 of 2 may hold less than their memory: web (1"),
    ("guest_limits", limited(2, 1), PASS, "no memtune is below"),
    ("guest_limits", limited(1, 2, has_hugepages=True), PASS, "no memtune is below"),
    ("guests_read", with_agent(last_pass={"sensed": {"guests": 6, "guests_unread": 6}}), WARN, "read 6 of 6 guests"),
    ("guests_read", replace(HEALTHY, known_agent=None), INFO, "no agent"),
    ("agent_boot", files(not_enabled("virtksm.service")), WARN, "it runs, and virtksm.service is not enabled"),
    ("agent_boot", files({f"{UNITS}/virtksm.service": None}), INFO, "not started by"),
    ("agent_boot", replace(HEALTHY, known_agent=None), INFO, "none runs"),
    ("agent_permission", replace(HEALTHY, known_agent=None), PASS, "50-virtksm.rules names the user"),
    ("agent_permission", with_agent(libvirt=SILENT), PASS, "50-virtksm.rules names the user"),
    ("agent_permission", without_agent(files({POLKIT_RULE: "none"})), WARN, "no rule of polkit's"),
    ("agent_permission", without_agent(files({"etc/passwd": None})), INFO, "no user virtksm"),
    ("configuration", replace(HEALTHY, configuration=("one fault", "another")), FAIL, "one fault (and 1 more)"),
    ("configuration", hidden_configuration(file=0o644), PASS, "policy adaptive"),
    ("configuration", hidden_configuration(file=0o600), WARN, "virtksm, as whom the packaged agent runs, cannot read"),
    ("configuration", hidden_configuration(folder=0o700), WARN, "cannot read /etc/virtksm/conf.d"),
    ("configuration", hidden_configuration(file=0o640), WARN, "cannot read /etc/virtksm/conf.d/50-mine.toml"),
    ("configuration", hidden_configuration(file=0o640, is_its_groups=True), PASS, "policy adaptive"),
    ("configuration", hidden_configuration(file=0o600, user=None), PASS, "policy adaptive"),
    ("not_paused", replace(HEALTHY, paused=OFF), INFO, "paused since 2026-01-01T00:00:00Z"),
    ("not_paused", replace(HEALTHY, paused=Pause(damage="/x: is damaged")), WARN, "counts as paused"),
    ("agent", without_agent(files(NO_SYSTEMD)), INFO, "the hook's pokes start passes"),
    ("agent", listening(), INFO, "the hook's pokes start passes"),
    ("agent", replace(HEALTHY, known_agent=None), WARN, "no hook's poke starts a pass"),
    ("agent", without_agent(hooked(changed=NO_SYSTEMD)), WARN, "nothing tunes KSM"),
    ("not_paused", replace(ELSEWHERE, known_agent=None, paused=OFF), INFO, "paused since 2026-01-01T00:00"),
    ("configuration", replace(ELSEWHERE, configuration=("one fault",)), FAIL, "one fault"),
    ("agent", with_agent(libvirt=SILENT), FAIL, "since noon, waiting for pass (it hangs)"),
    ("agent", after("refused", pages_to_scan="advisor_on"), FAIL, "refused: pages_to_scan, advisor on"),
    ("agent", after("held"), FAIL, "earlier"),
    ("agent", after("yielded"), WARN, "it has yielded to another program that sets KSM (0 pages every"),
    ("agent", after("yielded", with_numbers(sleep_millisecs=200)), WARN, "so does Ubuntu's qemu-kvm"),
    ("agent", after("yielded", with_numbers(pages_to_scan=1250)), WARN, "so do ksmtuned and what follows"),
    ("agent", after("yielded", ELSEWHERE), WARN, "it has yielded"),
    ("stranded", with_agent(stranded={"possible": True, "worst_core_percent": 83.4}), FAIL, "83 % of a core"),
    ("stranded", with_agent(stranded={"possible": True, "worst_core_percent": None}), FAIL, "unknown share of a core"),
    ("stranded", with_agent(stranded={"possible": None}), WARN, "cannot tell"),
    ("stranded", scanning_without_agent(), FAIL, "500 pages every 10000 ms"),
    ("stranded", scanning_without_agent(run=0), PASS, "no"),
    ("stranded", scanning_without_agent(pages_to_scan=100), PASS, "no"),
    ("stranded", listening(), INFO, "the hook's passes"),
    ("stranded", scanning_without_agent(HOOK_FILE), FAIL, "500 pages every 10000 ms"),
    ("folders", replace(HEALTHY, faults=("/r is not a folder",)), FAIL, "/r is not a folder"),
    ("folders", replace(HEALTHY, state=UNREADABLE), WARN, "cannot tell"),
]


@pytest.mark.parametrize(("check", "facts", "verdict", "detail"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_a_check_says(check: str, facts: Facts, verdict: Verdict, detail: str) -> None:
    found = outcome(facts, check)
    assert (found.verdict, detail in found.detail) == (verdict, True), found
    assert bool(found.remedy) == (verdict in (WARN, FAIL)), "who is warned is told what to do, and nobody else"
    assert "\n" not in (found.remedy or "")


def test_what_keeps_virtksm_from_setting_ksm_is_no_fault_where_it_only_observes() -> None:
    spoiled = files(process("ksmtuned"), {f"{KSM}/advisor_mode": "none [scan-time]\n"})
    for check, detail in (("ksmtuned", "ksmtuned runs"), ("advisor", "advisor_mode is scan-time")):
        assert outcome(spoiled, check).verdict == FAIL
        found = outcome(configured(spoiled, policy="observe"), check)
        assert (found.verdict, found.remedy) == (INFO, None)
        assert detail in found.detail
        assert found.detail.endswith("policy observe leaves KSM to others")
    off = with_numbers(run=0)
    assert outcome(configured(off, policy="observe"), "ksm_run").verdict == FAIL
    seen = after("observed")
    assert (outcome(seen, "agent").verdict, outcome(seen, "agent").detail) == (PASS, f"observes {AGENT['uri']}")


def test_every_check_passes_on_a_healthy_host_and_is_seen_to_find_something() -> None:
    assert [(one.check, one.verdict) for one in examine(HEALTHY)] == [(check.name, PASS) for check in CHECKS]
    finding = {check for check, _, verdict, detail in CASES if verdict in (WARN, FAIL) and "cannot tell" not in detail}
    assert finding == {check.name for check in CHECKS} - {"free_pages"}, "which names a saving, and no fault"
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_another_machine_is_not_judged_and_never_passes_what_only_its_own_files_tell() -> None:
    findings = examine(ELSEWHERE)
    unjudged = {finding.check for finding in findings if "another machine" in finding.detail}
    assert unjudged == {
        *("ksm_built", "ksm_run", "advisor", "max_page_sharing", "use_zero_pages", "huge_pages", "numa"),
        *("ksm_boot", "swap", "headroom", "sys_writable", "ksmtuned", "tuned", "mom", "virt_handler", "node_manager"),
        *("ksm_throttler", "qemu_kvm", "boot", "agent", "agent_boot", "agent_permission"),
        *("rewriters", "guests_read", "configuration", "not_paused", "stranded", "folders"),
        *("huge_page_pool", "zfs_cache", "memory_limits", "overcommit", "guests_swapped"),
        *("hook_installed", "hook_executable", "hook_seen", "hook_program", "hook_confinement", "other_processes_seen"),
    }
    assert {finding.verdict for finding in findings if finding.check in unjudged} == {INFO}


def test_remedies_fit_the_host() -> None:
    by_hand = outcome(files(ksm("run", "0"), {f"{UNITS}/virtksm-ksm.service": None}), "ksm_run").remedy
    assert by_hand == "echo 1 > /sys/kernel/mm/ksm/run"
    masked = outcome(files(ksm("run", "0"), {f"{UNITS}/virtksm-ksm.service": ""}), "ksm_run").remedy
    assert masked == by_hand, "systemctl restarts no masked unit"
    assert outcome(with_numbers(run=0), "ksm_run").remedy == "systemctl restart virtksm-ksm.service"
    latency_counts = outcome(files(REAL_TIME, enabled("tuned.service")), "tuned").remedy
    assert (latency_counts or "").startswith("systemctl disable --now virtksm.service virtksm-ksm.service")
    apart = outcome(with_groups("a", "b"), "groups").remedy
    assert "nosharepages" in (apart or "")
    numa = outcome(nodes(policy="ksmtuned"), "numa")
    assert numa.verdict == WARN
    assert numa.remedy == "virtksm unmerge --merge-across-nodes never"
    assert "adaptive" not in (numa.remedy or ""), "a policy that sets no nodes"
    agent = outcome(replace(HEALTHY, known_agent=CannotTell("nonsense", "systemctl restart virtksm.service")), "agent")
    assert (agent.verdict, agent.remedy) == (WARN, "systemctl restart virtksm.service")


def test_long_lists_of_guests_are_cut() -> None:
    many = (replace(GUEST, uuid=str(number), name=f"g{number}") for number in range(7))
    guests = Guests(running=tuple(GuestSeen(one, GuestXml(is_shared=True)) for one in many))
    detail = outcome(with_libvirt(guests=guests), "guests_merge").detail
    assert detail.startswith("7 of 7 cannot: g0 (shared memory")
    assert detail.endswith("g4 (shared memory (memfd or file)) and 2 more")


def test_the_worst_finding_counts() -> None:
    assert worst(examine(HEALTHY)) == PASS
    assert worst(examine(with_numbers(max_page_sharing=2))) == WARN
    assert worst(examine(with_numbers(max_page_sharing=2, run=0))) == FAIL
    assert worst(examine(replace(HEALTHY, paused=OFF))) == PASS


def test_a_guests_memory_is_its_large_anonymous_mappings() -> None:
    maps = b"""\
55d0d0000000-55d0d1000000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 
7f0010000000-7f0010001000 rw-p 00000000 00:00 0 
7f0020000000-7f0030000000 r--p 00000000 00:00 0 
7f0030000000-7f0040000000 rw-s 00000000 00:05 9                          /memfd:ram (deleted)
7f0040000000-7f0040800000 rw-p 00000000 00:00 0
"""  # noqa: W291  # as the kernel writes them
    assert parse_anonymous(maps) == [(0x7F0000000000, 0x7F0010000000), (0x7F0040000000, 0x7F0040800000)]
    assert parse_anonymous(b"") == parse_anonymous(b"\xff\n") == []
