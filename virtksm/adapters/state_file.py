"""Keeps a host's state as one JSON file in the runtime folder, under the host's pass lock.

A file that cannot be understood is an error, never taken for "no state": it may hold the administrator's baseline.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict

from virtksm.adapters.files import ensure_runtime, locked, read_file, replace_file
from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.model import KERNEL_MAXIMUM, PARAMETERS
from virtksm.ownership import HostState, Ownership
from virtksm.runtime import RuntimePaths

SCHEMA = 1
LOCK_WAIT_S = 5.0


class StateFile:
    """The StateStore of one host."""

    def __init__(self, paths: RuntimePaths, host: str) -> None:
        self._paths = paths
        self._lock = paths.host_lock(host)
        self._file = paths.host_state(host)

    def locked(self) -> AbstractContextManager[None]:
        ensure_runtime(self._paths)
        busy = AlreadyRunning(
            f"another virtksm pass holds {self._lock}", remedy=f"see who it is: fuser -v {self._lock}"
        )
        return locked(self._lock, busy, wait_s=LOCK_WAIT_S)

    def load(self) -> HostState:
        text = read_file(self._file)
        if text is None:
            return HostState()
        try:
            return parse_state(text)
        except ValueError as error:
            raise StateUnusable(
                f"{self._file}: {error}",
                remedy="remove it, and the settings now in the kernel become the baseline",
            ) from error

    def save(self, state: HostState) -> None:
        replace_file(self._file, dump_state(state))


def dump_state(state: HostState) -> str:
    """Return a state as JSON text."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "parameters": {name: asdict(past) for name, past in state.ownership.items()},
            "policy": {"name": state.policy_name, "past": state.policy_past},
        }
    )


def parse_state(text: str) -> HostState:
    """Parse what dump_state wrote; raises ValueError saying what is wrong."""
    try:
        kept = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        raise ValueError(f"not a virtksm state of schema {SCHEMA}")
    parameters, policy = kept.get("parameters"), kept.get("policy")
    if not isinstance(parameters, dict) or not isinstance(policy, dict):
        raise ValueError("parameters or policy is missing")
    name, past = policy.get("name"), policy.get("past")
    if not isinstance(name, str | None) or not isinstance(past, dict | None):
        raise ValueError("policy is damaged")
    return HostState(
        ownership={key: _parse_ownership(key, value) for key, value in parameters.items()},
        policy_name=name,
        policy_past=past,
    )


def _parse_ownership(parameter: str, value: object) -> Ownership:
    if parameter not in PARAMETERS or not isinstance(value, dict):
        raise ValueError(f"parameter {parameter!r} is damaged")
    baseline, intended, applied = (
        _parse_setting(parameter, value.get(key)) for key in ("baseline", "intended", "applied")
    )
    if baseline is None:
        raise ValueError(f"parameter {parameter!r} has no baseline")
    return Ownership(baseline=baseline, intended=intended, applied=applied)


def _parse_setting(parameter: str, value: object) -> int | None:
    """Take a value that may go to the kernel one day, or None; JSON's true is no number, but Python's is."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= KERNEL_MAXIMUM:
        raise ValueError(f"parameter {parameter!r} is damaged")
    return value
