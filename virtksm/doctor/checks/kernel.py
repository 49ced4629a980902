"""Checks of this machine's kernel: KSM's switch, advisor and limits, huge pages, NUMA, swap and headroom. Pure."""

from __future__ import annotations

from virtksm.config.schema import Config
from virtksm.doctor.checks.kept_off import KSM_UNIT, find_kept_off
from virtksm.doctor.checks.writers import describe_setting
from virtksm.doctor.facts import CHECK_FILE, Facts, Here, known
from virtksm.doctor.finding import CannotTell, DoesNotApply, Outcome, failed, info, passed, warned
from virtksm.errors import REMEDIES, Cause
from virtksm.model.report import COUNT_ZERO_PAGES, UNCOUNTED_ZERO_PAGES
from virtksm.model.snapshot import HostMemory, KsmState
from virtksm.remedies import SWITCH_UNIT, switch_ksm_on
from virtksm.text import format_kib

NODES_KEY = "adaptive.merge_across_nodes"
SET_NODES = (
    "virtksm pause && virtksm unmerge && echo 0 > /sys/kernel/mm/ksm/merge_across_nodes && "
    f"virtksm resume && systemctl start {SWITCH_UNIT}"
)
"""The kernel lets it be changed only while nothing is merged."""

MIN_SHARING = 20
"""Of every max_page_sharing equal pages one copy is kept: below this, more than a twentieth of the savings is lost."""
MAX_SHARING = 256
"""The kernel's default: a longer chain makes each walk over a page's users (swapping, migrating) take longer."""


def check_built(facts: Facts) -> Outcome:
    """Judge whether KSM is built into the kernel."""
    kernel = facts.this_machine.kernel
    if known(kernel.has_ksm):
        return passed(f"Linux {kernel.release}")
    return failed(
        f"Linux {kernel.release} has no /sys/kernel/mm/ksm", "boot a kernel built with CONFIG_KSM=y, as Debian's is"
    )


def check_switched_on(facts: Facts) -> Outcome:
    """Judge whether KSM's own switch is on."""
    here = _with_ksm(facts)
    run = here.kernel.number("run")
    if run == 1:
        return passed("run is 1")
    if run not in (0, 2):
        raise CannotTell(f"run is {run}", CHECK_FILE)
    if facts.own.off is not None:
        return info(f"run is {run}, and virtksm is paused")
    reason = find_kept_off(here.units, here.tuned, here.boot)
    if reason is not None:
        return info(f"run is {run}, and KSM is kept off: {reason}")
    has_unit = here.booted and here.units[SWITCH_UNIT].is_installed
    return failed(f"run is {run}: nothing merges", switch_ksm_on(has_unit=has_unit))


def check_stays_on(facts: Facts) -> Outcome:
    """Judge whether KSM, if it is on, will be on after the next boot."""
    here = _with_ksm(facts)
    if here.kernel.number("run") != 1:
        raise DoesNotApply("it is off")
    if not here.booted:
        raise DoesNotApply("no systemd runs here")
    reason = find_kept_off(here.units, here.tuned, here.boot)
    by = [unit for unit in (SWITCH_UNIT, KSM_UNIT) if here.units[unit].is_enabled]
    by += [one.file for one in here.boot.settings if (one.name, one.value) == ("run", "1")]
    if by and reason is None:
        return passed(by[0])
    if reason is not None:
        return warned(
            f"it is on, and is kept off at the next boot: {reason}",
            "decide which is meant: echo 0 > /sys/kernel/mm/ksm/run switches it off now",
        )
    by_unit = here.units[SWITCH_UNIT].is_installed
    remedy = f"systemctl enable {SWITCH_UNIT}" if by_unit else f"install {SWITCH_UNIT} and enable it (docs/install.md)"
    return warned("it is on, and no unit or file is seen that switches it on at boot", remedy)


def check_advisor(facts: Facts) -> Outcome:
    """Judge whether the kernel's own advisor is off."""
    here = _with_ksm(facts)
    mode = known(here.kernel.advisor_mode)
    if mode is None:
        return passed("this kernel has none")
    if mode == "none":
        return passed("advisor_mode is none")
    again = [describe_setting(one) for one in here.boot.settings if one.name == "advisor_mode" and one.value != "none"]
    detail = "".join(f"; {one}" for one in again)
    return failed(f"advisor_mode is {mode}: the kernel refuses pages_to_scan{detail}", REMEDIES[Cause.ADVISOR_ON])


def check_page_sharing(facts: Facts) -> Outcome:
    """Judge whether max_page_sharing wastes memory or makes walks long."""
    limit = _with_ksm(facts).kernel.number("max_page_sharing")
    if limit is None:
        return passed("this kernel has no limit")
    remedy = "once nothing is merged (virtksm unmerge): echo 256 > /sys/kernel/mm/ksm/max_page_sharing"
    if limit < MIN_SHARING:
        share = 100 / max(limit, 1)
        return warned(f"max_page_sharing is {limit}: a copy for every {limit} pages costs {share:.0f} %", remedy)
    if limit > MAX_SHARING:
        return warned(f"max_page_sharing is {limit}: swapping or migrating a merged page takes longer", remedy)
    return passed(f"max_page_sharing is {limit}")


def check_zero_pages(facts: Facts) -> Outcome:
    """Judge whether zero pages that are merged are counted."""
    kernel = _with_ksm(facts).kernel
    if not kernel.number("use_zero_pages"):
        return passed("use_zero_pages is off: they merge as any others")
    if kernel.number("ksm_zero_pages") is None:
        return warned(UNCOUNTED_ZERO_PAGES, COUNT_ZERO_PAGES)
    return passed("use_zero_pages is 1, and they are counted")


def check_huge_pages(facts: Facts) -> Outcome:
    """Judge whether huge pages are split only where that gains needed memory."""
    choice = known(_with_ksm(facts).kernel.huge_pages)
    if choice in (None, "never"):
        return passed("the kernel makes none")
    if _merges_unneeded(facts.config):
        return warned(
            f"enabled is {choice}, and the policy merges also while memory is plenty: each merge splits a huge page",
            'set engage = "auto" in [adaptive], which merges when memory is short',
        )
    return passed(f"enabled is {choice}; the policy splits them only when memory is short")


def check_nodes(facts: Facts) -> Outcome:
    """Judge whether pages merge across NUMA nodes."""
    kernel = _with_ksm(facts).kernel
    nodes = known(kernel.memory_nodes)
    if nodes < 2:
        return passed("one NUMA node")
    across = kernel.number("merge_across_nodes")
    if across is None:
        return passed(f"{nodes} NUMA nodes, and this kernel does not separate them for KSM")
    if across == 0:
        return passed(f"{nodes} NUMA nodes, each merges its own")
    detail = f"merge_across_nodes is 1 with {nodes} NUMA nodes: guests read merged pages from another node"
    if facts.config.policy != "adaptive":
        return warned(detail, SET_NODES)
    if NODES_KEY in facts.own.keys_set and facts.config.adaptive.merge_across_nodes != "never":
        return info(f"{nodes} NUMA nodes, and the configuration asks to merge across them, or to leave that as it is")
    return warned(
        detail, f'{NODES_KEY} = "never" takes effect once nothing is merged, "keep" leaves it; or {SET_NODES}'
    )


def check_swap(facts: Facts) -> Outcome:
    """Judge whether there is swap, or no need of it."""
    kernel = facts.this_machine.kernel
    swap = known(kernel.swap)
    if swap.total_kib and swap.free_kib * 10 < swap.total_kib:
        return warned(
            f"{format_kib(swap.free_kib)} of {format_kib(swap.total_kib)} are free: swap is nearly full",
            "add swap or memory, or move guests away",
        )
    if swap.total_kib:
        return passed(f"{format_kib(swap.free_kib)} of {format_kib(swap.total_kib)} are free")
    if merged_of(_with_ksm(facts)).missing_kib(available_of(known(kernel.memory))):
        return warned(
            "there is none, and what is merged would not fit into memory: pages that unmerge end guests (OOM killer)",
            "add swap (mkswap, swapon, /etc/fstab)",
        )
    return passed("there is none, and what is merged would fit into memory without")


def check_headroom(facts: Facts) -> Outcome:
    """Judge whether all that is merged would fit into memory if it unmerged."""
    here = _with_ksm(facts)
    available_kib = available_of(known(here.kernel.memory))
    merged = merged_of(here)
    if merged.unmerge_kib == 0:
        return passed(f"nothing is merged; {format_kib(available_kib)} are available")
    detail = f"unmerging takes up to {format_kib(merged.unmerge_kib)}, {format_kib(available_kib)} are available"
    missing_kib = merged.missing_kib(available_kib)
    if not missing_kib:
        return passed(detail)
    remedy = "free memory: move guests away, or give the host more"
    swap_kib = known(here.kernel.swap).free_kib
    if missing_kib <= swap_kib:
        return warned(f"{detail}: {format_kib(missing_kib)} would go to swap", remedy)
    return failed(f"{detail}: {format_kib(missing_kib - swap_kib)} are missing, swap included", remedy)


def merged_of(here: Here) -> KsmState:
    """Return what is merged; raises CannotTell."""
    merged = KsmState.counted(here.kernel.number, here.kernel.page_kib)
    if merged.unmerge_kib is None:
        raise CannotTell("KSM's counters are missing", CHECK_FILE)
    return merged


def available_of(memory: HostMemory) -> int:
    """Return the memory that is available, or free where the kernel does not say (before 3.14)."""
    return memory.free_kib if memory.available_kib is None else memory.available_kib


def _merges_unneeded(config: Config) -> bool:
    return config.policy == "adaptive" and config.adaptive.engage == "always"


def _with_ksm(facts: Facts) -> Here:
    here = facts.this_machine
    if not known(here.kernel.has_ksm):
        raise DoesNotApply("no KSM in this kernel")
    return here
