"""Reads everything that the checks judge. Reads only; what cannot be read becomes a fact that says so."""

from __future__ import annotations

import os
import time

from virtksm.assemble import is_this_machine
from virtksm.config.schema import Config
from virtksm.doctor.checks.hook import SOCKET_UNIT
from virtksm.doctor.checks.kernel import SWITCH_UNIT
from virtksm.doctor.checks.writers import UNITS
from virtksm.doctor.facts import AgentSeen, Facts, Here, Libvirt, Unknown
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.hooks import read_hooks
from virtksm.doctor.reading.kernel import read_kernel
from virtksm.doctor.reading.libvirt import read_libvirt
from virtksm.doctor.reading.own import read_config, read_own
from virtksm.doctor.reading.processes import read_daemon, read_processes, read_uptime_s
from virtksm.doctor.reading.units import read_tuned, read_units
from virtksm.runtime import RuntimePaths
from virtksm.uri import is_alias


def read_facts(
    asked_uri: str, config_file: str | None, paths: RuntimePaths, agent: AgentSeen | Unknown | None
) -> Facts:
    """Read all facts about the host behind `asked_uri`; `agent` is what that said of itself."""
    configuration = read_config(config_file)
    libvirt = read_libvirt(asked_uri)
    uri = libvirt.uri if isinstance(libvirt, Libvirt) else asked_uri
    return Facts(
        here=_read_here_if_meant(uri, configuration), libvirt=libvirt, own=read_own(uri, configuration, paths, agent)
    )


def read_here(root: Root, uri: str, *, now_s: float) -> Here:
    """Read what this machine's own files tell; `now_s` is Unix time."""
    uptime_s = read_uptime_s(root)  # at once, as `now_s` is now: files' ages are compared with the daemon's
    processes = read_processes(root)
    daemon = read_daemon(root, uri, processes, uptime_s=uptime_s)
    return Here(
        kernel=read_kernel(root, page_kib=os.sysconf("SC_PAGE_SIZE") // 1024),
        processes=processes if isinstance(processes, Unknown) else frozenset(one.name for one in processes),
        booted=root.is_folder("run/systemd/system") is True,
        units=read_units(root, (*UNITS, SWITCH_UNIT, SOCKET_UNIT)),
        tuned=read_tuned(root),
        daemon=daemon,
        hooks=read_hooks(root, daemon, now_s=now_s),
    )


def _read_here_if_meant(uri: str, configuration: Config | tuple[str, ...]) -> Here | Unknown:
    if is_alias(uri):
        return Unknown(why=f"libvirt did not say which machine {uri} is")
    if not is_this_machine(uri, configuration if isinstance(configuration, Config) else Config()):
        return Unknown(why="another machine: run this command there")
    return read_here(Root(), uri, now_s=time.time())
