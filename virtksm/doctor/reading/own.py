"""Reads virtksm's own state: configuration, switch, agent, folders. Makes nothing that is missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
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

Status = Mapping[str, Any]
"""An agent's own, of the shape that the command asks for (docs/reference.md)."""

NO_PASS: Status = {
    "outcome": None,
    "refused": (),
    "sensed": {"guests": 0, "guests_unread": 0},
    "decision": {"numbers": {"other_processes_kib": None}, "rewriters": ()},
}
NONE_SWITCHED: Status = {"unmerged": (), "merging": (), "failed": (), "rewriters_unknown": None}


def read_config(path: str | None) -> tuple[Config | tuple[str, ...], frozenset[str], tuple[str, ...]]:
    """Load the configuration, `path` alone, or all layers for None: it or its faults, the keys set, and the files."""
    try:
        loaded = load(path)
    except ConfigError as error:
        return tuple(str(fault) for fault in error.faults), frozenset(), ()
    keys_set = frozenset(name for name, origin in loaded.origins.items() if origin != DEFAULT)
    return loaded.config, keys_set, loaded.files


def see_agent(status: Status) -> Status:
    """Return an agent's status, where it has none with a pass that saw no guest, and with no guest switched."""
    last, switched = status["last_pass"] or NO_PASS, status["switched"] or NONE_SWITCHED
    return {**status, "last_pass": last, "switched": switched}


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
