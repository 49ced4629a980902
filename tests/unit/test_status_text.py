"""The status for people: what is saved, at what price and why, and what stands in the way; and systemd's one line."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import FakeFacts
from tests.unit.test_agent_history import a_pass
from tests.unit.test_status import NOW, agent_facts
from virtksm.agent.log import status_text
from virtksm.agent.status import read_current
from virtksm.cli.sparkline import BLOCKS
from virtksm.cli.status_text import status_lines
from virtksm.errors import SensingFailed
from virtksm.model.current import CurrentKsm, Origin, after_pass
from virtksm.model.report import Outcome
from virtksm.model.snapshot import HostMemory, Settings


def status(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # any field of the answer
    told = agent_facts(last=a_pass(), current=after_pass(a_pass())).as_dict(NOW)
    return {**json.loads(json.dumps(told)), **changes}


def now(**changes: object) -> dict[str, object]:
    return {**after_pass(a_pass()).as_dict(), **changes}


def lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    return status_lines(told, marks=BLOCKS)


def test_savings_price_settings_and_reason_are_said() -> None:
    hour = {"step_s": 60.0, "saved_kib": [None] * 57 + [0, 240, 480]}
    ksmd = {"cpu_seconds": 12.34, "core_percent": 3.21, "over_s": 299.0}
    old, new = (
        {"at_s": time.time() - ago_s, "domain": "vm", "kind": "stopped", "uuid": "u", "detail": detail}
        for ago_s, detail in ((90_000, ""), (5, "crashed"))
    )
    told = [text for _, text in lines(status(saved_hour=hour, ksmd=ksmd, events=[old, new]))]
    assert told[2:9] == [
        "ksm       on",
        "guests    1, 1.0 MiB resident",
        "saved     0.5 MiB, 48.0 % of guest memory",
        "last hour " + " " * 28 + "▁█ up to 0.5 MiB",
        "ksmd      3.2 % of a core in the last 5 min; 1.5 CPU-seconds since boot",
        "settings  pages_to_scan 400, sleep_millisecs 10, merge_across_nodes 1",
        "last pass 10.0 s ago (timer): applied",
    ]
    of_old, of_new = (text.split() for text in told[-2:])
    assert (len(of_old[1]), of_old[3:]) == (len("2026-11-25"), ["vm", "stopped"])
    assert (len(of_new[1]), of_new[2:]) == (len("12:34:56"), ["vm", "stopped", "(crashed)"])


@pytest.mark.parametrize(
    ("changes", "tone", "text"),
    [
        ({"now": now(ksm_run=0)}, "warn", "ksm       off (run=0): nothing merges; echo 1 > /sys/kernel/mm/ksm/run"),
        ({"now": now(ksm_run=2)}, "warn", "ksm       off, unmerged (run=2): nothing merges"),
        ({"now": now(ksm_run=None)}, "", "ksm       unknown, as libvirt does not report it"),
        ({"now": now(advisor_mode="scan-time")}, "", "ksm       on, and the kernel's advisor (scan-time) sets"),
        ({"off": True}, "warn", "ksm       on; virtksm is paused, until `virtksm resume`"),
        ({"now": now(saved_kib=None, saved_percent=None)}, "", "saved     unknown"),
        ({"now": now(guests=None)}, "", "guests    unknown"),
        ({"now": now(guests_unread=2)}, "", "guests    1 (2 unread), "),
        ({"now": now(ksmd_cpu_seconds=None)}, "", "ksmd      CPU time unknown"),
        ({"history_error": "no"}, "warn", "history   no"),
        ({"agent": False}, "warn", "agent     not running for qemu:///system"),
    ],
)
def test_what_stands_out_has_a_tone(changes: dict[str, Any], tone: str, text: str) -> None:
    assert [(of, shown) for of, shown in lines(status(**changes)) if shown.startswith(text)] != []
    assert {of for of, shown in lines(status(**changes)) if shown.startswith(text)} == {tone}


def test_an_agent_that_does_not_know_the_newer_fields_is_shown_without_them() -> None:
    told = status()
    for name in ("agent", "now", "off"):
        del told[name]
    assert [text.split()[0] for _, text in lines(told)] == ["agent", "libvirt", "last", "why", "next"]


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
