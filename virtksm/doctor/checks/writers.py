"""Checks for other programs that set KSM's parameters.

A program is found by its unit's control group, or by its process's name if it runs as root (or as vdsm, whose MOM has
a root daemon write). A program that is only installed is no finding.
"""

from __future__ import annotations

from typing import NamedTuple

from virtksm.doctor.facts import KSMTUNED_UNITS, MOM_UNITS, QEMU_KVM_UNIT, THROTTLER_UNITS, TUNED_UNIT, Facts
from virtksm.doctor.finding import CannotTell, DoesNotApply, Judgement, failed, passed, warned
from virtksm.doctor.reading.boot import QEMU_KVM_FILE, BootSetting

COMM_LETTERS = 15
"""The length of a process's name in the kernel."""
AGENT_UNIT = "virtksm.service"
GIVE_WAY = f"systemctl disable --now {AGENT_UNIT} virtksm-ksm.service"


class Writer(NamedTuple):
    """A program that sets KSM's parameters: its processes' names, its units, and whether it certainly conflicts."""

    processes: tuple[str, ...]
    units: tuple[str, ...]
    is_certain: bool
    says: str
    remedy: str

    def check(self, facts: Facts) -> Judgement:
        here = facts.this_machine
        names = {name[:COMM_LETTERS]: name for name in self.processes}
        running = sorted({names[one.name] for one in here.processes if one.name in names})
        running = running or [unit for unit in self.units if here.unit(unit).is_running]
        if running:
            detail = f"{', '.join(running)} runs: {self.says}"
            return failed(detail, self.remedy) if self.is_certain else warned(detail, self.remedy)
        enabled = [unit for unit in self.units if here.unit(unit).is_enabled]
        if enabled:
            detail = f"{', '.join(enabled)} is enabled and will run after the next boot: {self.says}"
            return warned(detail, f"systemctl disable {' '.join(enabled)}")
        installed = [unit for unit in self.units if here.unit(unit).is_installed]
        if installed:
            return passed(f"{', '.join(installed)} is installed, and neither runs nor is enabled")
        return passed("neither installed nor running" if self.units else "does not run")


KSMTUNED = Writer(
    processes=("ksmtuned",),
    units=KSMTUNED_UNITS,
    is_certain=True,
    says="it sets the same values every minute",
    remedy="systemctl disable --now ksmtuned.service",
)
MOM = Writer(
    processes=("momd", "supervdsmd"),
    units=MOM_UNITS,
    is_certain=False,
    says="it sets the same values if its policy has rules for KSM",
    remedy="take ksm.rules out of MOM's policy (/etc/vdsm/mom.d), or leave KSM to it: " + GIVE_WAY,
)
VIRT_HANDLER = Writer(
    processes=("virt-handler",),
    units=(),
    is_certain=False,
    says="it sets the same values if KubeVirt's ksmConfiguration chooses this node",
    remedy="leave ksmConfiguration out of the KubeVirt resource, or choose other nodes in it",
)
NODE_MANAGER = Writer(
    processes=("harvester-node-manager",),
    units=(),
    is_certain=False,
    says="it sets the same values every minute where its Ksmtuned resource for this node says so",
    remedy="set run: stop in this node's Ksmtuned resource, or leave KSM to it: " + GIVE_WAY,
)
THROTTLER = Writer(
    processes=("kata-ksm-throttler",),
    units=THROTTLER_UNITS,
    is_certain=True,
    says="it sets the same values as containers start",
    remedy="systemctl disable --now kata-ksm-throttler.service",
)


def check_qemu_kvm(facts: Facts) -> Judgement:
    """Judge Ubuntu's qemu-kvm.service, which sets KSM once at boot."""
    here = facts.this_machine
    unit = here.unit(QEMU_KVM_UNIT)
    if not unit.is_at_work:
        return passed(f"{QEMU_KVM_UNIT} is {'not enabled' if unit.is_installed else 'not installed'}")
    if any(one.file == QEMU_KVM_FILE for one in here.boot.settings):
        return warned(
            f"{QEMU_KVM_UNIT} switches KSM off at boot, as {QEMU_KVM_FILE} says KSM_ENABLED=0",
            f"set KSM_ENABLED=1 there; or, where KSM is meant to be off: {GIVE_WAY}",
        )
    return passed(f"{QEMU_KVM_UNIT} sets KSM once at boot, before virtksm")


def check_tuned(facts: Facts) -> Judgement:
    """Judge whether an active profile of tuned sets KSM, and which of the two must go."""
    here = facts.this_machine
    tuned = here.tuned
    if not tuned.profiles:
        return passed("no active profile")
    names = ", ".join(tuned.profiles)
    if tuned.ksm_in is not None:
        detail = f"profile {names} {'switches KSM off' if tuned.keeps_off else 'mentions KSM'} in {tuned.ksm_in}"
        runs = any(one.name == "tuned" for one in here.processes)
        if not runs and not here.unit(TUNED_UNIT).is_at_work:
            return passed(f"{detail}, but tuned neither runs nor is enabled")
        if tuned.keeps_off:
            return warned(
                f"{detail}, as on hosts where latency counts: virtksm has nothing to do here",
                f"{GIVE_WAY}; or, if KSM is wanted after all, another profile: tuned-adm profile NAME",
            )
        return warned(
            f"{detail}: it may stop or set KSM",
            f"decide which of the two is meant: {GIVE_WAY}; or another profile: tuned-adm profile NAME",
        )
    if tuned.unknown_includes:
        raise CannotTell(
            f"profile {names} includes {', '.join(tuned.unknown_includes)}, which only tuned can resolve",
            "see whether that profile mentions KSM: tuned-adm profile_info; grep -ri ksm /usr/lib/tuned /etc/tuned",
        )
    return passed(f"profile {names} does not mention KSM")


def check_boot(facts: Facts) -> Judgement:
    boot = facts.this_machine.boot
    found = [one for one in boot.settings if _conflicts(one)]
    if found:
        return warned("; ".join(map(str, found)), f"take that out of it; or, if it is meant to stay: {GIVE_WAY}")
    if boot.unread:
        raise DoesNotApply(f"not all could be read: {boot.unread[0]}")
    return passed("none found in systemd's units and tmpfiles.d, sysfs.conf, udev's rules, rc.local and root's crontab")


def _conflicts(one: BootSetting) -> bool:
    """Return whether virtksm would find its own setting changed; declared values are set long before it starts."""
    match one.name:
        case "run":
            return one.value != "1" and one.file != QEMU_KVM_FILE
        case "advisor_mode":
            return one.value != "none"
        case "pages_to_scan" | "sleep_millisecs":
            return not one.is_declared
        case _:  # merge_across_nodes, which virtksm keeps as it finds it
            return False
