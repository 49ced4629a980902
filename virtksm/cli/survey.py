"""The common part of `virtksm guests` and `virtksm headroom`: a survey of a host's guests.

Over a read-only connection, which every user of the machine may have; it is kept from one survey to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from virtksm.cli.connection import Libvirt, requested_uri
from virtksm.config.load import load
from virtksm.config.schema import Config
from virtksm.guests.survey import Survey, survey
from virtksm.paths import LOCAL, RuntimePaths
from virtksm.store.choices import read_unmerged
from virtksm.store.state import read_freed
from virtksm.wiring import is_this_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtksm.host.libvirt_connection import LibvirtHost  # libvirt, which is not there where man pages are made
    from virtksm.host.local_facts import ProcFacts

CALLS = 12
"""A survey has a call of libvirt for each guest, so it may take this many times the limit of one."""

Seen = TypeVar("Seen")


def surveyor(
    options: argparse.Namespace, read: Callable[[RuntimePaths, LibvirtHost, ProcFacts | None], Seen]
) -> tuple[Config, Callable[[], Seen]]:
    """Return the configuration, and what has `read` survey the host; both raise VirtksmError."""
    config = load(options.config, asks_groups=False).config
    libvirt = Libvirt(requested_uri(options.connect, options.paths), config.call_timeout_s)

    def survey_host(host: LibvirtHost) -> Seen:
        from virtksm.host.local_facts import ProcFacts

        return read(options.paths, host, ProcFacts() if is_this_machine(host.uri, config) else None)

    return config, lambda: libvirt.ask("guests", survey_host, times=CALLS)


def read_survey(paths: RuntimePaths, host: LibvirtHost, local: ProcFacts | None) -> Survey:
    """Survey the guests; `local` is None for a remote host."""
    if local is None:
        return survey(host, None)
    freed = read_freed(paths, LOCAL)
    return survey(host, local, None if freed is None else freed.kib, partial(read_unmerged, paths, local))
