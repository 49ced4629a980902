"""`virtksm unmerge --merge-across-nodes`: changes on this machine whether pages of different NUMA nodes merge.

The kernel takes it only while nothing is shared. So, under every policy and without an agent, too:

1. All pages are unmerged, as by `virtksm unmerge`: where they fit into memory, by systemd. KSM is off (run is 2) then,
   so that ksmd merges nothing.
2. A pass, by the agent where one runs: the policy learns that all is unmerged. Where the configuration asks for
   the value, the pass sets it.
3. Where it is still another, it is set through libvirt.
4. Where KSM was on, systemd switches it on again, also after a failure, and one more pass has memory merge.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from virtksm.cli.connection import Libvirt, config_or_defaults, requested_uri, warn
from virtksm.cli.layout import Row
from virtksm.cli.retune import run_pass
from virtksm.cli.unmerge import read_here
from virtksm.config.schema import Config
from virtksm.errors import REMEDIES, SWITCH_UNIT, Cause, Unsupported, VirtksmError, switch_ksm_on
from virtksm.host.local_facts import ProcFacts
from virtksm.host.systemd import switch_on_here
from virtksm.model.snapshot import KsmState, Settings
from virtksm.tuning.actuate import apply, plan
from virtksm.tuning.ports import Hypervisor, LocalFacts
from virtksm.wiring import is_this_machine

VALUES = {"never": 0, "always": 1}
TEXTS = {0: "0: each NUMA node merges its own pages", 1: "1: pages of different NUMA nodes merge"}
KEY = "adaptive.merge_across_nodes"


def change_nodes(
    wanted: str,
    config: Config,
    facts: ProcFacts,
    *,
    unmerge: Callable[[], None],
    retune: Callable[[], object],
    set_value: Callable[[int], None],
    start: Callable[[str], int],
) -> None:
    """Set merge_across_nodes as `wanted`, a key of VALUES; raises VirtksmError, but leaves KSM on where it was.

    Where it cannot, the error says so. `retune` runs a pass; one that fails is a warning. `start` starts a unit and
    returns systemctl's exit code.
    """
    asked = config.adaptive.merge_across_nodes
    if config.policy == "adaptive" and asked not in ("keep", wanted):
        remedy = f'set {KEY} = "{wanted}" or "keep", and reload'
        raise VirtksmError(f"{KEY} is {asked!r}: the policy would set that again", remedy=remedy)
    value = VALUES[wanted]
    before, _ = read_here(facts)
    if before.settings.merge_across_nodes is None:
        raise Unsupported("this kernel has no merge_across_nodes", remedy=REMEDIES[Cause.UNSUPPORTED])
    if before.settings.merge_across_nodes == value:
        return
    failure = ""
    try:
        if before.pages_shared:
            unmerge()
            _attempt(retune)
        if facts.ksm_counter("merge_across_nodes") != value:
            set_value(value)
    except VirtksmError as error:
        failure = f"{error.message}, and "
        raise
    finally:
        if before.run == 1 and facts.ksm_counter("run") != 1:
            # While paused, and where the host keeps KSM off, the unit does nothing.
            has_failed = start(SWITCH_UNIT)
            _attempt(retune)
            if has_failed:
                remedy = switch_ksm_on(has_unit=True)
                raise VirtksmError(f"{failure}KSM is off: {SWITCH_UNIT} has failed", remedy=remedy)


def change_here(
    options: argparse.Namespace, facts: ProcFacts, *, unmerge: Callable[[], None], start: Callable[[str], int]
) -> list[Row]:
    """Set merge_across_nodes as the options say, through libvirt, and return what to show; raises VirtksmError."""
    config, _ = config_or_defaults(options.config)

    def set_value(value: int) -> None:
        libvirt = Libvirt(requested_uri(options.connect, options.paths), config.call_timeout_s)
        host = libvirt.open()
        if not is_this_machine(host.uri, config):
            raise VirtksmError(f"{host.uri} is another machine", remedy="name this one's URI (-c qemu:///system)")
        libvirt.run("setting merge_across_nodes", lambda: set_nodes(host, facts, value))

    change_nodes(
        options.merge_across_nodes,
        config,
        facts,
        unmerge=unmerge,
        retune=lambda: run_pass(options),
        set_value=set_value,
        start=start,
    )
    return list(nodes_rows(read_here(facts)[0], config))


def set_nodes(host: Hypervisor, facts: LocalFacts, value: int) -> None:
    """Set merge_across_nodes through libvirt; raises SettingsRefused."""
    target = Settings(pages_to_scan=None, sleep_millisecs=None, merge_across_nodes=value)
    _, refusals = apply(host, facts, plan(host.ksm_state().settings, target))
    for refused in refusals:
        raise refused


def _attempt(retune: Callable[[], object]) -> None:
    try:
        retune()
    except VirtksmError as error:
        warn(f"no pass was possible, a later one does its work: {error}")


def nodes_rows(ksm: KsmState, config: Config) -> Iterator[Row]:
    """Yield whether pages of different nodes merge, and for how long; and KSM's switch."""
    value = ksm.settings.merge_across_nodes
    yield "", "NUMA", f"merge_across_nodes is {'unknown' if value is None else TEXTS[value]}"
    if value == 0 and config.policy != "adaptive":
        line = "w /sys/kernel/mm/ksm/merge_across_nodes - - - - 0"
        yield "", "Note", f"until the next boot; a line of tmpfiles.d keeps it: {line}"
    elif value == 0 and config.adaptive.merge_across_nodes != "never":
        yield "", "Note", f'until the next boot; {KEY} = "never" keeps it'
    if ksm.run == 1:
        yield "", "KSM", "on: memory merges again"
    else:
        yield "warn", "KSM", f"off (run is {ksm.run}): nothing merges ({switch_on_here()})"
