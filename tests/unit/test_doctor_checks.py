"""Each check of `virtksm doctor`: what makes it pass, and what makes it warn or fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.healthy_host import (
    ABSENT,
    AGENT,
    DAEMON,
    ENABLED,
    GUEST,
    HEALTHY,
    HERE,
    HOOK_FILE,
    KERNEL,
    LIBVIRT,
    OWN,
    VAULT,
    with_here,
    with_hooks,
    with_kernel,
    with_libvirt,
    with_numbers,
    with_own,
)
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.doctor.checks import CHECKS, examine
from virtksm.doctor.checks.hook import SOCKET_UNIT
from virtksm.doctor.checks.kept_off import QEMU_KVM_FILE
from virtksm.doctor.facts import (
    Boot,
    BootSetting,
    Facts,
    Folders,
    Guests,
    HookFile,
    Hooks,
    Swap,
    Tuned,
    Unit,
    Unknown,
    Unreachable,
)
from virtksm.doctor.finding import Outcome, Verdict, worst
from virtksm.errors import Cause
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.guests.xml import GuestXml
from virtksm.model.decision import SwitchedOff
from virtksm.model.snapshot import Guest, KsmState, OtherProcesses, Settings
from virtksm.remedies import SWITCH_UNIT
from virtksm.tuning.ownership import HostState, Ownership

PASS, INFO, WARN, FAIL = Verdict.PASS, Verdict.INFO, Verdict.WARN, Verdict.FAIL
UNREADABLE = Unknown(why="/some/file: Permission denied")
INSTALLED = Unit(is_installed=True, is_enabled=False)
MASKED = replace(INSTALLED, is_masked=True)
RUNNING = replace(INSTALLED, is_running=True)
REAL_TIME = Tuned(profiles=("cpu-partitioning",), ksm_in="/x/script.sh", keeps_off=True)
UNREACHABLE = Unreachable(why="no", remedy="start it")
ALWAYS = replace(OWN, configuration=Config(adaptive=AdaptiveParams(engage="always")))
GIB = 1024 * 1024
OTHERS = OtherProcesses(kib=2 * GIB, processes=3, unread=0)
RT = Tuned(profiles=("rt",), ksm_in="/x/script.sh")
ADVISED = replace(KERNEL, advisor_mode="scan-time")
NO_SWAP = with_kernel(swap=Swap(total_kib=0, free_kib=0))
NO_XML = Guests(running=(GUEST,), xml={}, unread=("the XML of 'web' is no XML",))
NO_HOOK = replace(HERE.hooks, files=())
OFF = SwitchedOff(since="2026-01-01T00:00:00Z")


def outcome(facts: Facts, check: str) -> Outcome:
    (found,) = [finding.outcome for finding in examine(facts) if finding.check == check]
    return found


def units(**states: Unit) -> dict[str, Unit]:
    return {**HERE.units, **{name.replace("_", "-") + ".service": state for name, state in states.items()}}


def off(**changed: object) -> Facts:
    """Return facts of a host whose KSM is off, and these of Here."""
    return with_here(kernel=replace(KERNEL, numbers={**KERNEL.numbers, "run": 0}), **changed)


def at_boot(file: str, name: str, value: str | None, *, is_declared: bool = True) -> Boot:
    return Boot(settings=(BootSetting(file=file, name=name, value=value, is_declared=is_declared),))


def nodes(**configuration: object) -> Facts:
    """Return facts of a host with two NUMA nodes and this configuration, written down."""
    own = replace(
        OWN,
        configuration=Config(**configuration),  # type: ignore[arg-type]  # tests name fields
        keys_set=frozenset({"adaptive.merge_across_nodes"}),
    )
    return replace(with_kernel(memory_nodes=2), own=own)


def refused_under(context: str, refusal: str) -> Facts:
    hooks = replace(HERE.hooks, selinux_enforces=True)
    facts = with_here(daemon=replace(DAEMON, confined_by=context), hooks=hooks)
    return replace(facts, own=replace(OWN, agent=replace(AGENT, refusal=refusal)))


def running(*names: str) -> Facts:
    return with_here(processes=frozenset(names))


def without_agent(facts: Facts) -> Facts:
    return replace(facts, own=replace(facts.own, agent=None))


def with_agent(**changed: object) -> Facts:
    return with_own(agent=replace(AGENT, **changed))  # type: ignore[arg-type]  # tests name fields


def yielded(**numbers: int) -> Facts:
    """Return facts of a host whose agent has yielded, with these numbers of another's in the kernel."""
    kernel = replace(KERNEL, numbers={**KERNEL.numbers, **numbers})
    return replace(with_agent(outcome="yielded"), here=replace(HERE, kernel=kernel))


def with_xml(web: GuestXml, vault: GuestXml, **config: tuple[str, ...]) -> Facts:
    guests = Guests(running=(GUEST, VAULT), xml={GUEST.key: web, VAULT.key: vault})
    own = replace(OWN, configuration=Config(**config))  # type: ignore[arg-type]  # private_guests alone
    return replace(HEALTHY, libvirt=replace(LIBVIRT, guests=guests), own=own)


def with_process(guest: Guest, **counted: bool) -> Facts:
    process = GuestProcess(arguments=(), ksm=ProcessKsm(**counted))
    assert isinstance(LIBVIRT.guests, Guests)
    return with_libvirt(guests=replace(LIBVIRT.guests, processes={guest.key: process}))


def with_others(others: OtherProcesses | None, *, seen_kib: int | None) -> Facts:
    assert isinstance(LIBVIRT.guests, Guests)
    facts = with_libvirt(guests=replace(LIBVIRT.guests, other_processes=others))
    return replace(facts, own=replace(OWN, agent=replace(AGENT, other_processes_kib=seen_kib)))


def confined(by: str, *, program: str = "/usr/bin/virtksm", label: str | None = None) -> Facts:
    hooks = replace(
        HERE.hooks,
        apparmor_is_on=label is None,
        selinux_enforces=label is not None,
        program=program,
        files=(replace(HOOK_FILE, selinux_label=label),),
    )
    return with_here(daemon=replace(DAEMON, confined_by=by), hooks=hooks)


def listening() -> Facts:
    """Return healthy facts but for the agent, in whose place systemd's socket unit listens."""
    return without_agent(with_here(units={**HERE.units, SOCKET_UNIT: ENABLED}))


def scanning_without_agent(*, hooks: Hooks = NO_HOOK, **changed: int) -> Facts:
    kept = HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=500, applied=500)})
    folders = replace(OWN.folders, state=kept)
    numbers = {**KERNEL.numbers, "pages_to_scan": 500, **changed}
    here = replace(HERE, kernel=replace(KERNEL, numbers=numbers), hooks=hooks)
    return replace(HEALTHY, here=here, own=replace(OWN, agent=None, folders=folders))


def two_nodes(merge_across_nodes: int | None) -> Facts:
    return with_kernel(memory_nodes=2, numbers={**KERNEL.numbers, "merge_across_nodes": merge_across_nodes})


def hooked(changed_s: float, *others: HookFile) -> Facts:
    return with_hooks(files=(replace(HOOK_FILE, changed_s=changed_s), *others))


def folders(*faults: str) -> Facts:
    return with_own(folders=Folders(root="/r", faults=faults, state=UNREADABLE))


CASES: list[tuple[str, Facts, Verdict, str]] = [
    ("ksm_built", HEALTHY, PASS, "Linux 6.18.0"),
    ("ksm_built", with_kernel(has_ksm=False), FAIL, "has no /sys/kernel/mm/ksm"),
    ("ksm_built", with_kernel(has_ksm=UNREADABLE), WARN, "cannot tell: /some/file: Permission denied"),
    ("ksm_run", HEALTHY, PASS, "run is 1"),
    ("ksm_run", with_numbers(run=0), FAIL, "run is 0: nothing merges"),
    ("ksm_run", replace(with_numbers(run=0), own=replace(OWN, off=OFF)), INFO, "virtksm is paused"),
    ("ksm_run", with_numbers(run=7), WARN, "cannot tell: run is 7"),
    ("ksm_run", with_kernel(has_ksm=False), INFO, "no KSM in this kernel"),
    ("ksm_run", off(units=units(ksm=MASKED)), INFO, "KSM is kept off: ksm.service is masked"),
    ("ksm_run", off(tuned=REAL_TIME, units=units(tuned=ENABLED)), INFO, "tuned's profile cpu-partitioning"),
    ("ksm_run", off(tuned=REAL_TIME), FAIL, "nothing merges"),
    ("ksm_run", off(boot=at_boot("/etc/tmpfiles.d/k.conf", "run", "0")), INFO, "/etc/tmpfiles.d/k.conf switches it"),
    ("ksm_run", off(boot=at_boot("/etc/rc.local", "run", "0", is_declared=False)), FAIL, "nothing merges"),
    ("ksm_run", off(boot=at_boot(QEMU_KVM_FILE, "run", "0")), FAIL, "nothing merges"),
    ("ksm_run", off(boot=at_boot(QEMU_KVM_FILE, "run", "0"), units=units(qemu_kvm=ENABLED)), INFO, QEMU_KVM_FILE),
    ("ksm_boot", HEALTHY, PASS, "virtksm-ksm.service"),
    ("ksm_boot", with_here(units=units(virtksm_ksm=INSTALLED)), WARN, "no unit or file is seen"),
    ("ksm_boot", with_here(units=units(virtksm_ksm=INSTALLED, ksm=ENABLED)), PASS, "ksm.service"),
    (
        "ksm_boot",
        with_here(units=units(virtksm_ksm=ABSENT), boot=at_boot("/etc/sysfs.conf", "run", "1")),
        PASS,
        "/etc/sysfs.conf",
    ),
    ("ksm_boot", with_here(units=units(ksm=MASKED)), WARN, "kept off at the next boot: ksm.service is masked"),
    ("ksm_boot", with_here(booted=False), INFO, "no systemd"),
    ("ksm_boot", with_numbers(run=0), INFO, "it is off"),
    ("advisor", HEALTHY, PASS, "advisor_mode is none"),
    (
        "advisor",
        with_here(kernel=ADVISED, boot=at_boot("/x.conf", "advisor_mode", "scan-time")),
        FAIL,
        "/x.conf sets advisor_mode to scan-time at boot",
    ),
    ("advisor", with_kernel(advisor_mode=None), PASS, "this kernel has none"),
    ("advisor", with_kernel(advisor_mode="scan-time"), FAIL, "the kernel refuses pages_to_scan"),
    ("max_page_sharing", HEALTHY, PASS, "is 256"),
    ("max_page_sharing", with_numbers(max_page_sharing=None), PASS, "no limit"),
    ("max_page_sharing", with_numbers(max_page_sharing=19), WARN, "costs 5 %"),
    ("max_page_sharing", with_numbers(max_page_sharing=20), PASS, "is 20"),
    ("max_page_sharing", with_numbers(max_page_sharing=257), WARN, "takes longer"),
    ("use_zero_pages", HEALTHY, PASS, "is off"),
    ("use_zero_pages", with_numbers(use_zero_pages=1), PASS, "they are counted"),
    ("use_zero_pages", with_numbers(use_zero_pages=1, ksm_zero_pages=None), WARN, "before 6.6"),
    ("huge_pages", HEALTHY, PASS, "only when memory is short"),
    ("huge_pages", replace(with_kernel(huge_pages="always"), own=ALWAYS), WARN, "each merge splits a huge page"),
    ("huge_pages", replace(with_kernel(huge_pages="never"), own=ALWAYS), PASS, "makes none"),
    ("numa", HEALTHY, PASS, "one NUMA node"),
    ("numa", with_kernel(memory_nodes=2), WARN, "merge_across_nodes is 1 with 2 NUMA nodes"),
    ("numa", nodes(adaptive=AdaptiveParams(merge_across_nodes="always")), INFO, "the configuration asks"),
    ("numa", nodes(adaptive=AdaptiveParams(merge_across_nodes="keep")), INFO, "or to leave that as it is"),
    ("numa", nodes(adaptive=AdaptiveParams(merge_across_nodes="never")), WARN, "is 1 with 2"),
    ("numa", two_nodes(0), PASS, "each merges its own"),
    ("numa", two_nodes(None), PASS, "does not separate them"),
    ("swap", HEALTHY, PASS, "1.0 GiB of 1.0 GiB"),
    ("swap", with_kernel(swap=Swap(total_kib=1000, free_kib=99)), WARN, "swap is nearly full"),
    ("swap", NO_SWAP, PASS, "would fit into memory without"),
    (
        "swap",
        with_kernel(swap=Swap(total_kib=0, free_kib=0), numbers={**KERNEL.numbers, "pages_sharing": 900_000}),
        WARN,
        "OOM killer",
    ),
    ("headroom", HEALTHY, PASS, "unmerging takes up to 39.1 MiB, 195.3 MiB are available"),
    ("headroom", with_numbers(pages_shared=0, pages_sharing=0), PASS, "nothing is merged"),
    ("headroom", with_numbers(pages_sharing=100_000), WARN, "would go to swap"),
    ("headroom", with_numbers(pages_sharing=1_000_000), FAIL, "are missing, swap included"),
    ("headroom", with_numbers(pages_shared=None), WARN, "cannot tell: KSM's counters are missing"),
    ("libvirt_reachable", HEALTHY, PASS, "qemu:///system"),
    ("libvirt_reachable", replace(HEALTHY, libvirt=Unreachable(why="no", remedy="start it")), FAIL, "no"),
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
    ("permission", HEALTHY, PASS, "allowed"),
    ("permission", with_libvirt(refused=Cause.NOT_AUTHORIZED), FAIL, "refuses this user (not authorized)"),
    ("permission", with_libvirt(uri="qemu:///session"), FAIL, "a session's daemon"),
    ("sys_writable", HEALTHY, PASS, "libvirtd (pid 50) sees it writable"),
    ("sys_writable", with_here(daemon=replace(DAEMON, sees_sys_read_only=True)), FAIL, "sees /sys read-only"),
    ("sys_writable", with_here(daemon=None), INFO, "embedded"),
    ("sys_writable", replace(with_here(daemon=UNREADABLE), libvirt=UNREACHABLE), INFO, "no connection to libvirt"),
    ("sys_writable", refused_under("u:r:virtqemud_t:s0", "pages_to_scan, unknown"), WARN, "confines it (virtqemud_t)"),
    ("sys_writable", refused_under("u:r:virtqemud_t:s0", "pages_to_scan, advisor on"), PASS, "(virtqemud_t), and no"),
    ("sys_writable", refused_under("u:r:virtd_t:s0", "pages_to_scan, unknown"), PASS, "writable"),
    ("ksmtuned", HEALTHY, PASS, "neither installed nor running"),
    ("ksmtuned", running("ksmtuned"), FAIL, "ksmtuned runs"),
    ("ksmtuned", with_here(units=units(ksmtuned=ENABLED)), WARN, "after the next boot"),
    ("ksmtuned", with_here(units=units(ksmtuned=INSTALLED)), PASS, "neither runs nor is enabled"),
    ("tuned", HEALTHY, PASS, "does not mention KSM"),
    ("tuned", with_here(tuned=Tuned(profiles=(), ksm_in=None)), PASS, "no active profile"),
    ("tuned", with_here(tuned=RT, processes=frozenset({"tuned"})), WARN, "rt mentions KSM in /x/script.sh"),
    ("tuned", with_here(tuned=RT, units=units(tuned=ENABLED)), WARN, "it may stop or set KSM"),
    ("tuned", with_here(tuned=RT), PASS, "neither runs nor is enabled"),
    ("tuned", with_here(tuned=REAL_TIME, units=units(tuned=RUNNING)), WARN, "virtksm has nothing to do here"),
    (
        "tuned",
        with_here(tuned=Tuned(profiles=("own",), ksm_in=None, unknown_includes=("${f:x}",))),
        WARN,
        "cannot tell: profile own includes ${f:x}",
    ),
    ("mom", HEALTHY, PASS, "neither installed nor running"),
    ("mom", running("momd"), WARN, "momd runs"),
    ("mom", with_here(units=units(mom_vdsm=RUNNING)), WARN, "mom-vdsm.service runs"),
    ("mom", with_here(units=units(mom_vdsm=ENABLED)), WARN, "mom-vdsm.service is enabled"),
    ("virt_handler", HEALTHY, PASS, "does not run"),
    ("virt_handler", running("virt-handler"), WARN, "ksmConfiguration"),
    ("node_manager", HEALTHY, PASS, "does not run"),
    ("node_manager", running("harvester-node-"), WARN, "harvester-node-manager runs"),
    ("ksm_throttler", HEALTHY, PASS, "neither installed nor running"),
    ("ksm_throttler", running("kata-ksm-thrott"), FAIL, "kata-ksm-throttler runs"),
    ("ksm_throttler", with_here(units=units(kata_ksm_throttler=ENABLED)), WARN, "after the next boot"),
    ("qemu_kvm", HEALTHY, PASS, "not installed"),
    ("qemu_kvm", with_here(units=units(qemu_kvm=INSTALLED)), PASS, "not enabled"),
    ("qemu_kvm", with_here(units=units(qemu_kvm=ENABLED)), PASS, "before virtksm"),
    (
        "qemu_kvm",
        with_here(units=units(qemu_kvm=ENABLED), boot=at_boot(QEMU_KVM_FILE, "run", "0")),
        WARN,
        "KSM_ENABLED=0",
    ),
    ("boot", HEALTHY, PASS, "none found"),
    ("boot", with_here(boot=at_boot("/x.conf", "advisor_mode", "scan-time")), WARN, "/x.conf sets advisor_mode"),
    ("boot", with_here(boot=at_boot("/x.conf", "advisor_mode", "none")), PASS, "none found"),
    ("boot", with_here(boot=at_boot("/x.conf", "run", "0")), WARN, "/x.conf sets run to 0"),
    ("boot", with_here(boot=at_boot("/x.conf", "run", "1")), PASS, "none found"),
    ("boot", with_here(boot=at_boot("/x.sh", "run", None, is_declared=False)), WARN, "/x.sh sets run at boot"),
    ("boot", with_here(boot=at_boot("/x.conf", "pages_to_scan", "500")), PASS, "none found"),
    ("boot", with_here(boot=at_boot("/x.conf", "merge_across_nodes", "0")), PASS, "none found"),
    ("boot", with_here(boot=at_boot("/x.sh", "pages_to_scan", "500", is_declared=False)), WARN, "pages_to_scan to 500"),
    ("boot", with_here(boot=Boot(unread=("/var/spool/cron/root: no",))), INFO, "not all could be read: /var/spool"),
    ("hook_installed", HEALTHY, PASS, "qemu.d/virtksm"),
    ("hook_installed", with_hooks(files=()), INFO, "needed only where no agent runs"),
    ("hook_installed", with_libvirt(version=6_004_000), FAIL, "libvirt 6.4.0 knows no qemu.d"),
    ("hook_executable", HEALTHY, PASS, "root's alone"),
    ("hook_executable", with_hooks(files=(replace(HOOK_FILE, is_executable=False),)), FAIL, "skips it"),
    ("hook_executable", with_hooks(files=(replace(HOOK_FILE, is_roots=False),)), FAIL, "users other than root"),
    ("hook_seen", HEALTHY, PASS, "has started since"),
    ("hook_seen", hooked(999.0), INFO, "an agent hears of guests without"),
    ("hook_seen", without_agent(hooked(999.0)), WARN, "newer than libvirtd (pid 50)"),
    ("hook_seen", hooked(999.96), PASS, "has started since"),
    ("hook_seen", without_agent(hooked(999.94)), WARN, "newer than libvirtd"),
    (
        "hook_seen",
        hooked(1.0, replace(HOOK_FILE, path="/etc/libvirt/hooks/qemu", changed_s=2000.0)),
        PASS,
        "has started since",
    ),
    (
        "hook_seen",
        without_agent(hooked(1.0, replace(HOOK_FILE, path="/qemu", changed_s=2000.0, is_executable=False))),
        WARN,
        "every hook is newer",
    ),
    ("hook_seen", with_here(daemon=replace(DAEMON, age_s=UNREADABLE)), WARN, "cannot tell"),
    ("hook_seen", replace(with_here(daemon=UNREADABLE), libvirt=UNREACHABLE), INFO, "no connection to libvirt"),
    ("hook_program", HEALTHY, PASS, "/usr/bin/virtksm"),
    ("hook_program", with_hooks(program=None), PASS, "an agent listens"),
    ("hook_program", without_agent(with_hooks(program=None)), FAIL, "no agent listens"),
    ("hook_confinement", HEALTHY, PASS, "neither AppArmor nor SELinux is on"),
    ("hook_confinement", confined("libvirtd (enforce)"), PASS, "libvirtd (enforce)"),
    ("hook_confinement", confined("libvirtd (enforce)", program="/opt/virtksm/x"), WARN, "leads to /opt/virtksm/x"),
    ("hook_confinement", confined("libvirtd (complain)", program="/opt/virtksm/x"), PASS, "complain"),
    ("hook_confinement", confined("unconfined", program="/opt/virtksm/x"), PASS, "not confined"),
    ("hook_confinement", confined("u:r:virtd_t:s0", label="u:object_r:virt_hook_unconfined_exec_t:s0"), PASS, "hook"),
    ("hook_confinement", confined("u:r:virtd_t:s0", label="u:object_r:user_home_t:s0"), WARN, "user_home_t"),
    ("guests_merge", HEALTHY, PASS, "2 guests run, 1 of them private and kept out"),
    (
        "guests_merge",
        with_xml(GuestXml(has_hugepages=True), GuestXml(is_kept_out=True)),
        WARN,
        "2 of 2 cannot: web (huge pages), vault (nosharepages",
    ),
    ("guests_merge", with_libvirt(guests=NO_XML), WARN, "cannot tell: the XML of 'web'"),
    ("guests_merge", with_process(GUEST, is_mergeable=False), WARN, "1 of 2 cannot: web (QEMU offers nothing to KSM)"),
    ("private_guests", HEALTHY, PASS, "1 of 2 guests are private"),
    ("private_guests", with_xml(GuestXml(), GuestXml()), PASS, "none is private"),
    ("private_guests", with_xml(GuestXml(), GuestXml(), private_guests=("v*",)), FAIL, "1 can merge: vault"),
    ("private_guests", with_xml(GuestXml(is_private=True), GuestXml()), FAIL, "1 can merge: web"),
    ("private_guests", with_process(VAULT, merges_any=True), FAIL, "1 can merge, as KSM is on for the whole process"),
    ("private_guests", with_process(VAULT, merges_any=False), PASS, "kept out"),
    ("private_guests", with_process(GUEST, merges_any=True), PASS, "kept out"),
    ("private_guests", with_libvirt(guests=NO_XML), WARN, "cannot tell"),
    ("other_processes_seen", HEALTHY, PASS, "there is none"),
    ("other_processes_seen", with_others(OTHERS, seen_kib=GIB), PASS, "2.0 GiB of 3 processes that"),
    ("other_processes_seen", with_others(OTHERS, seen_kib=GIB - 1), WARN, "the agent sees 1024.0 MiB"),
    ("other_processes_seen", with_others(OTHERS, seen_kib=None), PASS, "2.0 GiB of 3 processes"),
    (
        "other_processes_seen",
        with_others(replace(OTHERS, processes=1), seen_kib=None),
        PASS,
        "2.0 GiB of 1 process that",
    ),
    ("other_processes_seen", without_agent(with_others(OTHERS, seen_kib=0)), PASS, "2.0 GiB of 3 processes"),
    ("other_processes_seen", with_others(replace(OTHERS, unread=7), seen_kib=0), INFO, "whether 7 processes may merge"),
    ("other_processes_seen", with_others(None, seen_kib=None), INFO, "before 6.1"),
    ("guests_read", HEALTHY, PASS, "of all 0"),
    ("guests_read", with_agent(guests=6, guests_unread=6), WARN, "it cannot read 6 of 6 guests"),
    ("guests_read", with_own(agent=None), INFO, "no agent"),
    ("agent_boot", HEALTHY, PASS, "virtksm.service is enabled"),
    ("agent_boot", with_here(units=units(virtksm=INSTALLED)), WARN, "it runs, and virtksm.service is not enabled"),
    ("agent_boot", with_here(units=units(virtksm=ABSENT)), INFO, "not started by"),
    ("agent_boot", with_own(agent=None), INFO, "none runs"),
    ("agent_permission", HEALTHY, PASS, "the agent is connected"),
    ("agent_permission", with_own(agent=None), PASS, "50-virtksm.rules names the user"),
    ("agent_permission", with_agent(silence="since noon"), PASS, "50-virtksm.rules names the user"),
    ("agent_permission", without_agent(with_here(agent_rule=None)), WARN, "no rule of polkit's"),
    ("agent_permission", without_agent(with_here(agent_rule=None, has_agent_user=False)), INFO, "no user virtksm"),
    ("configuration", HEALTHY, PASS, "policy adaptive"),
    ("configuration", with_own(configuration=("one fault", "another")), FAIL, "one fault (and 1 more)"),
    ("switched_on", HEALTHY, PASS, "not in force"),
    ("switched_on", with_own(off=OFF), INFO, "paused since 2026-01-01T00:00:00Z"),
    ("switched_on", with_own(off=SwitchedOff(damage="/x: is damaged")), WARN, "counts as paused"),
    ("agent", HEALTHY, PASS, "serves qemu:///system"),
    ("agent", without_agent(with_here(booted=False)), INFO, "the hook's pokes start passes"),
    ("agent", listening(), INFO, "the hook's pokes start passes"),
    ("agent", with_own(agent=None), WARN, "no hook's poke starts a pass"),
    ("agent", without_agent(with_here(booted=False, hooks=NO_HOOK)), WARN, "nothing tunes KSM"),
    ("agent", without_agent(replace(HEALTHY, here=UNREADABLE)), WARN, "nothing tunes KSM"),
    ("agent", with_agent(silence="since noon, waiting for pass"), FAIL, "since noon"),
    ("agent", with_agent(outcome="refused", refusal="pages_to_scan: no"), FAIL, "pages_to_scan: no"),
    ("agent", with_agent(outcome="held"), FAIL, "earlier"),
    ("agent", with_agent(outcome="yielded"), WARN, "it has yielded to another program that sets KSM (0 pages every"),
    ("agent", yielded(sleep_millisecs=200), WARN, "so does Ubuntu's qemu-kvm.service"),
    ("agent", yielded(pages_to_scan=1250), WARN, "so do ksmtuned and what follows its law"),
    ("agent", replace(with_agent(outcome="yielded"), here=UNREADABLE), WARN, "it has yielded"),
    ("stranded", HEALTHY, PASS, "no"),
    ("stranded", with_agent(is_stranded=True, worst_core_percent=83.4), FAIL, "83 % of a core"),
    ("stranded", with_agent(is_stranded=True, worst_core_percent=None), FAIL, "an unknown share of a core"),
    ("stranded", with_agent(is_stranded=None), WARN, "cannot tell"),
    ("stranded", scanning_without_agent(), FAIL, "500 pages every 10000 ms"),
    ("stranded", scanning_without_agent(run=0), PASS, "no"),
    ("stranded", scanning_without_agent(pages_to_scan=100), PASS, "no"),
    ("stranded", listening(), INFO, "the hook's passes"),
    ("stranded", scanning_without_agent(hooks=HERE.hooks), FAIL, "500 pages every 10000 ms"),
    ("folders", HEALTHY, PASS, "/run/virtksm"),
    ("folders", folders("/r is not a folder"), FAIL, "/r is not a folder"),
    ("folders", folders(), WARN, "cannot tell"),
]


@pytest.mark.parametrize(("check", "facts", "verdict", "detail"), CASES, ids=[f"{c[0]}-{c[2].value}" for c in CASES])
def test_a_check_says(check: str, facts: Facts, verdict: Verdict, detail: str) -> None:
    found = outcome(facts, check)
    assert (found.verdict, detail in found.detail) == (verdict, True), found
    assert bool(found.remedy) == (verdict in (WARN, FAIL)), "who is warned is told what to do, and nobody else"
    assert "\n" not in found.remedy


def test_every_check_is_seen_to_pass_and_to_find_something() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    passing = {check for check, _, verdict, _ in CASES if verdict is PASS}
    finding = {check for check, _, verdict, detail in CASES if verdict in (WARN, FAIL) and "cannot tell" not in detail}
    assert passing == finding == set(names)


def test_a_healthy_host_has_nothing_but_passes() -> None:
    assert {finding.outcome.verdict for finding in examine(HEALTHY)} == {PASS}
    assert worst(examine(HEALTHY)) is PASS


def test_another_machine_is_not_judged_and_never_passes_what_only_its_own_files_tell() -> None:
    findings = examine(replace(HEALTHY, here=Unknown(why="another machine: run this command there")))
    unjudged = {finding.check for finding in findings if "another machine" in finding.outcome.detail}
    assert unjudged == {
        *("ksm_built", "ksm_run", "advisor", "max_page_sharing", "use_zero_pages", "huge_pages", "numa"),
        *("ksm_boot", "swap", "headroom", "sys_writable", "ksmtuned", "tuned", "mom", "virt_handler", "node_manager"),
        *("ksm_throttler", "qemu_kvm", "boot", "agent_boot", "agent_permission"),
        *("hook_installed", "hook_executable", "hook_seen", "hook_program", "hook_confinement", "other_processes_seen"),
    }
    assert {finding.outcome.verdict for finding in findings if finding.check in unjudged} == {INFO}


def test_remedies_fit_the_host() -> None:
    by_hand = outcome(off(units={**HERE.units, SWITCH_UNIT: ABSENT}), "ksm_run").remedy
    assert by_hand == "echo 1 > /sys/kernel/mm/ksm/run"
    with_unit = outcome(off(units={**HERE.units, SWITCH_UNIT: INSTALLED}), "ksm_run").remedy
    assert with_unit == f"systemctl enable --now {SWITCH_UNIT}"
    latency_counts = outcome(with_here(tuned=REAL_TIME, units=units(tuned=ENABLED)), "tuned").remedy
    assert latency_counts.startswith("systemctl disable --now virtksm.service virtksm-ksm.service")
    numa = outcome(nodes(policy="ksmtuned"), "numa")
    assert numa.verdict is WARN
    assert "echo 0 > /sys/kernel/mm/ksm/merge_across_nodes" in numa.remedy
    assert "adaptive" not in numa.remedy, "a policy that sets no nodes"
    agent = outcome(with_own(agent=Unknown(why="nonsense", remedy="systemctl restart virtksm.service")), "agent")
    assert (agent.verdict, agent.remedy) == (WARN, "systemctl restart virtksm.service")


def test_long_lists_of_guests_are_cut() -> None:
    many = tuple(replace(GUEST, uuid=str(number), name=f"g{number}") for number in range(7))
    guests = Guests(running=many, xml={one.key: GuestXml(is_shared=True) for one in many})
    detail = outcome(with_libvirt(guests=guests), "guests_merge").detail
    assert detail.startswith("7 of 7 cannot: g0 (shared memory")
    assert detail.endswith("g4 (shared memory (memfd or file)) and 2 more")


def test_the_worst_finding_counts() -> None:
    assert worst(examine(with_numbers(max_page_sharing=2))) is WARN
    assert worst(examine(with_numbers(max_page_sharing=2, run=0))) is FAIL
    assert worst(examine(with_own(off=OFF))) is PASS
