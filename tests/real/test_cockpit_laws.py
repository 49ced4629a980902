"""What the page KSM computes by itself is what the commands compute, and its words fit what cannot be had here.

Its modules run in the browser, out of files: neither Cockpit nor KSM is needed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from playwright.sync_api import Page, Route

from tests.lab.browser import chromium, open_page
from virtksm.text import format_kib, printable

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]

FOLDER = Path(__file__).parents[2] / "cockpit"
ORIGIN = "http://page.invalid"
Json = dict[str, Any]

NOW: Json = {"origin": "local", "ksm_run": 1, "advisor_mode": "none"}
FINE: Json = {
    "agent": True,
    "paused": False,
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
    amounts = [*range(-4096, 8192), *range(1024 * 1024 - 8, 3 * 1024 * 1024, 4096), -3_500_000]
    assert call(page, "units", "given.map(kib => it.formatBytes(1024 * kib))", amounts) == list(
        map(format_kib, amounts)
    )
    shares = [hundredths / 100 for hundredths in range(10_001)]
    assert call(page, "units", "given.map(it.formatPercent)", shares) == [f"{share:.1f} %" for share in shares]
    known = [code for code in (*range(0x32000), *range(0xE0000, 0xF0100)) if category(chr(code)) not in {"Cs", "Cn"}]
    differs = "given.filter(code => it.printable(String.fromCodePoint(code)) !== String.fromCodePoint(code))"
    escaped = call(page, "units", differs, known)
    assert escaped == [code for code in known if not chr(code).isprintable()]
    texts = ["web-1", "a\tb\nc\rd\x00\x1b[31m\x7f\x85", "\u202eevil\u2028\u00a0", "\U000e0041\U0001f600", "\\u202e"]
    assert call(page, "units", "given.map(it.printable)", texts) == [printable(text) for text in texts]


def test_a_check_is_named_with_its_group(page: Page) -> None:
    finding: Json = {"group": "hook", "what": "executable", "verdict": "FAIL", "detail": "it is not", "remedy": "do so"}
    shown = """(() => {
        const made = tag => document.createElement(tag);
        const view = { summary: made("p"), todo: made("ul"), rest: made("ul"), fold: made("details") };
        view.fold.append(made("summary"));
        it.showFindings(view, [given], true);
        return view.todo.textContent;
    })()"""
    assert call(page, "findings", shown, finding) == "FAILhook: executable: it is not→ do so"


def test_a_full_scan_shows_its_progress_and_what_is_left(page: Page) -> None:
    shown = """(() => {
        document.body.innerHTML = given[0];
        it.showFacts(given[1]);
        const byId = id => document.getElementById(id);
        const [text, state] = ["scan-text", "state"].map(id => byId(id).textContent);
        return [byId("scan").hidden, byId("scan-bar").position, text, state];
    })()"""
    body = (FOLDER / "index.html").read_text(encoding="utf-8").partition("<body>")[2]
    status: Json = {**FINE, "uri": "qemu:///system", "version": "1", "policy": "adaptive", "next_pass_s": None}
    status |= {"last_pass": None, "now": {**NOW, "guests": None, "saved_bytes": None, "saved_percent": None}}
    status["now"] |= {"settings": {"pages_to_scan": 100, "sleep_millisecs": 20}}
    for full_scan, expected in (
        (
            {"done_bytes": 2**29, "total_bytes": 2**31, "left_s": 4.2},
            [False, 0.25, "25 % of 2.0 GiB, 4 s left", "Scanning"],
        ),
        ({"done_bytes": None, "total_bytes": 2**31, "left_s": None}, [False, -1, "2.0 GiB", "Scanning"]),
        (None, [True, -1, "", "Scanning 100 pages every 20 ms"]),
    ):
        assert call(page, "facts", shown, [body, {**status, "full_scan": full_scan}]) == expected


def test_a_decision_shows_which_part_of_what_is_saved_is_no_shared_pages(page: Page) -> None:
    shown = """(() => {
        document.body.innerHTML = "<table><thead></thead><tbody></tbody></table>";
        it.showDecisions(document.querySelector("table"), [JSON.stringify(given)]);
        return [...document.querySelectorAll("[data-label='Saved'] div")].map(one => one.textContent);
    })()"""
    settings = {"pages_to_scan": 0, "sleep_millisecs": 20, "merge_across_nodes": 1}
    ksm: Json = {"settings": settings, "pages_shared": 1, "pages_sharing": 256, "page_kib": 4}
    decision: Json = {"rule": "idle", "reason": "all scanned", "thresholds": []}
    line: Json = {"at_s": 1.5, "triggers": ["timer"], "decision": decision, "outcome": "unchanged", "refused": []}
    parts = ["2.0 MiB by zero pages", "4.0 MiB given back by split huge pages"]
    for zero_pages, freed_kib, expected in (
        (None, None, ["1.0 MiB"]),
        (0, 0, ["1.0 MiB"]),
        (512, None, [f"3.0 MiB{parts[0]}", parts[0]]),
        (512, 4096, [f"7.0 MiB{''.join(parts)}", *parts]),
    ):
        counted = {**ksm, "ksm_zero_pages": zero_pages, "freed_kib": freed_kib}
        given = {**line, "after": settings, "snapshot": {"ksm": counted}}
        assert call(page, "decisions", shown, given) == expected


def test_amounts_from_the_agent_are_bytes_as_those_of_the_commands(page: Page) -> None:
    given: Json = {"a_kib": 2, "b": [{"c_kib": None, "d": "x"}], "e_bytes": 5}
    taken: Json = {"a_bytes": 2048, "b": [{"c_bytes": None, "d": "x"}], "e_bytes": 5}
    assert call(page, "agent", "it.inBytes(given)", given) == taken


def test_a_commands_errors_and_hints_are_one_text(page: Page) -> None:
    errors = (
        "virtksm: error: no such guest\nhint: virtksm guests\nvirtksm: error: another\nvirtksm: 2 errors in 1 file\n"
    )
    assert call(page, "agent", "it.inOneLine(given)", errors) == (
        "no such guest: virtksm guests; another; 2 errors in 1 file"
    )


def test_a_scale_ends_above_what_it_shows_and_not_far_above(page: Page) -> None:
    values = [0, 0.3, 1, 1.01, 2, 4.9, 5, 7, 99, 100, 101, 12_345]
    tops = call(page, "chart", "given.map(value => it.niceAbove(value))", values)
    for value, top in zip(values, tops, strict=True):
        assert value <= top <= max(1, 2.5 * value)


def test_the_times_below_a_curve_are_even_and_few(page: Page) -> None:
    for span_s, step_s in ((300, 60), (3600, 600), (21_600, 3600), (86_400, 10_800)):
        marks = call(page, "chart", "it.evenTimes(1790000123 - given, 1790000123, 8)", span_s)
        assert marks == [at_s for at_s in range(1790000123 - span_s, 1790000124) if at_s % step_s == 0]


def test_the_arrow_keys_reach_every_part_of_a_curve_however_far_apart_its_points_are(page: Page) -> None:
    reached = """(() => {
        const figure = document.createElement("figure");
        figure.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
        figure.append(document.createElement("figcaption"));
        const chart = new it.Chart(figure, { name: "x", format: String, minTop: 1, niceTop: value => value });
        chart.show(given, 0, 300);
        const chosen = ["ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight"].map(key => {
            figure.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", { key }));
            return chart.chosen[0];
        });
        chart.show(given, 40, 340);
        return [...chosen, chart.chosen];
    })()"""
    curve = [[[10, 1], [30, 2]], [[280, 3], [300, 4]]]
    assert call(page, "chart", reached, curve) == [300, 280, 30, 10, 30, None], "what has left the view is not chosen"


def test_guests_of_whom_nothing_is_known_come_last_either_way(page: Page) -> None:
    given: list[Json] = [
        {"name": name, "saved_bytes": saved, "can_merge": None, "can_merge_text": "unknown"}
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
        ({"now": {**NOW, "ksm_run": 2}}, "systemctl restart virtksm-ksm.service"),
        ({"paused": True, "now": {**NOW, "ksm_run": 2}}, "virtksm resume"),
        ({"now": {**NOW, "advisor_mode": "scan-time"}}, "echo none > /sys/kernel/mm/ksm/advisor_mode"),
        ({"libvirt": {"answers": False, "error": "no answer", "waiting_for": "pass"}}, "no answer"),
        ({"libvirt": {"answers": False, "error": None, "waiting_for": "open"}}, "Waiting for open"),
        ({"stranded": {"possible": True, "worst_core_percent": 12.5}}, "It may take up to 12.5 % of a core"),
        ({"stranded": {"possible": True, "worst_core_percent": None}}, "The first pass has not returned"),
        ({"last_pass": {"warnings": ["of this"], "exposed": None}}, "of this"),
        ({"last_pass": {"warnings": ["private guest 'vault' can merge"], "exposed": ["vault"]}}, "'vault' can merge"),
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
    curve = [[[0, 0]] * 50_000, [[1, 1]] * 500, [[2, 2]] * 50]
    assert [len(piece) for piece in call(page, "chart", "it.lastPoints(given)", curve)] == [1450, 500, 50]


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
