"""Checks for other programs that set KSM's parameters. Pure.

A process counts by its name and only if root's, as nobody else may write there. What is merely installed is no finding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virtksm.doctor.facts import Facts, known
from virtksm.doctor.finding import Outcome, failed, passed, warned


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A program that sets KSM's parameters: its processes' names, its units, and whether it certainly quarrels."""

    processes: tuple[str, ...]
    units: tuple[str, ...]
    is_certain: bool
    says: str
    remedy: str


KSMTUNED = Writer(
    processes=("ksmtuned",),
    units=("ksmtuned.service",),
    is_certain=True,
    says="it sets the same values every minute",
    remedy="systemctl disable --now ksmtuned.service",
)
MOM = Writer(
    processes=("momd",),
    units=("mom-vdsm.service", "momd.service"),
    is_certain=False,
    says="it sets the same values if its policy has rules for KSM",
    remedy="take ksm.rules out of MOM's policy, or stop it",
)
VIRT_HANDLER = Writer(
    processes=("virt-handler",),
    units=(),
    is_certain=False,
    says="it sets the same values if KubeVirt's ksmConfiguration chooses this node",
    remedy="leave ksmConfiguration out of the KubeVirt resource, or choose other nodes in it",
)
UNITS = (*KSMTUNED.units, *MOM.units, "tuned.service", "ksm.service")
"""The units that these checks ask for."""


def check_ksmtuned(facts: Facts) -> Outcome:
    """Judge whether ksmtuned runs or will."""
    return _judge(facts, KSMTUNED)


def check_mom(facts: Facts) -> Outcome:
    """Judge whether MOM runs or will."""
    return _judge(facts, MOM)


def check_virt_handler(facts: Facts) -> Outcome:
    """Judge whether KubeVirt's virt-handler runs."""
    return _judge(facts, VIRT_HANDLER)


def check_tuned(facts: Facts) -> Outcome:
    """Judge whether an active profile of tuned sets KSM."""
    here = facts.this_machine
    tuned = known(here.tuned)
    if not tuned.profiles:
        return passed("no active profile")
    names = ", ".join(tuned.profiles)
    if tuned.ksm_in is None:
        return passed(f"profile {names} does not mention KSM")
    detail = f"profile {names} mentions KSM in {tuned.ksm_in}"
    if "tuned" not in known(here.processes) and not _enabled(facts, ["tuned.service"]):
        return passed(f"{detail}, but tuned neither runs nor is enabled")
    return warned(f"{detail}: it may stop or set KSM", "choose another profile: tuned-adm profile NAME")


def _judge(facts: Facts, writer: Writer) -> Outcome:
    here = facts.this_machine
    running = known(here.processes).intersection(writer.processes)
    if running:
        detail = f"{', '.join(sorted(running))} runs: {writer.says}"
        return failed(detail, writer.remedy) if writer.is_certain else warned(detail, writer.remedy)
    enabled = _enabled(facts, writer.units)
    if enabled:
        detail = f"{', '.join(enabled)} is enabled and will run after the next boot: {writer.says}"
        return warned(detail, f"systemctl disable {' '.join(enabled)}")
    installed = [unit for unit in writer.units if here.units[unit].is_installed]
    if installed:
        return passed(f"{', '.join(installed)} is installed, and neither runs nor is enabled")
    return passed("does not run" if not writer.units else "neither installed nor running")


def _enabled(facts: Facts, units: Iterable[str]) -> list[str]:
    return [unit for unit in units if facts.this_machine.units[unit].is_enabled]
