"""Reads virtksm's own state: configuration, switch, agent, folders. Makes nothing that is missing."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtksm.agent.fifo import find_fault
from virtksm.config.load import DEFAULT, load
from virtksm.config.schema import Config
from virtksm.doctor.finding import CannotTell
from virtksm.errors import ConfigError, StateUnusable
from virtksm.paths import RuntimePaths
from virtksm.store.state import StateFile
from virtksm.tuning.ownership import HostState
from virtksm.wiring import key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """An agent's own status (`virtksm status --json`).

    `silence`: since when and why libvirt does not answer, None if it does. `outcome` is the last pass's, `refusal` why
    a setting was refused, or empty. `other_processes_kib` is their memory that it counts, None if its policy does not;
    `guests_unread` of its `guests` are those whose memory it could not read. `unmerged` are the UUIDs of those that
    were unmerged while they run, `merging` of those that a command lets merge, `unswitched` says why others were not.
    `rewriters` are the names of those that are to
    be out as they rewrite what merges; why they are unknown, or empty.
    """

    uri: str
    silence: str | None
    is_stranded: bool | None
    worst_core_percent: float | None
    outcome: str | None
    refusal: str
    other_processes_kib: int | None = None
    guests: int = 0
    guests_unread: int = 0
    unmerged: frozenset[str] = frozenset()
    merging: frozenset[str] = frozenset()
    unswitched: tuple[str, ...] = ()
    rewriters: frozenset[str] = frozenset()
    rewriters_unknown: str = ""


def read_config(path: str | None) -> tuple[Config | tuple[str, ...], frozenset[str]]:
    """Load the configuration; return it, or its faults if there are any, and the keys that its files set."""
    try:
        loaded = load(path)
    except ConfigError as error:
        return tuple(str(fault) for fault in error.faults), frozenset()
    return loaded.config, frozenset(name for name, origin in loaded.origins.items() if origin != DEFAULT)


def see_agent(status: Mapping[str, Any]) -> AgentSeen:
    """Take the facts from an agent's status, which has its shape (docs/reference.md)."""
    libvirt, stranded, switched, last = (status[name] for name in ("libvirt", "stranded", "switched", "last_pass"))
    error = f" ({libvirt['error']})" if libvirt["error"] else ""
    silence = f"since {libvirt['silent_since']}, waiting for {libvirt['waiting_for']}{error}"
    refused = last["refused"] if last else ()
    return AgentSeen(
        uri=status["uri"],
        silence=None if libvirt["answers"] else silence,
        is_stranded=stranded["possible"],
        worst_core_percent=stranded["worst_core_percent"],
        outcome=last and last["outcome"],
        refusal=f"{refused[0]['parameter']}, {refused[0]['cause'].replace('_', ' ')}" if refused else "",
        other_processes_kib=last and last["decision"]["numbers"]["other_processes_kib"],
        guests=last["sensed"]["guests"] if last else 0,
        guests_unread=last["sensed"]["guests_unread"] if last else 0,
        unmerged=frozenset(one["uuid"] for one in switched["unmerged"]) if switched else frozenset(),
        merging=frozenset(one["uuid"] for one in switched["merging"]) if switched else frozenset(),
        unswitched=tuple(one["message"] for one in switched["failed"]) if switched else (),
        rewriters=frozenset(last["decision"]["rewriters"]) if last else frozenset(),
        rewriters_unknown=(switched and switched["rewriters_unknown"]) or "",
    )


def read_state(uri: str, paths: RuntimePaths, config: Config) -> tuple[HostState | CannotTell, tuple[str, ...]]:
    """Read the state of the host behind `uri`; return it, and what is wrong with the folders, each a sentence."""
    faults = [_folder_fault(folder) for folder in (paths.root, paths.agent_dir, paths.state_dir)]
    faults.append(_fifo_fault(paths))
    state: HostState | CannotTell
    try:
        state = StateFile(paths, key_of(uri, config)).load()
    except StateUnusable as error:
        state = CannotTell(error.message)
        if isinstance(error.__cause__, ValueError):
            faults.append(error.message)
    return state, tuple(filter(None, faults))


def _folder_fault(path: str) -> str:
    try:
        status = os.lstat(path)
    except FileNotFoundError:  # made when it is needed
        return ""
    except OSError as error:
        return "" if isinstance(error, PermissionError) else f"{path}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a folder"
    if status.st_mode & 0o022:
        return f"{path} may be written to by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    if os.geteuid() in (0, status.st_uid) and not os.access(path, os.W_OK | os.X_OK):
        return f"{path} cannot be written to"
    return ""


def _fifo_fault(paths: RuntimePaths) -> str:
    try:
        agent_uid = os.stat(paths.agent_dir).st_uid  # noqa: PTH116  # as lstat below
        fault = find_fault(os.lstat(paths.poke_fifo), agent_uid)
    except OSError:  # neither need be there
        return ""
    return f"{paths.poke_fifo} {fault}" if fault else ""
