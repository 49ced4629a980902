"""Checks of this machine's kernel: KSM's switch, advisor and limits, huge pages, NUMA."""

from __future__ import annotations

import re
from contextlib import suppress

from virtksm.doctor.facts import KSM_UNIT, Facts, Here, find_kept_off
from virtksm.doctor.finding import CannotTell, DoesNotApply, Judgement, failed, info, passed, warned
from virtksm.errors import REMEDIES, SWITCH_UNIT, Cause, switch_ksm_on
from virtksm.host.local_facts import parse_choice, parse_vmstat
from virtksm.model.report import COUNT_ZERO_PAGES, UNCOUNTED_ZERO_PAGES
from virtksm.model.snapshot import KsmState
from virtksm.text import format_kib

MAX_LETTERS = 40
"""Of a choice or a release."""
NODES_KEY = "adaptive.merge_across_nodes"
SET_NODES = "virtksm unmerge --merge-across-nodes never"

ONLY_ZERO_PAGES = "redhat_only_zero_pages"
"""RHEL 9.9 and CentOS Stream 9 have it, no other kernel."""
USE_ZERO_PAGES = (
    "systemctl edit virtksm-ksm, write [Service] and, below it, Environment=USE_ZERO_PAGES=1, then systemctl restart "
    "virtksm-ksm (docs/policies.md)"
)
MIN_ZERO_KIB, MIN_ZERO = 256 * 1024, 20
"""So many zero pages in huge pages, and more than this fraction of guests' memory, are worth a word."""

MIN_SHARING = 20
"""Of every max_page_sharing equal pages one copy is kept: below this, more than a twentieth of the savings is lost."""
MAX_SHARING = 256
"""The kernel's default: a longer chain makes each walk over a page's users (swapping, migrating) take longer."""


def check_built(facts: Facts) -> Judgement:
    root = facts.this_machine.root
    release = root.text_if_readable("proc/sys/kernel/osrelease").strip()[:MAX_LETTERS] or "of unknown release"
    if root.is_folder("sys/kernel/mm/ksm"):
        return passed(f"Linux {release}")
    return failed(f"Linux {release} has no /sys/kernel/mm/ksm", "boot a kernel built with CONFIG_KSM=y, as Debian's is")


def check_switched_on(facts: Facts) -> Judgement:
    here = with_ksm(facts)
    run = here.number("run")
    if run == 1:
        return passed("run is 1")
    if run not in (0, 2):
        raise CannotTell(f"run is {run}")
    if facts.paused is not None:
        return info(f"run is {run}, and virtksm is paused")
    reason = find_kept_off(here)
    if reason is not None:
        return info(f"run is {run}, and KSM is kept off: {reason}")
    unit = here.unit(SWITCH_UNIT)
    has_unit = here.booted and unit.is_installed and not unit.is_masked
    return failed(f"run is {run}: nothing merges", switch_ksm_on(has_unit=has_unit))


def check_stays_on(facts: Facts) -> Judgement:
    here = with_ksm(facts)
    if here.number("run") != 1:
        raise DoesNotApply("it is off")
    if not here.booted:
        raise DoesNotApply("no systemd runs here")
    reason = find_kept_off(here)
    if reason is not None:
        return warned(
            f"it is on, and is kept off at the next boot: {reason}",
            "decide which is meant: echo 0 > /sys/kernel/mm/ksm/run switches it off now",
        )
    by = [unit for unit in (SWITCH_UNIT, KSM_UNIT) if here.unit(unit).is_enabled]
    by += [one.file for one in here.boot.settings if (one.name, one.value) == ("run", "1")]
    if by:
        return passed(by[0])
    by_unit = here.unit(SWITCH_UNIT).is_installed
    remedy = f"systemctl enable {SWITCH_UNIT}" if by_unit else f"install {SWITCH_UNIT} and enable it (docs/install.md)"
    return warned("it is on, and no unit or file is seen that switches it on at boot", remedy)


def check_advisor(facts: Facts) -> Judgement:
    here = with_ksm(facts)
    mode = _choice(here, "sys/kernel/mm/ksm/advisor_mode")
    if mode is None:
        return passed("this kernel has none")
    if mode == "none":
        return passed("advisor_mode is none")
    again = [one for one in here.boot.settings if one.name == "advisor_mode" and one.value != "none"]
    detail = "".join(f"; {one}" for one in again)
    return failed(f"advisor_mode is {mode}: the kernel refuses pages_to_scan{detail}", REMEDIES[Cause.ADVISOR_ON])


def check_page_sharing(facts: Facts) -> Judgement:
    """Judge whether max_page_sharing wastes memory or makes walks long; say what one failing page would hit."""
    here = with_ksm(facts)
    limit = here.number("max_page_sharing")
    if limit is None:
        return passed("this kernel has no limit")
    places = KsmState.counted(here.number, page_kib=4).places_per_page
    detail = f"max_page_sharing is {limit}"
    if places is not None:
        detail += f": a merged page serves {places:.1f} places on average, and a memory error in it hits them all"
    remedy = "once nothing is merged (virtksm unmerge): echo 256 > /sys/kernel/mm/ksm/max_page_sharing"
    if limit < MIN_SHARING:
        share = 100 / max(limit, 1)
        return warned(f"{detail}; a copy for every {limit} pages costs {share:.0f} %", remedy)
    if limit > MAX_SHARING:
        return warned(f"{detail}; swapping or migrating a merged page takes longer", remedy)
    return passed(detail)


def check_zero_pages(facts: Facts) -> Judgement:
    """Judge whether zero pages come free and are counted.

    From 6.12 on those in huge pages do with use_zero_pages, or beside an agent's own (agent/zero_pages.py).
    """
    here = with_ksm(facts)
    if here.number(ONLY_ZERO_PAGES):
        return info(f"{ONLY_ZERO_PAGES} is {here.number(ONLY_ZERO_PAGES)}: zero pages merge, and nothing else does")
    if here.number("use_zero_pages"):
        if here.number("ksm_zero_pages") is None:
            return warned(UNCOUNTED_ZERO_PAGES, COUNT_ZERO_PAGES)
        return passed("use_zero_pages is 1, and they are counted")
    off = "use_zero_pages is off: they merge as any others"
    if parse_vmstat(here.root.text_if_readable("proc/vmstat"), "thp_underused_split_page") is None:
        return passed(off)
    off += ", hardly any in huge pages"
    if facts.config.policy == "adaptive":
        off += " of guests that ksmd visits before the agent"
    sampled = None
    with suppress(CannotTell, DoesNotApply):  # a finding of its own
        sampled = facts.guests.zero_pages
    if sampled is None:
        return passed(f"{off}; how many there are is for root to measure")
    zero_kib, present_kib = sum(one.zero_kib for one in sampled), sum(one.present_kib for one in sampled)
    found = f"some {format_kib(zero_kib)} of {format_kib(present_kib)} of guests' memory, by a sample"
    if zero_kib > MIN_ZERO_KIB and zero_kib * MIN_ZERO > present_kib:
        return warned(f"{off}: {found}", USE_ZERO_PAGES)
    return passed(f"{off}: {found}")


def check_huge_pages(facts: Facts) -> Judgement:
    choice = _choice(with_ksm(facts), "sys/kernel/mm/transparent_hugepage/enabled")
    if choice in (None, "never"):
        return passed("the kernel makes none")
    config = facts.config
    if config.policy == "adaptive" and config.adaptive.engage == "always":
        return warned(
            f"enabled is {choice}, and the policy merges also while memory is plenty: each merge splits a huge page",
            'set engage = "auto" in [adaptive], which merges when memory is short',
        )
    return passed(f"enabled is {choice}; the policy splits them only when memory is short")


def check_nodes(facts: Facts) -> Judgement:
    here = with_ksm(facts)
    path = "sys/devices/system/node/has_memory"
    try:
        nodes = parse_count(here.root.text(path) or "0")  # without the file, a kernel without NUMA
    except ValueError as error:
        raise CannotTell(f"/{path} {error}") from error
    if nodes < 2:
        return passed("one NUMA node")
    across = here.number("merge_across_nodes")
    if across is None:
        return passed(f"{nodes} NUMA nodes, and this kernel does not separate them for KSM")
    if across == 0:
        return passed(f"{nodes} NUMA nodes, each merges its own")
    detail = f"merge_across_nodes is 1 with {nodes} NUMA nodes: guests read merged pages from another node"
    if facts.config.policy != "adaptive":
        return warned(detail, SET_NODES)
    if NODES_KEY in facts.keys_set and facts.config.adaptive.merge_across_nodes != "never":
        return info(f"{nodes} NUMA nodes, and the configuration asks to merge across them, or to leave that as it is")
    return warned(detail, f'{SET_NODES}; {NODES_KEY} = "never" keeps it over boots, "keep" says that 1 is meant')


def parse_count(text: str) -> int:
    """Count what a kernel's list names, such as 3 for "0-1,4"; raises ValueError if it is none."""
    span = r"\d{1,5}(-\d{1,5})?"
    if not re.fullmatch(rf"{span}(,{span})*\n?", text, re.ASCII):  # one way to match, or digits take for ever
        raise ValueError("holds no list of numbers")
    spans = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in spans)


def with_ksm(facts: Facts) -> Here:
    """Return this machine; raises DoesNotApply on another, and without KSM."""
    here = facts.this_machine
    if not here.root.is_folder("sys/kernel/mm/ksm"):
        raise DoesNotApply("no KSM in this kernel")
    return here


def _choice(here: Here, path: str) -> str | None:
    text = here.root.text(path)
    choice = None if text is None else parse_choice(text)
    if choice is not None and not re.fullmatch(rf"[a-z_-]{{1,{MAX_LETTERS}}}", choice):
        raise CannotTell(f"/{path} holds no choice")
    return choice
