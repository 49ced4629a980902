"""The common part of `virtksm guests` and `virtksm headroom`: a read-only survey of a host's guests."""

from __future__ import annotations

import argparse
import gc

from virtksm.cli.connection import Libvirt, requested_uri

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from virtksm.config.schema import Config
    from virtksm.guests.survey import Survey
    from virtksm.model.snapshot import HostMemory

CALLS = 12
"""A survey has a call of libvirt for each guest, so it may take this many times the limit of one."""


def read_survey(options: argparse.Namespace) -> tuple[Survey, HostMemory, Config]:
    """Survey the guests and the host's memory.

    The connection is read-only, which every user of the machine may have. Raises VirtksmError.
    """
    from virtksm.config.load import load
    from virtksm.guests.survey import survey
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts
    from virtksm.wiring import is_this_machine

    gc.disable()  # a process of a tenth of a second has no garbage worth the time
    config = load(options.config, asks_groups=False).config
    libvirt = Libvirt(config.call_timeout_s)
    host = libvirt.open(requested_uri(options.connect), read_only=True)
    facts = ProcFacts(boottime_s) if is_this_machine(host.uri, config) else None

    def read() -> tuple[Survey, HostMemory]:
        return survey(host, facts), (facts or host).host_memory()

    return *libvirt.run("guests", read, times=CALLS), config
