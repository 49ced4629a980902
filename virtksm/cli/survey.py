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
from virtksm.model.snapshot import HostMemory
from virtksm.paths import LOCAL
from virtksm.store.choices import read_unmerged
from virtksm.store.state import read_freed
from virtksm.wiring import is_this_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtksm.host.libvirt_connection import LibvirtHost  # libvirt, which is not there where man pages are made

CALLS = 12
"""A survey has a call of libvirt for each guest, so it may take this many times the limit of one."""


def surveyor(options: argparse.Namespace) -> tuple[Config, Callable[[], tuple[Survey, HostMemory]]]:
    """Return the configuration, and what surveys the guests and the host's memory; both raise VirtksmError."""
    config = load(options.config, asks_groups=False).config
    libvirt = Libvirt(requested_uri(options.connect, options.paths), config.call_timeout_s)

    def read(host: LibvirtHost) -> tuple[Survey, HostMemory]:
        from virtksm.host.local_facts import ProcFacts

        if not is_this_machine(host.uri, config):
            return survey(host, None), host.host_memory()
        facts, freed = ProcFacts(), read_freed(options.paths, LOCAL)
        unmerged = partial(read_unmerged, options.paths, facts)
        return survey(host, facts, None if freed is None else freed.kib, unmerged), facts.host_memory()

    return config, lambda: libvirt.ask("guests", read, times=CALLS)
