"""What the page KSM computes by itself is what the commands compute, and its words fit what cannot be had here.

Its modules run in the browser, out of files: neither Cockpit nor KSM is needed.
"""

from __future__ import annotations

import random
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route

from tests.lab.browser import chromium, open_page
from virtksm.guests.obstacles import Obstacle
from virtksm.history.curves import LATELY_S, Point, core_share, cpu_shares, pieces
from virtksm.history.samples import Sample
from virtksm.text import format_kib, printable

pytestmark = pytest.mark.real

FOLDER = Path(__file__).parents[2] / "cockpit"
ORIGIN = "http://page.invalid"
Json = dict[str, Any]

NOW: Json = {"origin": "local", "ksm_run": 1, "advisor_mode": "none"}
FINE: Json = {
    "agent": True,
    "off": False,
    "now": NOW,
    "libvirt": {"answers": True, "error": None, "waiting_for": None},
    "last_pass": {"warnings": [], "exposed": None},
    "stranded": {"possible": False, "worst_core_percent": 0.0},
}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    def serve(route: Route) -> None:
        name = route.request.url.removeprefix(f"{ORIGIN}/")
        if name:
            route.fulfill(body=(FOLDER / name).read_text(encoding="utf-8"), content_type="text/javascript")
        else:
            route.fulfill(body="<!DOCTYPE html><table><thead></thead><tbody></tbody></table>", content_type="text/html")

    with chromium() as browser:
        looked = open_page(browser, timezone_id="UTC")
        looked.page.route(f"{ORIGIN}/**", serve)
        looked.page.goto(f"{ORIGIN}/")
        yield looked.page
        assert looked.complaints == []


def call(page: Page, module: str, expression: str, argument: object = None) -> Any:  # noqa: ANN401  # JSON
    """Return what an expression over a module, `it`, and an argument, `given`, comes to."""
    return page.evaluate(
        f"async given => {{ const it = await import('{ORIGIN}/{module}.js'); return {expression}; }}", argument
    )


def test_amounts_and_texts_from_outside_are_worded_as_by_the_commands(page: Page) -> None:
    amounts = [None, *range(-4096, 8192), *range(1024 * 1024 - 8, 3 * 1024 * 1024, 4096), -3_500_000]
    assert call(page, "units", "given.map(it.formatKib)", amounts) == [format_kib(kib) for kib in amounts]
    shares = [hundredths / 100 for hundredths in range(10_001)]
    assert call(page, "units", "given.map(it.formatPercent)", shares) == [f"{share:.1f} %" for share in shares]
    known = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in {"Cs", "Cn"}]
    differs = "given.filter(code => it.printable(String.fromCodePoint(code)) !== String.fromCodePoint(code))"
    escaped = call(page, "units", differs, known)
    assert escaped == [code for code in known if not chr(code).isprintable()]
    texts = ["web-1", "a\tb\nc\rd\x00\x1b[31m\x7f\x85", "\u202eevil\u2028\u00a0", "\U000e0041\U0001f600", "\\u202e"]
    assert call(page, "units", "given.map(it.printable)", texts) == [printable(text) for text in texts]


def test_obstacles_are_worded_as_by_the_commands(page: Page) -> None:
    assert call(page, "guests", "it.OBSTACLES") == {one.value: one.text for one in Obstacle}


def test_a_check_is_named_with_its_group(page: Page) -> None:
    finding: Json = {"group": "hook", "what": "executable", "verdict": "FAIL", "detail": "it is not", "remedy": "do so"}
    shown = """(() => {
        const made = tag => document.createElement(tag);
        const view = { summary: made("p"), todo: made("ul"), rest: made("ul"), fold: made("details") };
        view.fold.append(made("summary"));
        it.showFindings(view, [given], true);
        return view.todo.textContent;
    })()"""
    assert call(page, "findings", shown, finding) == "FAILhook, executable: it is not→ do so"


def samples(seed: int) -> list[Sample]:
    """Draw an agent's memories: gaps, a reboot now and then, a clock set back."""
    draw = random.Random(seed)
    at_s, cpu_s, drawn = 1_700_000_000.0, 10.0, []
    for _ in range(draw.randrange(60)):
        at_s += draw.choice((2.0, 10.0, 10.0, 60.0, 180.0, 200.0, 4000.0, -50.0))
        cpu_s = 0.0 if draw.random() < 0.05 else cpu_s + draw.choice((0.0, 0.01, 5.0))
        drawn.append(
            Sample(
                at_s=at_s, guests=1, committed_kib=1, total_kib=1, available_kib=1, saved_kib=draw.randrange(9),
                ksmd_cpu_seconds=cpu_s, run=1, pages_to_scan=0, sleep_millisecs=20, rule="idle",
            )
        )  # fmt: skip
    return drawn


def test_what_ksmd_took_of_a_core_lately_is_what_status_says(page: Page) -> None:
    now_s = 1_790_000_000.0
    chance = random.Random(7)  # the same every time
    assert call(page, "facts", "it.LATELY_S") == LATELY_S
    for _ in range(300):
        ages = sorted(
            (chance.choice([0.5, 1, 50, 299, 300, 301, 2000]) + chance.random() for _ in range(6)), reverse=True
        )
        used = [chance.choice([None, 1.0, 5.0, 7.0, 9.0, 99.0]) for _ in ages]
        total = chance.choice([None, 10.0, 6.0])
        samples = [{"at_s": now_s - age, "ksmd_cpu_seconds": cpu} for age, cpu in zip(ages, used, strict=True)]
        points = [Point(at_s=now_s - age, saved_kib=None, cpu_seconds=cpu) for age, cpu in zip(ages, used, strict=True)]
        share = core_share(points, Point(at_s=now_s, saved_kib=None, cpu_seconds=total))
        told = call(page, "facts", "it.coreShare(given[0], given[1], given[2])", [samples, total, now_s])
        assert told == (None if share is None else pytest.approx(list(share)))


def test_its_curves_are_those_of_virtksm_trace_plot(page: Page) -> None:
    for seed in range(40):
        drawn = samples(seed)
        given: list[Json] = [
            {"at_s": one.at_s, "saved_kib": one.saved_kib, "ksmd_cpu_seconds": one.ksmd_cpu_seconds} for one in drawn
        ]
        saved = [[[one.at_s, one.saved_kib] for one in piece] for piece in pieces(drawn)]
        assert call(page, "history", "it.savedCurve(given)", given) == saved
        shares = [[one.from_s, one.to_s, pytest.approx(100 * one.share)] for one in cpu_shares(drawn, 30.0)]
        steps = [step for piece in call(page, "history", "it.cpuCurve(given, 30)", given) for step in piece]
        ends = list(zip(steps[::2], steps[1::2], strict=True))
        assert [[first[0], last[0], first[1]] for first, last in ends] == shares
        assert all(first[1] == last[1] for first, last in ends)


def test_a_scale_ends_above_what_it_shows_and_not_far_above(page: Page) -> None:
    values = [0, 0.3, 1, 1.01, 2, 4.9, 5, 7, 99, 100, 101, 12_345]
    tops = call(page, "chart", "given.map(value => it.niceAbove(value))", values)
    for value, top in zip(values, tops, strict=True):
        assert value <= top <= max(1, 2.5 * value)


def test_the_times_below_a_curve_are_even_and_few(page: Page) -> None:
    for span_s, step_s in ((300, 60), (3600, 600), (21_600, 3600), (86_400, 10_800)):
        marks = call(page, "chart", "it.evenTimes(1790000123 - given, 1790000123, 8)", span_s)
        assert marks == [at_s for at_s in range(1790000123 - span_s, 1790000124) if at_s % step_s == 0]


def test_guests_of_whom_nothing_is_known_come_last_either_way(page: Page) -> None:
    given: list[Json] = [
        {"name": name, "saved_bytes": saved, "can_merge": None, "obstacles": []}
        for name, saved in (("b", None), ("c", 5), ("a", None), ("d", 9))
    ]
    order = """(() => {
        const table = document.querySelector("table");
        const shown = new it.GuestTable(table);
        const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
        shown.show(given);
        const falling = names();
        table.querySelector("[data-key=saved_bytes] button").click();
        return [falling, names()];
    })()"""
    assert call(page, "guests", order, given) == [["d", "c", "a", "b"], ["c", "d", "a", "b"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"now": None}, "No KSM can be seen on this host"),
        ({"now": {**NOW, "ksm_run": None}}, "CONFIG_KSM"),
        ({"now": {**NOW, "ksm_run": None, "origin": "last_pass"}}, None),
        ({"now": {**NOW, "ksm_run": 2}}, "systemctl enable --now virtksm-ksm.service"),
        ({"off": True, "now": {**NOW, "ksm_run": 2}}, "virtksm resume"),
        ({"now": {**NOW, "advisor_mode": "scan-time"}}, "echo none > /sys/kernel/mm/ksm/advisor_mode"),
        ({"libvirt": {"answers": False, "error": "no answer", "waiting_for": "pass"}}, "no answer"),
        ({"libvirt": {"answers": False, "error": None, "waiting_for": "open"}}, "Waiting for open"),
        ({"stranded": {"possible": True, "worst_core_percent": 12.5}}, "It may take up to 12.5 % of a core"),
        ({"stranded": {"possible": True, "worst_core_percent": None}}, "The first pass has not returned"),
        ({"last_pass": {"warnings": ["of this"], "exposed": None}}, "of this"),
        ({"last_pass": {"warnings": [], "exposed": ["vault"]}}, "vault is declared private"),
        ({"last_pass": None}, None),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(page: Page, changes: Json, words: str | None) -> None:
    found = call(page, "notices", "it.noticesOf(null, given)", {**FINE, **changes})
    if words is None:
        assert found == []
    else:
        (notice,) = found
        assert words in f"{notice['title']} {notice['text']}"


@pytest.mark.parametrize(
    ("output", "uri"),
    [
        ("", None),
        ("Environment=\n", None),
        ("Environment=PYTHONSAFEPATH=1 XLIBVIRT_DEFAULT_URI=no:///no\n", None),
        ("Environment=LIBVIRT_DEFAULT_URI=qemu+tls://host.example/system\n", "qemu+tls://host.example/system"),
        ('Environment=A=b "C=d e" "LIBVIRT_DEFAULT_URI=qemu:///system?a=b&c=d"\n', "qemu:///system?a=b&c=d"),
        ("Environment=LIBVIRT_DEFAULT_URI=first:///x LIBVIRT_DEFAULT_URI=last:///x\n", "last:///x"),
        ("Environment=LIBVIRT_DEFAULT_URI=--help\n", "refused"),
        ("Environment=LIBVIRT_DEFAULT_URI=qemu:///a'b\n", "refused"),
    ],
)
def test_the_connection_is_the_one_that_the_units_environment_names(page: Page, output: str, uri: str | None) -> None:
    taken = "(() => { try { return it.parseUri(given) } catch (problem) { return 'refused' } })()"
    assert call(page, "host", taken, output) == uri


def test_an_answer_of_any_length_makes_a_page_of_bounded_length(page: Page) -> None:
    many: Json = {**FINE, "last_pass": {"warnings": ["w"] * 100_000, "exposed": None}}
    assert len(call(page, "notices", "it.noticesOf(null, given)", many)) == 50
    assert len(call(page, "units", "it.printable(given)", "x" * 1_000_000)) == 10_000
    table: Json = {"columns": ["at_s"], "rows": [[number] for number in range(50_000)]}
    assert len(call(page, "history", "it.parseSamples(given)", table)) == 1000


def test_a_problem_of_any_kind_is_said(page: Page) -> None:
    (notice,) = call(page, "notices", "it.noticesOf(new TypeError(given), null)", "x is no function")
    assert "x is no function" in notice["text"]


def test_nothing_on_the_page_is_ever_read_as_markup_or_code() -> None:
    for module in FOLDER.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert name not in text, module
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("<script src=") + page.count('<script type="module" src=')
    assert not re.search(r"\s(style|on\w+)=", page)
