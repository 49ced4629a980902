"""Builds the parts of a pass over an open connection: the one place that chooses them.

The agent does it for every new connection and configuration, the one-shot commands once.
"""

from __future__ import annotations

import os

from virtksm.paths import RuntimePaths, host_key
from virtksm.store.switch import SwitchFile
from virtksm.uri import is_local, may_be_here

TYPE_CHECKING = False  # imports are start-up time, and the switch must be had without libvirt's library
if TYPE_CHECKING:
    from typing import Any

    from virtksm.config.schema import Config
    from virtksm.history.samples import History
    from virtksm.host.libvirt_connection import LibvirtHost
    from virtksm.host.local_facts import ProcFacts
    from virtksm.store.choices import ChoiceFile
    from virtksm.tuning.cycle import Cycle, Tenure


def is_this_machine(uri: str, config: Config) -> bool:
    """Return whether the connection `uri` leads to this machine's own kernel."""
    return is_local(uri) or (config.host == "local" and may_be_here(uri, os.uname().nodename))


def key_of(uri: str, config: Config) -> str:
    """Return the name of the host behind `uri`, which is no alias, in those of its files."""
    return host_key(uri, local=is_this_machine(uri, config))


def make_switch(uri: str, config: Config, paths: RuntimePaths) -> SwitchFile:
    """Return the switch of the host behind `uri`, which is no alias."""
    return SwitchFile(paths.host_switch(key_of(uri, config)))


def make_history(uri: str, config: Config, paths: RuntimePaths) -> History:
    """Return the history of the host behind `uri`, which is no alias."""
    from virtksm.store.history import HistoryFile  # SQLite takes 9 ms to import, and no pass needs it

    return HistoryFile(paths.host_history(key_of(uri, config)))


def make_choices(uri: str, config: Config, paths: RuntimePaths) -> ChoiceFile | None:
    """Return the choices of the host behind `uri`; None for another machine."""
    from virtksm.store.choices import ChoiceFile  # no pass needs it

    return ChoiceFile(paths) if is_this_machine(uri, config) else None


def make_cycle(
    host: LibvirtHost,
    config: Config,
    paths: RuntimePaths,
    *,
    tenure: Tenure | None = None,
    facts: ProcFacts | None = None,
) -> Cycle[Any]:
    """Return a cycle over `host`; without `tenure` it begins a tenure of its own.

    `facts` lets an agent keep the processes it found from one connection to the next.
    """
    from virtksm.host.local_facts import ProcFacts, boottime_s
    from virtksm.policy import make_policy
    from virtksm.store.state import StateFile
    from virtksm.tuning.cycle import Cycle, Tenure

    host.call_timeout_s = config.call_timeout_s
    return Cycle(
        hypervisor=host,
        local=(facts or ProcFacts()) if is_this_machine(host.uri, config) else None,
        policy=make_policy(config),
        store=StateFile(paths, key_of(host.uri, config)),
        switch=make_switch(host.uri, config, paths),
        clock=boottime_s,
        on_conflict=config.on_conflict,
        tenure=tenure or Tenure(),
    )
