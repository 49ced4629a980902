"""Reads the facts that the checks judge. Reads only; an unreadable fact becomes `Unknown`."""

from __future__ import annotations

import os
import time

from virtksm.config.schema import Config
from virtksm.doctor.checks.hook import SOCKET_UNIT
from virtksm.doctor.checks.kept_off import KEPT_OFF_UNITS, find_kept_off
from virtksm.doctor.checks.writers import UNITS
from virtksm.doctor.facts import AgentSeen, Facts, Here, Libvirt, Unknown
from virtksm.doctor.reading.boot import read_boot
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.hooks import read_hooks
from virtksm.doctor.reading.kernel import read_kernel
from virtksm.doctor.reading.libvirt import read_libvirt
from virtksm.doctor.reading.own import read_config, read_own
from virtksm.doctor.reading.processes import read_daemon, read_processes, read_uptime_s, read_users
from virtksm.doctor.reading.units import read_enabled, read_tuned, read_units
from virtksm.paths import RuntimePaths
from virtksm.remedies import SWITCH_UNIT
from virtksm.uri import is_alias
from virtksm.wiring import is_this_machine

NAMES = (*UNITS, SWITCH_UNIT, SOCKET_UNIT)
RULES_DIRS = ("etc/polkit-1/rules.d", "usr/share/polkit-1/rules.d")


def read_facts(
    asked_uri: str, config_file: str | None, paths: RuntimePaths, agent: AgentSeen | Unknown | None
) -> Facts:
    """Read all facts about the host behind `asked_uri`; `agent` is its own answer."""
    configuration, keys_set = read_config(config_file)
    libvirt, peer_pid = read_libvirt(asked_uri)
    uri = libvirt.uri if isinstance(libvirt, Libvirt) else asked_uri
    return Facts(
        here=_read_here_if_meant(uri, configuration, peer_pid),
        libvirt=libvirt,
        own=read_own(uri, configuration, paths, agent, keys_set=keys_set),
    )


def read_kept_off(root: Root) -> str | None:
    """Return what keeps KSM off on this host, None for nothing: from files only, libvirt is not asked."""
    return find_kept_off(read_units(root, KEPT_OFF_UNITS), read_tuned(root), read_boot(root, ()))


def read_here(root: Root, uri: str, *, now_s: float, peer_pid: int | None = None) -> Here:
    """Read this machine's own files; `now_s` is Unix time, `peer_pid` the process that serves libvirt's connection."""
    uptime_s = read_uptime_s(root)  # at once, as `now_s` is now: files' ages are compared with the daemon's
    processes = read_processes(root)
    daemon = read_daemon(root, uri, processes, uptime_s=uptime_s, peer_pid=peer_pid)
    return Here(
        kernel=read_kernel(root, page_kib=os.sysconf("SC_PAGE_SIZE") // 1024),
        processes=processes if isinstance(processes, Unknown) else frozenset(one.name for one in processes),
        booted=root.is_folder("run/systemd/system") is True,
        units=read_units(root, NAMES),
        tuned=read_tuned(root),
        boot=read_boot(root, {one for one in read_enabled(root) if one not in NAMES and not one.startswith("virtksm")}),
        daemon=daemon,
        hooks=read_hooks(root, daemon, now_s=now_s),
        has_agent_user="virtksm" in read_users(root),
        agent_rule=_find_rule(root),
    )


def _find_rule(root: Root) -> str | Unknown | None:
    """Return a file of polkit's rules that names the agent's user."""
    doubt = None
    for folder in RULES_DIRS:
        names = root.names(folder)
        if isinstance(names, Unknown):
            doubt = doubt or names
            continue
        for path in (f"{folder}/{name}" for name in names if name.endswith(".rules")):
            text = root.text(path)
            if isinstance(text, str) and '"virtksm"' in text:
                return f"/{path}"
    return doubt


def _read_here_if_meant(uri: str, configuration: Config | tuple[str, ...], peer_pid: int | None) -> Here | Unknown:
    if is_alias(uri):
        return Unknown(why=f"libvirt did not say which machine {uri} is")
    if not is_this_machine(uri, configuration if isinstance(configuration, Config) else Config()):
        return Unknown(why="another machine: run this command there")
    return read_here(Root(), uri, now_s=time.time(), peer_pid=peer_pid)
