"""Checks of the libvirt connection: reachable, new enough, KSM's parameters offered, and permission to set."""

from __future__ import annotations

from virtksm.doctor.facts import Facts, known
from virtksm.doctor.finding import CannotTell, Judgement, failed, passed, warned
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.processes import read_confinement, sees_sys_read_only
from virtksm.errors import REMEDIES, USE_QEMU, VirtksmError
from virtksm.model.snapshot import PARAMETERS

MIN = 10_002
"""0.10.2 brought virNodeSetMemoryParameters."""
TRIED = 9_000_000
"""9.0.0, Debian 12's, is the oldest tested version, and the one that libvirt-python is required to be."""

SESSION = ":///session"


def check_reachable(facts: Facts) -> Judgement:
    if isinstance(facts.libvirt, VirtksmError):
        return failed(facts.libvirt.message, facts.libvirt.remedy)
    return passed(facts.libvirt.uri)


def check_version(facts: Facts) -> Judgement:
    connection = facts.connection
    detail = f"daemon {version_text(connection.version)}, client {version_text(connection.client_version)}"
    if connection.version < MIN:
        return failed(f"{detail}: without virNodeSetMemoryParameters", "take libvirt 0.10.2 or newer, better 9.0")
    if min(connection.version, connection.client_version) < TRIED:
        return warned(f"{detail}: older than the tested 9.0", "take libvirt 9.0 or newer")
    return passed(detail)


def check_parameters(facts: Facts) -> Judgement:
    ksm = known(facts.connection.ksm)
    values = dict.fromkeys(PARAMETERS) if ksm is None else ksm.settings.as_dict()
    missing = [name for name in ("pages_to_scan", "sleep_millisecs") if values[name] is None]
    if missing:
        return failed(f"not offered: {', '.join(missing)}", USE_QEMU)
    return passed(", ".join(f"{name} {value}" for name, value in values.items() if value is not None))


def check_permission(facts: Facts) -> Judgement:
    connection = facts.connection
    if SESSION in connection.uri:
        return failed("a session's daemon runs as its user, who may not set them", "connect to qemu:///system")
    refused = known(connection.refused)
    if refused is None:
        return passed("allowed")
    return failed(f"libvirt refuses this user ({refused.value.replace('_', ' ')})", REMEDIES[refused])


def check_sys_writable(facts: Facts) -> Judgement:
    daemon = facts.daemon
    if sees_sys_read_only(facts.this_machine.root, daemon.pid):
        return failed(
            f"{daemon.name} (pid {daemon.pid}) sees /sys read-only: the kernel will refuse every setting",
            "give its container or unit a writable /sys/kernel/mm/ksm (ReadWritePaths=, or a bind mount)",
        )
    detail = f"{daemon.name} (pid {daemon.pid}) sees it writable"
    confined = _selinux_domain(facts, daemon.pid)
    if confined is None:
        return passed(detail)
    refused = facts.agent_seen["last_pass"]["refused"] if facts.agent_seen else ()
    if refused and refused[0]["cause"] == "unknown":
        return warned(
            f"{detail}, but a setting was refused and SELinux confines it ({confined})",
            "see what SELinux denies: ausearch -m avc; newer policies let it write (dnf update selinux-policy)",
        )
    return passed(f"{detail}; SELinux confines it ({confined}), and no refusal is known")


def _selinux_domain(facts: Facts, pid: int) -> str | None:
    """Return the SELinux domain that confines a daemon, None for none: virtd_t is not confined, virtqemud_t is."""
    root = facts.this_machine.root
    if not selinux_enforces(root):
        return None
    try:
        parts = read_confinement(root, pid).split(":")
    except CannotTell:  # a finding of the hook's
        return None
    domain = parts[2] if len(parts) > 2 else ""
    return None if domain in ("", "virtd_t") or domain.startswith("unconfined") else domain


def selinux_enforces(root: Root) -> bool:
    """Return whether SELinux is on, and not only permissive."""
    return root.text_if_readable("sys/fs/selinux/enforce").strip() == "1"


def version_text(number: int) -> str:
    """Return libvirt's number of a version as text: 9000000 is 9.0.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
