"""`virtksm verify-off`: proves that KSM is off and nothing is merged; else names each doubt with its remedy.

It changes nothing and reads only this machine's own kernel and switch, so that it works without libvirt, an agent or a
valid configuration.
"""

from __future__ import annotations

import argparse

from virtksm.cli.layout import print_result
from virtksm.cli.unmerge import merged_dict, read_here, require_this_machine
from virtksm.errors import NUMA_HIDES_PAGES, ExitCode
from virtksm.model.decision import Pause
from virtksm.model.report import COUNT_ZERO_PAGES, UNCOUNTED_ZERO_PAGES
from virtksm.model.snapshot import KsmState
from virtksm.paths import LOCAL
from virtksm.store.switch import SwitchFile


def run(options: argparse.Namespace) -> int:
    """Print what was found; returns the exit code: FAILED where there is a doubt. Raises VirtksmError."""
    from virtksm.host.local_facts import ProcFacts  # psutil, which is not there where man pages are made

    require_this_machine(options)
    paused = SwitchFile(options.paths.host_switch(LOCAL)).read()
    facts = ProcFacts()
    ksm, available_kib = read_here(facts)
    has_uncounted = ksm.ksm_zero_pages is None and facts.ksm_counter("use_zero_pages") == 1
    doubts = find_doubts(
        paused, ksm, has_uncounted_zero_pages=has_uncounted, numa_hides_pages=facts.numa_balancing_hides_pages()
    )
    since = paused.since if paused is not None and paused.since else None
    values = {
        "verified": not doubts,
        "doubts": doubts,
        "paused": paused is not None,
        "since": since,
        "ksm_run": ksm.run,
        "advisor_mode": ksm.advisor_mode,
        "settings": ksm.settings.as_dict(),
        "merged": merged_dict(ksm, available_kib),
    }
    rows = [
        ("", "virtksm", "not paused" if paused is None else f"paused{f' since {since}' if since else ''}"),
        ("", "KSM", f"run={ksm.run}, pages_to_scan {ksm.settings.pages_to_scan}"),
        ("", "Merged", f"{ksm.pages_shared} pages shared, {ksm.pages_sharing} more sharing them"),
        *(("bad", "Doubt", doubt) for doubt in doubts),
        ("bad", "Result", "not verified") if doubts else ("good", "Verified", "KSM is off, and nothing is merged"),
    ]
    print_result(options, values, rows)
    return ExitCode.FAILED if doubts else ExitCode.DONE


def find_doubts(
    paused: Pause | None, ksm: KsmState, *, has_uncounted_zero_pages: bool, numa_hides_pages: bool
) -> list[str]:
    """Return the doubts that KSM is off, each with its remedy; none if it certainly is."""
    doubts = []
    if paused is None:
        doubts.append("virtksm is not paused (virtksm pause)")
    elif paused.warning:
        doubts.append(paused.warning)
    if ksm.run in (None, 1):  # 0 and 2 keep ksmd from scanning, whatever the settings are
        if ksm.settings.pages_to_scan != 0:
            doubts.append(f"ksmd scans {ksm.settings.pages_to_scan} pages at a time (virtksm pause)")
        if ksm.advisor_is_on:
            doubts.append("the KSM advisor may set pages_to_scan (echo none > /sys/kernel/mm/ksm/advisor_mode)")
    if ksm.unmerge_kib != 0:
        zero = f", {ksm.ksm_zero_pages} zero pages" if ksm.ksm_zero_pages else ""
        doubts.append(f"{ksm.pages_sharing} pages share {ksm.pages_shared}{zero} (virtksm unmerge)")
    if has_uncounted_zero_pages:
        doubts.append(f"{UNCOUNTED_ZERO_PAGES}: {COUNT_ZERO_PAGES}")
    if numa_hides_pages:
        doubts.append(NUMA_HIDES_PAGES)
    return doubts
