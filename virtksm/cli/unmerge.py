"""`virtksm unmerge`: has systemd unmerge all pages, where their copies fit into memory; `--check` only says whether.

virtksm itself writes nothing below /sys: virtksm-unmerge.service does. Neither libvirt, nor an agent, nor a valid
configuration is needed, but libvirt for `--merge-across-nodes` (cli/nodes.py).
"""

from __future__ import annotations

import argparse
import os

from virtksm.cli.connection import config_or_defaults
from virtksm.cli.layout import print_result
from virtksm.errors import RUN_THERE, UNMERGE, ExitCode, OnlyRoot, SensingFailed, VirtksmError
from virtksm.paths import DEFAULT_RUNTIME_DIR
from virtksm.text import format_kib
from virtksm.uri import is_alias, is_local, named_uri
from virtksm.wiring import is_this_machine

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtksm.cli.layout import Row
    from virtksm.host.local_facts import ProcFacts
    from virtksm.model.snapshot import KsmState

UNIT = "virtksm-unmerge.service"
ALLOWANCE = f"{DEFAULT_RUNTIME_DIR}/unmerge-anyway"
"""Where this file is, the unit does not ask whether the copies fit, and removes it."""
FREE_MEMORY = "stop guests, or move them to another host; --force does not ask"


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="change nothing: exit with 0 if unmerging fits into memory")
    which.add_argument("--force", action="store_true", help="unmerge also where memory may not suffice")
    parser.add_argument(
        "--merge-across-nodes",
        choices=("never", "always"),
        help="once all is unmerged, set whether pages of different NUMA nodes merge, and merge again",
    )


def run(options: argparse.Namespace) -> int:
    """Unmerge, or check; returns the exit code: FAILED where it does not fit. Raises VirtksmError."""
    from virtksm.host.local_facts import ProcFacts, boottime_s
    from virtksm.host.systemd import has_unit

    require_this_machine(options)
    facts = ProcFacts(boottime_s)

    def unmerge_all() -> None:
        unmerge(facts, force=options.force, has_unit=has_unit(UNIT), start=lambda: _start(UNIT))

    rows: list[Row] = []
    if options.merge_across_nodes and not options.check:
        from virtksm.cli.nodes import change_here

        rows = change_here(options, facts, unmerge=unmerge_all, start=_start)
    elif not options.check:
        unmerge_all()
    ksm, available_kib = read_here(facts)
    values = {
        "fits": not ksm.missing_kib(available_kib),
        "merged": merged_dict(ksm, available_kib),
        "ksm_run": ksm.run,
        "merge_across_nodes": ksm.settings.merge_across_nodes,
    }
    check = ("", fit_text(ksm.unmerge_kib, available_kib), "")
    print_result(options, values, [check] if options.check else rows or merged_rows(ksm, available_kib, is_local=True))
    return ExitCode.FAILED if ksm.missing_kib(available_kib) and not rows else ExitCode.DONE


def unmerge(
    facts: ProcFacts, *, force: bool, has_unit: bool, start: Callable[[], int], allowance: str = ALLOWANCE
) -> None:
    """Have systemd unmerge, where something is merged and it fits, or by `force`; raises VirtksmError.

    `has_unit`: systemd runs here, with UNIT; `start` starts that and returns systemctl's exit code, after minutes where
    gigabytes are merged.
    """
    if os.geteuid() != 0:
        raise OnlyRoot
    ksm, available_kib = read_here(facts)
    if not ksm.unmerge_kib:
        return
    fits = not ksm.missing_kib(available_kib)
    if not fits and not force:
        raise VirtksmError(fit_text(ksm.unmerge_kib, available_kib), remedy=FREE_MEMORY)
    if not has_unit:
        raise VirtksmError(f"this host has no {UNIT}, and virtksm itself writes nothing to /sys", remedy=UNMERGE)
    from pathlib import Path

    allowed = Path(allowance)
    try:
        if not fits:
            allowed.parent.mkdir(exist_ok=True)
            allowed.touch()
        if start():
            raise VirtksmError(f"{UNIT} has failed", remedy=f"journalctl -u {UNIT}")
    finally:
        allowed.unlink(missing_ok=True)  # where the unit did not come so far


def _start(unit: str) -> int:
    import subprocess

    # Not start: KSM's switch has an active unit also where KSM was switched off since.
    return subprocess.run(["systemctl", "restart", unit], check=False).returncode


def require_this_machine(options: argparse.Namespace) -> None:
    """Raise VirtksmError if the user has named another machine, or one that libvirt alone knows."""
    uri = named_uri(options.connect)
    if uri is None:
        return
    if is_alias(uri):
        raise VirtksmError(f"{uri} is an alias, which only libvirt knows", remedy="name a URI, or leave -c out")
    if not is_local(uri) and not is_this_machine(uri, config_or_defaults(options.config)[0]):
        raise VirtksmError(f"{uri} is another machine, whose KSM libvirt does not fully report", remedy=RUN_THERE)


def read_here(facts: ProcFacts) -> tuple[KsmState, int]:
    """Read this machine's KSM, and the memory available in KiB; raises SensingFailed."""
    from virtksm.tuning.sense import sense_ksm

    ksm = sense_ksm(facts)
    if ksm.unmerge_kib is None:
        raise SensingFailed(
            "KSM's counters cannot be read: needed is a kernel with CONFIG_KSM", remedy="ls /sys/kernel/mm/ksm"
        )
    return ksm, facts.host_memory().copies_kib


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


def merged_rows(ksm: KsmState, available_kib: int, *, is_local: bool) -> Iterator[Row]:
    """Yield what is merged, and what unmerges it where that fits."""
    if not ksm.unmerge_kib:
        yield "", "Merged", "unknown: KSM's counters are not offered" if ksm.unmerge_kib is None else "nothing"
        return
    zero = f", {ksm.ksm_zero_pages} zero pages" if ksm.ksm_zero_pages else ""
    counted = f"{ksm.pages_shared} pages shared, {ksm.pages_sharing} more sharing them{zero}"
    yield "", "Merged", f"{format_kib(ksm.saved_kib)} saved: {counted}"
    fit = fit_text(ksm.unmerge_kib, available_kib)
    if ksm.missing_kib(available_kib):
        yield "warn", "Unmerge", fit
    else:
        yield "", "Unmerge", f"virtksm unmerge{'' if is_local else ', on that host'} ({fit})"


def fit_text(needed_kib: int | None, available_kib: int) -> str:
    if needed_kib is not None and needed_kib > available_kib:
        return f"unmerging needs {format_kib(needed_kib - available_kib)} more free memory"
    return f"unmerging needs up to {format_kib(needed_kib)}, {format_kib(available_kib)} available: ok"
