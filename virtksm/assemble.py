"""Puts the parts of a pass together over an open connection: the one place that chooses adapters.

The agent does it for every new connection and configuration, the one-shot commands once.
"""

from __future__ import annotations

from typing import Any

from virtksm.adapters.clock import boottime_s
from virtksm.adapters.libvirt_host import LibvirtHost
from virtksm.adapters.local_facts import ProcFacts
from virtksm.adapters.state_file import StateFile
from virtksm.config.schema import Config
from virtksm.cycle import Cycle, Memory
from virtksm.policy import make_policy
from virtksm.runtime import RuntimePaths, host_key
from virtksm.uri import is_local


def make_cycle(
    host: LibvirtHost,
    config: Config,
    paths: RuntimePaths,
    *,
    memory: Memory | None = None,
    facts: ProcFacts | None = None,
) -> Cycle[Any]:
    """Return a cycle over `host`; without `memory` it begins a tenure of its own.

    `facts` lets an agent keep what it knows of processes from one connection to the next.
    """
    local = config.host == "local" or is_local(host.uri)
    return Cycle(
        hypervisor=host,
        local=(facts or ProcFacts(boottime_s)) if local else None,
        policy=make_policy(config),
        store=StateFile(paths, host_key(host.uri, local=local)),
        clock=boottime_s,
        on_conflict=config.on_conflict,
        memory=memory or Memory(),
    )
