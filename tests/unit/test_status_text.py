"""The status for people: what is saved, at what price and why, and what stands in the way; and systemd's one line."""

import time
from typing import Any

import pytest

from tests.fakes import FakeFacts
from tests.lab.samples import UNMERGED, UNSWITCHED, a_pass, agent_facts
from tests.unit.test_status import shown
from virtksm import __version__
from virtksm.agent.log import status_text
from virtksm.agent.status import read_current
from virtksm.cli.layout import to_lines
from virtksm.cli.status_text import ASCII, BLOCKS, progress_bar, status_rows
from virtksm.errors import SensingFailed
from virtksm.model.current import CurrentKsm, Origin, after_pass
from virtksm.model.report import Outcome
from virtksm.model.snapshot import HostMemory, Settings
from virtksm.values import replace


def status(**changes: object) -> dict[str, Any]:
    return shown(agent_facts(last=a_pass(), current=after_pass(a_pass())), **changes)


def now(**changes: object) -> dict[str, object]:
    return {**after_pass(a_pass()).as_dict(), **changes}


def rows(told: dict[str, Any], *, verbose: bool = False) -> list[tuple[str, str, str]]:
    return list(status_rows(told, marks=BLOCKS, verbose=verbose))


def test_a_glance_tells_what_is_saved_at_what_price_why_and_what_comes_next() -> None:
    hour = {"step_s": 60.0, "saved_kib": [None] * 57 + [0, 240, 480]}
    ksmd = {"cpu_seconds": 12.34, "core_percent": 3.21, "over_s": 299.0}
    old, new = (
        {"at_s": time.time() - ago_s, "domain": "vm", "kind": "stopped", "uuid": "u", "detail": detail}
        for ago_s, detail in ((90_000, ""), (5, "crashed"))
    )
    told = status(saved_hour=hour, ksmd=ksmd, events=[old, new])
    lines = to_lines(rows(told))
    assert lines[:9] == [
        "Agent      running, policy adaptive, qemu:///system",
        "Libvirt    connected",
        "KSM        on, scanning 400 pages every 10 ms",
        "Guests     1 running, 1.0 MiB resident",
        "Saved      0.5 MiB (48.0 % of guest memory)",
        "Last hour  " + " " * 28 + "▁█ up to 0.5 MiB",
        "ksmd       3.2 % of a core (last 5 min), 12.3 s CPU since boot",
        "Reason     as told",
        "Next       pass in 4 s",
    ]
    of_old, of_new = (line.split() for line in lines[-2:])
    assert (of_old[0], len(of_old[1]), of_old[3:]) == ("Events", len("2026-11-25"), ["vm", "stopped"])
    assert (len(of_new[0]), of_new[1:]) == (len("12:34:56"), ["vm", "stopped", "(crashed)"])
    more = set(to_lines(rows(told, verbose=True))) - set(lines)
    assert more == {
        f"Agent      running, policy adaptive, qemu:///system, virtksm {__version__}",
        "           0.4 MiB by shared pages, 0.1 MiB by zero pages, 0.0 MiB given back by split huge pages",
        "Settings   pages_to_scan 400, sleep_millisecs 10, merge_across_nodes 1",
        "Reason     as told (rule told)",
        "Last pass  10 s ago (timer): settings changed",
    }


IDLING = {"pages_to_scan": 0, "sleep_millisecs": 10_000, "merge_across_nodes": 1}
SCAN = {"done_kib": 46_080, "total_kib": 102_400, "left_s": 2.4}
ZERO_PAGES_ALONE = "only for zero pages (redhat_only_zero_pages)"
BAR = "█████████░░░░░░░░░░░"


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, ("", "on, scanning 400 pages every 10 ms")),
        ({"now": now(settings=IDLING)}, ("", "on, idle")),
        ({"now": now(redhat_only_zero_pages=1, settings=IDLING)}, ("", f"on, {ZERO_PAGES_ALONE}, idle")),
        ({"full_scan": SCAN}, ("", f"on, scanning {BAR} 45 % of 100.0 MiB, 2 s left")),
        ({"full_scan": {**SCAN, "left_s": 0.1}}, ("", f"on, scanning {BAR} 45 % of 100.0 MiB, 1 s left")),
        ({"full_scan": {**SCAN, "left_s": None}}, ("", f"on, scanning {BAR} 45 % of 100.0 MiB")),
        ({"full_scan": {**SCAN, "done_kib": None}}, ("", "on, scanning 100.0 MiB")),
        ({"now": now(settings=IDLING), "full_scan": SCAN}, ("", "on, idle")),
        ({"now": now(ksm_run=None)}, ("", "libvirt does not tell whether it is on, scanning 400 pages every 10 ms")),
        ({"now": now(advisor_mode="scan-time")}, ("", "on, scanning as the kernel's advisor (scan-time) says")),
        ({"paused": True, "now": now(settings=IDLING)}, ("warn", "on, paused until `virtksm resume`")),
        ({"paused": True}, ("warn", "on, paused until `virtksm resume`; still scanning 400 pages every 10 ms")),
        ({"now": now(settings=dict.fromkeys(IDLING))}, ("", "on, settings unknown")),
    ],
)
def test_what_ksmd_does_is_one_word(changes: dict[str, Any], row: tuple[str, str]) -> None:
    ((tone, _, text),) = [one for one in rows(status(**changes)) if one[1] == "KSM"]
    assert (tone, text) == row


@pytest.mark.parametrize(
    ("changes", "tone", "line"),
    [
        ({"now": now(ksm_run=0)}, "warn", "KSM        off (run=0): nothing merges (echo 1 > "),
        ({"now": now(ksm_run=2)}, "warn", "KSM        off (run=2, everything is unmerged): nothing merges (echo 1 > "),
        ({"now": now(saved_kib=None, saved_percent=None)}, "", "Saved      unknown"),
        ({"now": now(guests=None)}, "", "Guests     unknown"),
        ({"now": now(guests_unread=2)}, "", "Guests     1 running (2 unread), "),
        ({"now": None}, "", "Reason     as told"),
        ({"history_error": "no"}, "warn", "History    no"),
        ({"agent": False}, "warn", "Agent      not running for qemu:///system (systemctl start virtksm)"),
        ({"agent": None}, "warn", "Agent      not for this user to ask: sudo virtksm status, or "),
        (
            {"agent": None, "now": now(origin="libvirt")},
            "",
            "Agent      libvirt does not tell whether one runs on another machine: ssh ",
        ),
    ],
)
def test_what_stands_out_has_a_tone(changes: dict[str, Any], tone: str, line: str) -> None:
    assert [row[0] for row in rows(status(**changes)) if to_lines([row])[0].startswith(line)] == [tone]


def test_guests_that_were_switched_are_named_and_why_others_were_not() -> None:
    facts = agent_facts(last=a_pass(), switched=UNMERGED, unswitched=UNSWITCHED)
    assert rows(shown(facts))[-2:] == [
        ("warn", "Warning", "guest safe was not unmerged: no room: wait"),
        ("", "Unmerged", "vault"),
    ]
    many = {str(number): replace(UNMERGED["u"], why="command") for number in range(7)}
    (text,) = [text for _, name, text in rows(shown(replace(facts, switched=many))) if name == "Unmerged"]
    assert text == f"{', '.join(['vault (by a command)'] * 5)} and 2 more"


def test_guests_that_a_command_lets_merge_are_told_apart() -> None:
    switched = {**UNMERGED, "m": replace(UNMERGED["u"], name="let in", merge=True, why="command")}
    told = shown(agent_facts(last=a_pass(), switched=switched))["switched"]
    assert {kind: [one["name"] for one in told[kind]] for kind in ("unmerged", "merging")} == {
        "unmerged": ["vault"],
        "merging": ["let in"],
    }


def test_who_rewrites_is_named_and_why_that_is_unknown() -> None:
    out = {"u": replace(UNMERGED["u"], name="loud", why="rewrites")}
    facts = agent_facts(last=a_pass(), switched=out, unread=SensingFailed("no right", remedy="be root"))
    assert rows(shown(facts))[-2:] == [
        ("warn", "Warning", "which guests rewrite what merges is unknown: no right: be root"),
        ("", "Unmerged", "loud (rewrites what merges, for a day)"),
    ]


def test_a_pass_that_did_not_go_well_stands_out() -> None:
    last = replace(a_pass(), outcome=Outcome.YIELDED)
    told = shown(agent_facts(last=last, current=after_pass(last)))
    assert ("warn", "Last pass", "10 s ago (timer): yielded") in rows(told)


def test_the_bar_is_of_ascii_where_the_terminal_knows_no_blocks() -> None:
    assert progress_bar(0.5, ASCII, 4) == "##--"
    assert [progress_bar(share, ASCII, 2) for share in (0.0, 0.99, 1.0)] == ["--", "#-", "##"]


def test_systemd_is_told_in_one_line_and_first_that_ksm_is_off() -> None:
    report = a_pass()
    assert status_text(report) == "0.5 MiB saved, 1 guest; as told"
    assert status_text(replace(report, outcome=Outcome.YIELDED)) == "0.5 MiB saved, 1 guest; as told (yielded)"
    ksm = replace(report.snapshot.ksm, run=0)
    assert status_text(replace(report, snapshot=replace(report.snapshot, ksm=ksm))).startswith("KSM is off (run=0); ")


def test_the_look_is_at_this_machine_with_the_last_passs_guests_else_at_the_last_pass() -> None:
    class Hidden(FakeFacts):
        def host_memory(self) -> HostMemory:
            raise SensingFailed("hidden")

    class NoKsm(FakeFacts):
        def ksm_counter(self, name: str) -> int | None:
            return None

    assert read_current(None, None) is None
    assert read_current(None, a_pass()) == after_pass(a_pass())
    assert after_pass(a_pass()).ksm.settings == Settings(pages_to_scan=400, sleep_millisecs=10, merge_across_nodes=1)
    found = read_current(FakeFacts(), a_pass())
    assert isinstance(found, CurrentKsm)
    assert (found.origin, found.guests, found.ksm.settings.pages_to_scan) == (Origin.LOCAL, 1, 0)
    alone = read_current(FakeFacts(), None)
    assert isinstance(alone, CurrentKsm)
    assert (alone.guests, alone.committed_kib, alone.saved_percent) == (None, None, None)
    hidden = read_current(Hidden(), None)
    assert isinstance(hidden, CurrentKsm)
    assert (hidden.host, hidden.as_dict()["total_kib"]) == (None, None)
    assert read_current(NoKsm(), None) is None
