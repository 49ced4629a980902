"""Reads virtksm's own state: configuration, switch, agent, folders. Makes nothing that is missing."""

from __future__ import annotations

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
from virtksm.model.decision import Pause
from virtksm.paths import RuntimePaths
from virtksm.store.state import StateFile
from virtksm.tuning.ownership import HostState
from virtksm.wiring import key_of, make_switch

MAX_KIB = 1 << 53
"""Of an agent's number: a greater one is no memory."""
MAX_GUESTS = 10_000
"""Of an agent's list."""
MAX_LETTERS = 300
"""Of an agent's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """An agent's own status (`virtksm status --json`).

    `silence`: since when and why libvirt does not answer, None if it does. `outcome` is the last pass's, `refusal` why
    a setting was refused, or empty. `other_processes_kib` is their memory that it counts, None if its policy does not;
    `guests_unread` of its `guests` are those whose memory it could not read. `unmerged` are the UUIDs of those that
    were unmerged while they run, `unswitched` says why others were not. `rewriters` are the names of those that are to
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
    unswitched: tuple[str, ...] = ()
    rewriters: frozenset[str] = frozenset()
    rewriters_unknown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """virtksm itself. `configuration`, or the faults of it, and the keys that its files set; `agent`: None for none.

    `folder` is for what it does at run time; `faults`: what is wrong with it or with the state folder, each a
    sentence. `state` is the host's state in it.
    """

    configuration: Config | tuple[str, ...]
    keys_set: frozenset[str] = frozenset()
    paused: Pause | None
    agent: AgentSeen | CannotTell | None
    folder: str
    faults: tuple[str, ...]
    state: HostState | CannotTell

    @property
    def config(self) -> Config:
        """The configuration in force; the defaults where it has faults, which is a finding of its own."""
        return self.configuration if isinstance(self.configuration, Config) else Config()


def read_config(path: str | None) -> tuple[Config | tuple[str, ...], frozenset[str]]:
    """Load the configuration; return it, or its faults if there are any, and the keys that its files set."""
    try:
        loaded = load(path)
    except ConfigError as error:
        return tuple(str(fault) for fault in error.faults), frozenset()
    return loaded.config, frozenset(name for name, origin in loaded.origins.items() if origin != DEFAULT)


def read_own(
    uri: str,
    configuration: Config | tuple[str, ...],
    paths: RuntimePaths,
    agent: AgentSeen | CannotTell | None,
    *,
    keys_set: frozenset[str] = frozenset(),
) -> Own:
    """Read virtksm's own files of the host behind `uri`; `agent` is its own answer."""
    config = configuration if isinstance(configuration, Config) else Config()
    faults = [_folder_fault(folder) for folder in (paths.root, paths.agent_dir, paths.state_dir)]
    faults.append(_fifo_fault(paths))
    state: HostState | CannotTell
    try:
        state = StateFile(paths, key_of(uri, config)).load()
    except StateUnusable as error:
        state = CannotTell(error.message)
        if isinstance(error.__cause__, ValueError):
            faults.append(error.message)
    return Own(
        configuration=configuration,
        keys_set=keys_set,
        paused=make_switch(uri, config, paths).read(),
        agent=agent,
        folder=paths.root,
        faults=tuple(filter(None, faults)),
        state=state,
    )


def parse_agent(status: object) -> AgentSeen | CannotTell:
    """Take the facts from an agent's status (docs/reference.md); CannotTell if it is none."""
    try:
        return _parse_agent(status)  # type: ignore[arg-type]  # a wrong type raises, below
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        return CannotTell("the agent's answer is not understood", "systemctl restart virtksm.service")


def _parse_agent(status: Mapping[str, Any]) -> AgentSeen:
    libvirt, stranded, last = status["libvirt"], status["stranded"], status["last_pass"]
    silence = None
    if not libvirt["answers"]:
        why = f" ({_text(libvirt['error'])})" if libvirt["error"] else ""
        silence = f"since {_text(libvirt['silent_since'])}, waiting for {_text(libvirt['waiting_for'])}{why}"
    refused = last["refused"] if last is not None else []
    other_processes_kib = last["decision"]["numbers"].get("other_processes_kib") if last is not None else None
    sensed = last["sensed"] if last is not None else {"guests": 0, "guests_unread": 0}
    switched = status.get("switched") or {"unmerged": [], "failed": []}
    rewriters = last["decision"].get("rewriters", ()) if last is not None else ()
    percent = stranded["worst_core_percent"]
    return AgentSeen(
        uri=_text(status["uri"]),
        silence=silence,
        is_stranded=None if stranded["possible"] is None else bool(stranded["possible"]),
        worst_core_percent=None if percent is None else float(percent),
        outcome=None if last is None else _text(last["outcome"]),
        refusal=_text(f"{refused[0]['parameter']}, {refused[0]['cause'].replace('_', ' ')}") if refused else "",
        other_processes_kib=None if other_processes_kib is None else _count(other_processes_kib),
        guests=_count(sensed["guests"]),
        guests_unread=_count(sensed["guests_unread"]),
        unmerged=frozenset(_text(one["uuid"]) for one in switched["unmerged"][:MAX_GUESTS]),
        unswitched=tuple(_text(one["message"]) for one in switched["failed"][:MAX_GUESTS]),
        rewriters=frozenset(_text(one) for one in rewriters[:MAX_GUESTS]),
        rewriters_unknown=_text(switched.get("rewriters_unknown") or ""),
    )


def _text(value: object) -> str:
    return str(value)[:MAX_LETTERS]


def _count(value: object) -> int:
    """Return a count of an agent; raises ValueError if it is none."""
    if not isinstance(value, int) or not 0 <= value <= MAX_KIB:
        raise ValueError("no count")
    return value


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
