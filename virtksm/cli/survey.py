"""The common part of `virtksm guests` and `virtksm headroom`: a read-only survey of a host's guests."""

from __future__ import annotations

import argparse
from functools import partial

from virtksm.cli.connection import Libvirt, requested_uri
from virtksm.config.load import load
from virtksm.guests.survey import Survey, survey
from virtksm.model.snapshot import HostMemory
from virtksm.paths import LOCAL
from virtksm.store.choices import read_unmerged
from virtksm.store.state import read_freed
from virtksm.wiring import is_this_machine

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from virtksm.host.libvirt_connection import LibvirtHost

CALLS = 12
"""A survey has a call of libvirt for each guest, so it may take this many times the limit of one."""


class Surveyor:
    """Surveys a host's guests as often as asked; keeps its connection in between.

    The connection is read-only, which every user of the machine may have.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.config = load(options.config, asks_groups=False).config
        self._paths = options.paths
        self._uri = requested_uri(options.connect, self._paths)
        self._libvirt = Libvirt(self.config.call_timeout_s)
        self._host: LibvirtHost | None = None

    def read(self) -> tuple[Survey, HostMemory]:
        from virtksm.host.local_facts import ProcFacts

        host = self._host or self._libvirt.open(self._uri, read_only=True)
        facts = ProcFacts() if is_this_machine(host.uri, self.config) else None

        def read() -> tuple[Survey, HostMemory]:
            freed = None if facts is None else read_freed(self._paths, LOCAL)
            if facts is None:
                found = survey(host, None)
            else:
                unmerged = partial(read_unmerged, self._paths, facts)
                found = survey(host, facts, None if freed is None else freed.kib, unmerged)
            return found, (facts or host).host_memory()

        self._host = None  # a connection that breaks is not used again
        found = self._libvirt.run("guests", read, times=CALLS)
        self._host = host
        return found
