"""`virtksm off`: stops scanning until `virtksm on`, and says what is still merged and what unmerges it.

With --fits or --verify it changes nothing and asks nobody but this machine's own kernel and switch, so that both work
whatever becomes of libvirt, an agent and the configuration.
"""

from __future__ import annotations

import argparse

from virtksm.cli.connection import config_or_defaults
from virtksm.cli.switching import add_switch_options, switch
from virtksm.errors import ExitCode, SensingFailed, VirtksmError
from virtksm.uri import is_alias, is_local, named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

    from virtksm.host.local_facts import ProcFacts
    from virtksm.model.merged import Merged
    from virtksm.model.snapshot import KsmState

SCHEMA = 1
UNIT = "virtksm-unmerge.service"
BY_UNIT = f"systemctl start {UNIT}"
BY_HAND = "echo 2 > /sys/kernel/mm/ksm/run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_switch_options(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--force", action="store_true", help="say how to unmerge also where memory does not suffice")
    instead.add_argument(
        "--fits", action="store_true", help="change nothing: would unmerging fit into memory? (exit 0)"
    )
    instead.add_argument("--verify", action="store_true", help="change nothing: is KSM certainly off? (exit 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked for and print it; returns the exit code."""
    if options.fits:
        return _fits(options)
    if options.verify:
        return _verify(options)
    return _switch_off(options)


def _switch_off(options: argparse.Namespace) -> int:
    return switch(options, "off", lambda record: _text(record, options))


def _text(record: dict[str, Any], options: argparse.Namespace) -> str:
    from virtksm.model.merged import Merged

    sensed = record["sensed"]
    merged = Merged(
        pages_shared=sensed["pages_shared"] or 0,
        pages_sharing=sensed["pages_sharing"] or 0,
        zero_pages=sensed["ksm_zero_pages"],
        page_kib=sensed["page_kib"],
    )
    available_kib = sensed["free_kib"] if sensed["available_kib"] is None else sensed["available_kib"]
    is_local = record["source"] == "local"
    unmerge = name_unmerging(merged, available_kib, is_local=is_local, force=options.force)
    if options.json:
        import json

        told = {"merged": merged.as_dict(available_kib), "unmerge": unmerge, "pass": record}
        return json.dumps({"schema": SCHEMA, "off": True, **told})
    from virtksm.cli.render import merged_lines, pass_lines

    lines = ["switched  off, for all that virtksm does here, until `virtksm on`", *pass_lines(record)]
    if not is_local:
        lines.append("note      an agent on that host has a switch of its own: run `virtksm off` there, too")
    return "\n".join(lines + merged_lines(merged, available_kib, unmerge))


def name_unmerging(merged: Merged, available_kib: int, *, is_local: bool, force: bool) -> str | None:
    """Return the command that unmerges; None where nothing is merged, or where it must not be named.

    virtksm never writes to /sys, so an administrator runs it. The unit looks for itself whether memory suffices, which
    `force` is to overrule.
    """
    from virtksm.host.systemd import has_unit

    fits = merged.missing_kib(available_kib) == 0
    if merged.is_nothing or not (fits or force):
        return None
    return BY_UNIT if fits and is_local and has_unit(UNIT) else BY_HAND


def _fits(options: argparse.Namespace) -> int:
    from virtksm.cli.render import fit_line
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts

    require_this_machine(options)
    _, merged, available_kib = read_here(ProcFacts(boottime_s))
    if options.json:
        import json

        print(json.dumps({"schema": SCHEMA, "merged": merged.as_dict(available_kib)}))
    else:
        print(fit_line(merged, available_kib))
    return ExitCode.FAILED if merged.missing_kib(available_kib) else ExitCode.DONE


def _verify(options: argparse.Namespace) -> int:
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts
    from virtksm.model.merged import find_doubts
    from virtksm.paths import LOCAL, RuntimePaths
    from virtksm.store.switch import SwitchFile

    require_this_machine(options)
    off = SwitchFile(RuntimePaths(options.runtime_dir, options.state_dir).host_switch(LOCAL)).read()
    facts = ProcFacts(boottime_s)
    ksm, merged, available_kib = read_here(facts)
    has_uncounted = merged.zero_pages is None and facts.ksm_counter("use_zero_pages") == 1
    doubts = find_doubts(off, ksm, merged, has_uncounted_zero_pages=has_uncounted)
    if options.json:
        import json

        told = {
            "schema": SCHEMA,
            "verified": not doubts,
            "doubts": doubts,
            "off": off is not None,
            "since": off.since if off is not None and off.since else None,
            "ksm_run": ksm.run,
            "advisor_mode": ksm.advisor_mode,
            "settings": ksm.settings.as_dict(),
            "merged": merged.as_dict(available_kib),
        }
        print(json.dumps(told))
    else:
        since = f" since {off.since}" if off is not None and off.since else ""
        print(f"switched  {'on' if off is None else 'off'}{since}")
        print(f"ksm       run={ksm.run}, pages_to_scan {ksm.settings.pages_to_scan}")
        print(f"merged    {merged.pages_shared} pages shared, {merged.pages_sharing} more sharing them")
        print("\n".join([f"doubt     {doubt}" for doubt in doubts] or ["verified  KSM is off, and nothing is merged"]))
    return ExitCode.FAILED if doubts else ExitCode.DONE


def require_this_machine(options: argparse.Namespace) -> None:
    """Raise VirtksmError if the user has named another machine, or one that libvirt alone knows."""
    uri = named_uri(options.connect)
    if uri is None:
        return
    if is_alias(uri):
        raise VirtksmError(
            f"{uri} is an alias, and this command asks libvirt nothing", remedy="leave it out, or name what it means"
        )
    if not is_local(uri) and config_or_defaults(options.config)[0].host != "local":
        raise VirtksmError(
            f"{uri} is another machine, of whose KSM libvirt does not tell enough", remedy="run this command there"
        )


def read_here(facts: ProcFacts) -> tuple[KsmState, Merged, int]:
    """Read this machine's KSM, what is merged, and the memory available in KiB; raises SensingFailed."""
    from virtksm.model.merged import Merged
    from virtksm.tuning.sense import sense_ksm

    ksm = sense_ksm(facts)
    merged = Merged.of(ksm)
    if merged is None:
        raise SensingFailed(
            "KSM's counters cannot be read", remedy="is the kernel built with CONFIG_KSM, and /sys/kernel/mm/ksm seen?"
        )
    host = facts.host_memory()
    return ksm, merged, host.free_kib if host.available_kib is None else host.available_kib
