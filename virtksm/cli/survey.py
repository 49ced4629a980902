"""The common part of `virtksm guests` and `virtksm headroom`: a survey of a host's guests.

Over a read-only connection, which every user of the machine may have; it is kept from one survey to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from virtksm.cli.connection import Libvirt, requested_uri
from virtksm.config.load import load
from virtksm.config.schema import Config
from virtksm.guests.survey import Survey, survey
from virtksm.model.snapshot import HostMemory, NodeMemory
from virtksm.paths import LOCAL
from virtksm.store.choices import read_unmerged
from virtksm.store.state import read_freed
from virtksm.tuning.ports import LocalFacts
from virtksm.tuning.sense import read_nodes
from virtksm.wiring import is_this_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtksm.host.libvirt_connection import LibvirtHost  # libvirt, which is not there where man pages are made

CALLS = 12
"""A survey has a call of libvirt for each guest, so it may take this many times the limit of one."""


Bound = dict[tuple[int, ...], NodeMemory]
"""Memory of the sets of NUMA nodes that guests are bound to, as far as they are there."""


def surveyor(options: argparse.Namespace) -> tuple[Config, Callable[[], tuple[Survey, HostMemory, Bound]]]:
    """Return the configuration, and what surveys the guests and the host's memory; both raise VirtksmError."""
    config = load(options.config, asks_groups=False).config
    libvirt = Libvirt(requested_uri(options.connect, options.paths), config.call_timeout_s)

    def read(host: LibvirtHost) -> tuple[Survey, HostMemory, Bound]:
        from virtksm.host.local_facts import ProcFacts

        if not is_this_machine(host.uri, config):
            return survey(host, None), host.host_memory(), {}
        facts, freed = ProcFacts(), read_freed(options.paths, LOCAL)
        unmerged = partial(read_unmerged, options.paths, facts)
        found = survey(host, facts, None if freed is None else freed.kib, unmerged)
        memory = facts.host_memory()
        return found, memory, read_bound(found, memory, facts)

    return config, lambda: libvirt.ask("guests", read, times=CALLS)


def read_bound(found: Survey, memory: HostMemory, local: LocalFacts) -> Bound:
    sets = sorted({nodes for one in found.guests for nodes in one.xml.bound_to})
    return {nodes: one for nodes in sets if (one := read_nodes(nodes, memory, local)) is not None}
