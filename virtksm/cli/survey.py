"""What `virtksm guests` and `virtksm headroom` have in common: a read-only look at a host's guests."""

from __future__ import annotations

import argparse
import gc

from virtksm.uri import requested_uri

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from virtksm.adapters.libvirt_host import LibvirtHost
    from virtksm.adapters.local_facts import ProcFacts
    from virtksm.config.schema import Config
    from virtksm.survey import Survey


def add_survey_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    parser.add_argument("--connect", "-c", metavar="URI", help="libvirt connection (default: as virsh, qemu:///system)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def look(options: argparse.Namespace) -> tuple[Survey, Config, LibvirtHost, ProcFacts | None]:
    """Look at the guests; return what was seen, and through what: no facts of this host's where it is another's.

    The connection is read-only, which every user of the machine may have. Raises VirtksmError.
    """
    from virtksm.adapters.clock import boottime_s
    from virtksm.adapters.libvirt_host import open_host
    from virtksm.adapters.local_facts import ProcFacts
    from virtksm.assemble import is_this_machine
    from virtksm.config.load import load
    from virtksm.survey import survey

    gc.disable()  # a process of a tenth of a second has no garbage worth the time
    config = load(options.config).config
    host = open_host(requested_uri(options.connect), read_only=True)
    facts = ProcFacts(boottime_s) if is_this_machine(host.uri, config) else None
    return survey(host, facts), config, host, facts
