"""Checks of the qemu hook: installed where it is needed, executable, seen by libvirt's daemon, not confined.

libvirt (9.0) looks for hooks when its daemon starts and on a reload. Only if it found an executable one does it call
any, and then it lists them at each call. It knows qemu.d since 6.5.0 (docs/guide.md).
"""

from __future__ import annotations

import os

from virtksm.doctor.checks.libvirt import selinux_enforces, version_text
from virtksm.doctor.facts import Facts, Here, HookFile
from virtksm.doctor.finding import DoesNotApply, Judgement, failed, info, passed, warned
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.libvirt import LibvirtSeen
from virtksm.doctor.reading.processes import read_age_s, read_confinement

HOOK = "/etc/libvirt/hooks/qemu.d/virtksm"
PROGRAM = "/usr/bin/virtksm"
SOCKET_UNIT = "virtksm-retune.socket"
"""Listens for the hook's pokes under systemd where no agent does; the hook itself starts nothing there."""
QEMU_D_SINCE = 6_005_000
CLOCKS_S = 0.05
"""How far apart two ages may be and still be equal: the kernel counts uptime and processes' starts in 10 ms."""
APPARMOR_RUNS = ("/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/")
"""The folders from which Debian's AppArmor profile of libvirtd lets hooks execute programs."""


def check_installed(facts: Facts) -> Judgement:
    _find(facts, otherwise="not installed; needed only where no agent runs")
    if isinstance(facts.libvirt, LibvirtSeen) and facts.libvirt.version < QEMU_D_SINCE:
        return failed(
            f"libvirt {version_text(facts.libvirt.version)} knows no qemu.d, which came with 6.5.0",
            "take a newer libvirt, or run an agent",
        )
    return passed(HOOK)


def check_executable(facts: Facts) -> Judgement:
    hook = _find(facts)
    if not hook.is_executable:
        return failed("it is not executable: libvirt skips it", f"chmod 755 {HOOK}")
    if not hook.is_roots:
        return failed(
            "users other than root may change it, and libvirt runs it as root", f"chown root: {HOOK}; chmod 755 {HOOK}"
        )
    return passed("and root's alone")


def check_seen(facts: Facts) -> Judgement:
    _find(facts)
    here, daemon = facts.this_machine, facts.daemon
    ages_s = [read_age_s(here.root, daemon.pid)]
    if here.booted and (reloaded_s := here.state_age_s(f"{daemon.name}.service")) is not None:
        ages_s.append(reloaded_s)
    seen_s = here.clock() - min(ages_s)
    hooks = [hook for hook in here.hooks if hook.is_executable]
    if any(hook.changed_at_s - CLOCKS_S <= seen_s for hook in hooks):
        return passed(f"{daemon.name} (pid {daemon.pid}) has started or reloaded since")
    detail = (
        f"every hook is newer than {daemon.name} (pid {daemon.pid}), which looks for hooks when it starts or reloads"
    )
    if facts.agent is not None:
        return info(f"{detail}; an agent hears of guests without it")
    return warned(detail, f"systemctl reload {daemon.name}")


def check_program(facts: Facts) -> Judgement:
    _find(facts)
    if _find_program(facts.this_machine.root) is not None:
        return passed(PROGRAM)
    if facts.agent is not None:
        return passed(f"{PROGRAM} is missing, but an agent listens")
    return failed(f"{PROGRAM} is missing, and no agent listens: a poke starts nothing", f"install virtksm as {PROGRAM}")


def starts_passes(here: Here) -> bool:
    """Return whether a poke starts a pass where no agent runs; raises CannotTell."""
    has_hook = any(hook.path == HOOK for hook in here.hooks)
    return has_hook and (not here.booted or here.unit(SOCKET_UNIT).is_enabled)


def check_confinement(facts: Facts) -> Judgement:
    hook, root = _find(facts), facts.this_machine.root
    by_selinux = selinux_enforces(root)
    if not by_selinux and root.text_if_readable("sys/module/apparmor/parameters/enabled") != "Y\n":
        return passed("neither AppArmor nor SELinux is on")
    by = read_confinement(root, facts.daemon.pid)
    if not by or "unconfined" in by:
        return passed("libvirt's daemon is not confined")
    return _judge_selinux(facts.this_machine, hook, by) if by_selinux else _judge_apparmor(_find_program(root), by)


def _judge_selinux(here: Here, hook: HookFile, by: str) -> Judgement:
    label = hook.selinux_label
    if not label or here.may_execute(by, label):
        return passed(f"the daemon is {by}, the hook {label or 'without a label'}")
    return failed(
        f"no guest starts: SELinux does not let the daemon ({by}) execute the hook ({label})",
        f"rm {HOOK}; an agent needs none (docs/guide.md)",
    )


def _judge_apparmor(program: str | None, by: str) -> Judgement:
    if program is None or program.startswith(APPARMOR_RUNS) or "complain" in by:
        return passed(f"the daemon's profile is {by}")
    return warned(
        f"the daemon's profile is {by}, and {PROGRAM} leads to {program}, which it may not execute",
        f"put a program at {PROGRAM}, not a link (docs/guide.md)",
    )


def _find(facts: Facts, otherwise: str = "no hook is installed") -> HookFile:
    for hook in facts.this_machine.hooks:
        if hook.path == HOOK:
            return hook
    raise DoesNotApply(otherwise)


def _find_program(root: Root) -> str | None:
    """Return where the program that the hook starts leads to; None if it is missing or not executable."""
    real = os.path.realpath(root.path(PROGRAM[1:]))
    return real if os.path.isfile(real) and os.access(real, os.X_OK) else None  # noqa: PTH113  # beside realpath
