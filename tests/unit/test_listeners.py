"""What a decision asks of the agent: guests taken out of KSM, and zero pages of its own."""

import asyncio

import pytest

from tests.lab.agent_bench import listeners_of
from tests.lab.samples import SCANNING, passed
from virtksm.agent.history import HistoryWriter
from virtksm.agent.listeners import Listeners
from virtksm.agent.log import Reporter
from virtksm.agent.passes import DonePass
from virtksm.agent.zero_pages import UNDER_WAY_S
from virtksm.config.schema import Config
from virtksm.host.systemd import Notifier
from virtksm.model.decision import Pause
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Guest, Settings
from virtksm.tuning.sense import GuestNotes
from virtksm.values import replace

TOLD = passed(SCANNING)
PAUSED = replace(TOLD, paused=Pause())


def all_listeners() -> Listeners:
    return listeners_of(Config(), Reporter(Notifier({})), HistoryWriter(), GuestNotes())


def hear(listeners: Listeners, report: PassReport, config: Config) -> None:
    listeners.passed(DonePass(report=report, config=config, heard_s=None, ended_s=1.0))


def test_a_pass_tells_whom_the_policy_takes_out_but_not_while_paused_and_none_where_it_only_observes() -> None:
    named = replace(TOLD, decision=replace(TOLD.decision, rewriters=("uuid of loud/1",)))
    listeners, found = all_listeners(), []
    for report, config in ((named, Config()), (PAUSED, Config()), (named, Config(policy="observe")), (TOLD, Config())):
        hear(listeners, report, config)
        found.append(listeners.switches.rewriters)
    assert found == [("uuid of loud/1",), ("uuid of loud/1",), None, ()]


def test_a_pass_tells_whether_zero_pages_are_wanted_but_not_while_paused() -> None:
    wanted = replace(TOLD, decision=replace(TOLD.decision, wants_zero_pages=True))
    listeners, found = all_listeners(), []
    for report in (TOLD, wanted, PAUSED, wanted, TOLD, replace(wanted, paused=Pause())):
        hear(listeners, report, Config())
        found.append(listeners.zero_pages.are_held)
    assert found == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("full_scans", "held"), [(5, [False, False, True, True]), (0, [True, True, True, True])], ids=["idle", "at boot"]
)
async def test_beside_older_guests_zero_pages_are_taken_when_ksmd_is_in_the_first_of_them(
    full_scans: int, held: list[bool]
) -> None:
    """So it is a moment after it was set to scan, and while it is in its first full scan at the kernel's defaults."""
    ours, listeners, found = Guest(uuid="u", name="vm"), all_listeners(), []
    for pages_found, pages_set in ((100, 0), (0, 0), (0, 100), (100, 100)):
        report = passed(Settings(pages_to_scan=pages_set, sleep_millisecs=20))
        ksm = replace(report.snapshot.ksm, settings=Settings(pages_found, 20), full_scans=full_scans)
        snapshot = replace(report.snapshot, guests=(ours,), ksm=ksm)
        decision = replace(report.decision, wants_zero_pages=True)
        hear(listeners, replace(report, snapshot=snapshot, decision=decision), Config())
        assert listeners.zero_pages.are_held == (True in found or full_scans == 0), "not before ksmd has begun"
        await asyncio.sleep(UNDER_WAY_S)
        found.append(listeners.zero_pages.are_held)
    assert found == held


@pytest.mark.parametrize(("pages_after", "is_still_wanted"), [(0, True), (100, False)])
async def test_zero_pages_are_not_taken_where_ksmd_was_not_set_to_scan_or_they_are_wanted_no_more(
    pages_after: int, *, is_still_wanted: bool
) -> None:
    listeners, report = all_listeners(), passed(Settings(pages_to_scan=100, sleep_millisecs=20))
    ksm = replace(report.snapshot.ksm, settings=Settings(0, 20), full_scans=5)
    snapshot = replace(report.snapshot, guests=(Guest(uuid="u", name="vm"),), ksm=ksm)
    report = replace(report, snapshot=snapshot, after=Settings(pages_after, 20))
    hear(listeners, replace(report, decision=replace(report.decision, wants_zero_pages=True)), Config())
    if not is_still_wanted:
        hear(listeners, report, Config())
    await asyncio.sleep(UNDER_WAY_S)
    assert not listeners.zero_pages.are_held
