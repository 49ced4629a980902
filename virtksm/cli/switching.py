"""What `virtksm off` and `virtksm on` have in common: turns a host's switch and runs a pass, through the agent or here.

The switch is turned before anything is asked of libvirt, so that it holds also where libvirt does not answer.
"""

from __future__ import annotations

import argparse

from virtksm.cli.retune import through_agent
from virtksm.errors import LibvirtUnreachable
from virtksm.runtime import RuntimePaths
from virtksm.uri import is_alias, requested_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any


def add_switch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    parser.add_argument("--connect", "-c", metavar="URI", help="libvirt connection (default: as virsh, qemu:///system)")
    parser.add_argument("--direct", action="store_true", help="do it here, also where an agent runs")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def switch(options: argparse.Namespace, op: str) -> dict[str, Any]:
    """Turn the switch to `op` ("off" or "on"), run a pass and return it.

    Raises LibvirtUnreachable, saying so, where the switch was turned and no pass was possible.
    """
    paths, uri = RuntimePaths(options.runtime_dir, options.state_dir), requested_uri(options.connect)
    record = None if options.direct else through_agent(paths, uri, {"op": op})
    return _directly(paths, options, uri, op) if record is None else record


def _directly(paths: RuntimePaths, options: argparse.Namespace, uri: str, op: str) -> dict[str, object]:
    from virtksm.adapters.libvirt_host import open_host
    from virtksm.assemble import make_cycle, make_switch
    from virtksm.config.load import load
    from virtksm.model import Occasion, Trigger

    trigger = Trigger(op)
    config = load(options.config).config

    def turn(of: str) -> None:
        own = make_switch(of, config, paths)
        if trigger is Trigger.OFF:
            own.turn_off()
        else:
            own.turn_on()

    is_turned = not is_alias(uri)
    if is_turned:
        turn(uri)
    try:
        host = open_host(uri)
    except LibvirtUnreachable as error:
        if not is_turned:
            raise
        raise LibvirtUnreachable(
            f"switched {op}, but no pass was possible yet: {error.message}", remedy=error.remedy
        ) from error
    if host.uri != uri:  # it was an alias, or written in another way
        record = None if options.direct else through_agent(paths, host.uri, {"op": op})
        if record is not None:
            return record
        turn(host.uri)
    return make_cycle(host, config, paths).run(Occasion(triggers=frozenset({trigger}))).as_dict()
