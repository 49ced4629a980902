"""`virtksm off`: stops scanning until `virtksm on`, and prints what is still merged and the command to unmerge.

With --fits or --verify it changes nothing and reads only this machine's own kernel and switch, so that both work
without libvirt, an agent or a valid configuration.
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
    from virtksm.model.decision import SwitchedOff
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
    return switch(options, "off", lambda report: _text(report, options))


def _text(report: dict[str, Any], options: argparse.Namespace) -> str:
    from virtksm.model.snapshot import KsmState

    sensed = report["sensed"]
    ksm = KsmState.counted(sensed.__getitem__, sensed["page_kib"])
    available_kib = sensed["free_kib"] if sensed["available_kib"] is None else sensed["available_kib"]
    is_local = report["source"] == "local"
    unmerge = name_unmerging(ksm, available_kib, is_local=is_local, force=options.force)
    if options.json:
        from virtksm.json_output import to_json

        fields = {"merged": merged_dict(ksm, available_kib), "unmerge": unmerge, "pass": report}
        return to_json({"schema": SCHEMA, "off": True, **fields})
    from virtksm.cli.render import merged_lines, pass_lines

    lines = ["switched  off until `virtksm on`: virtksm lets ksmd idle", *pass_lines(report)]
    if not is_local:
        lines.append("note      an agent on that host has a switch of its own: run `virtksm off` there, too")
    return "\n".join(lines + merged_lines(ksm, available_kib, unmerge))


def name_unmerging(ksm: KsmState, available_kib: int, *, is_local: bool, force: bool) -> str | None:
    """Return the command that unmerges; None where nothing is merged, or where memory does not suffice.

    virtksm never writes to /sys, so an administrator runs it. The unit checks the memory itself, unless by `force`.
    """
    from virtksm.host.systemd import has_unit

    fits = ksm.missing_kib(available_kib) == 0
    if not ksm.unmerge_kib or not (fits or force):
        return None
    return BY_UNIT if fits and is_local and has_unit(UNIT) else BY_HAND


def _fits(options: argparse.Namespace) -> int:
    from virtksm.cli.render import fit_line
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts

    require_this_machine(options)
    ksm, available_kib = read_here(ProcFacts(boottime_s))
    if options.json:
        from virtksm.json_output import to_json

        print(to_json({"schema": SCHEMA, "merged": merged_dict(ksm, available_kib)}))
    else:
        print(fit_line(ksm, available_kib))
    return ExitCode.FAILED if ksm.missing_kib(available_kib) else ExitCode.DONE


def _verify(options: argparse.Namespace) -> int:
    from virtksm.host.clock import boottime_s
    from virtksm.host.local_facts import ProcFacts
    from virtksm.paths import LOCAL, RuntimePaths
    from virtksm.store.switch import SwitchFile

    require_this_machine(options)
    off = SwitchFile(RuntimePaths(options.runtime_dir, options.state_dir).host_switch(LOCAL)).read()
    facts = ProcFacts(boottime_s)
    ksm, available_kib = read_here(facts)
    has_uncounted = ksm.ksm_zero_pages is None and facts.ksm_counter("use_zero_pages") == 1
    doubts = find_doubts(off, ksm, has_uncounted_zero_pages=has_uncounted)
    if options.json:
        from virtksm.json_output import to_json

        report = {
            "schema": SCHEMA,
            "verified": not doubts,
            "doubts": doubts,
            "off": off is not None,
            "since": off.since if off is not None and off.since else None,
            "ksm_run": ksm.run,
            "advisor_mode": ksm.advisor_mode,
            "settings": ksm.settings.as_dict(),
            "merged": merged_dict(ksm, available_kib),
        }
        print(to_json(report))
    else:
        since = f" since {off.since}" if off is not None and off.since else ""
        print(f"switched  {'on' if off is None else 'off'}{since}")
        print(f"ksm       run={ksm.run}, pages_to_scan {ksm.settings.pages_to_scan}")
        print(f"merged    {ksm.pages_shared} pages shared, {ksm.pages_sharing} more sharing them")
        print("\n".join([f"doubt     {doubt}" for doubt in doubts] or ["verified  KSM is off, and nothing is merged"]))
    return ExitCode.FAILED if doubts else ExitCode.DONE


def merged_dict(ksm: KsmState, available_kib: int) -> dict[str, object]:
    """Return the merged memory, and whether unmerging fits, as JSON values (docs/reference.md)."""
    return {
        "pages_shared": ksm.pages_shared,
        "pages_sharing": ksm.pages_sharing,
        "ksm_zero_pages": ksm.ksm_zero_pages,
        "saved_kib": ksm.saved_kib,
        "needed_kib": ksm.unmerge_kib,
        "available_kib": available_kib,
        "missing_kib": ksm.missing_kib(available_kib),
    }


def find_doubts(off: SwitchedOff | None, ksm: KsmState, *, has_uncounted_zero_pages: bool) -> list[str]:
    """Return the doubts that KSM is off, each with its remedy; none if it certainly is."""
    from virtksm.model.report import COUNT_ZERO_PAGES, UNCOUNTED_ZERO_PAGES

    doubts = []
    if off is None:
        doubts.append("virtksm is not switched off: `virtksm off`")
    elif off.warning:
        doubts.append(off.warning)
    if ksm.run in (None, 1):  # 0 and 2 keep ksmd from scanning, whatever the settings are
        if ksm.settings.pages_to_scan != 0:
            doubts.append(f"ksmd scans {ksm.settings.pages_to_scan} pages at a time: `virtksm off` lets it idle")
        if ksm.advisor_is_on:
            doubts.append("the kernel's advisor may set pages_to_scan: echo none > /sys/kernel/mm/ksm/advisor_mode")
    if ksm.unmerge_kib != 0:
        zero = f", {ksm.ksm_zero_pages} zero pages" if ksm.ksm_zero_pages else ""
        doubts.append(
            f"{ksm.pages_sharing} pages share {ksm.pages_shared}{zero}: unmerge with the command of `virtksm off`"
        )
    if has_uncounted_zero_pages:
        doubts.append(f"{UNCOUNTED_ZERO_PAGES}: {COUNT_ZERO_PAGES}")
    return doubts


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
            f"{uri} is another machine, of whose KSM libvirt does not report enough", remedy="run this command there"
        )


def read_here(facts: ProcFacts) -> tuple[KsmState, int]:
    """Read this machine's KSM, and the memory available in KiB; raises SensingFailed."""
    from virtksm.tuning.sense import sense_ksm

    ksm = sense_ksm(facts)
    if ksm.unmerge_kib is None:
        raise SensingFailed(
            "KSM's counters cannot be read", remedy="is the kernel built with CONFIG_KSM, and /sys/kernel/mm/ksm seen?"
        )
    host = facts.host_memory()
    return ksm, host.free_kib if host.available_kib is None else host.available_kib
