"""The page KSM, with administrative access, over an agent in the hands of somebody who means harm."""

import os
import re
import shlex
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.lab.browser import chromium, open_page
from tests.lab.cockpit import PAGE, CockpitHost
from tests.lab.hang import HANG_S
from tests.lab.hostile_agent import (
    NOBODY,
    PLANTED_HISTORIES,
    PROGRAM_URI,
    TEXT,
    UNREADABLE,
    HostileAgent,
    Json,
    answer_to,
    as_line,
    honest,
    plant_history,
    say_always,
    wrong_answers,
)
from tests.lab.ksm import wait_until
from tests.lab.libvirtd import PrivateLibvirtd

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]

SOMETHING_WRONG = re.compile("does not understand|does not answer as it should|No agent runs")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as lent:
        yield lent


@pytest.fixture
def host(libvirtd: PrivateLibvirtd) -> Iterator[CockpitHost]:
    """Lend a Cockpit's host on which the agent's user owns what is its own, and every command leaves its arguments."""
    with CockpitHost(libvirtd) as lent:
        lent.home.runtime_dir.mkdir(exist_ok=True)
        os.chown(lent.home.state_dir, NOBODY, NOBODY)
        hurry_and_log_arguments(lent)
        yield lent


def hurry_and_log_arguments(host: CockpitHost) -> None:
    program = host.home.folder / "bin" / "virtksm"
    log = shlex.quote(str(host.home.folder / "ran"))
    first, rest = program.read_text(encoding="utf-8").split("\n", 1)
    rest = rest.replace("-m virtksm", "-m tests.lab.hurried")
    program.write_text(f'{first}\necho "$@" >>{log}\n{rest}', encoding="utf-8")


def ran(host: CockpitHost) -> list[str]:
    return (host.home.folder / "ran").read_text(encoding="utf-8").splitlines()


def plant_program(host: CockpitHost) -> tuple[str, Path]:
    """Put a program into the agent's own folder; return a URI that has libvirt run it, and the file that proves it."""
    program, proof = host.home.state_dir / "evil", host.home.state_dir / "proof"
    program.write_text("#!/bin/sh\nid >>/var/lib/virtksm/proof\n", encoding="ascii")
    program.chmod(0o755)
    os.chown(program, NOBODY, NOBODY)
    return PROGRAM_URI.format("/var/lib/virtksm/evil"), proof


def open_at(browser: Browser, address: str) -> Page:
    page = open_page(browser).page
    page.goto(address + PAGE)
    return page


def is_examined(page: Page) -> None:
    """Wait until the page has run all that it runs by itself."""
    expect(page.locator("#page")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#doctor-summary")).not_to_have_text("Checking…")


def test_no_program_runs_that_the_agent_names_and_the_page_says_what_differs(
    host: CockpitHost, browser: Browser
) -> None:
    uri, proof = plant_program(host)

    def say(request: Json) -> list[bytes]:
        answer = answer_to(request["op"])
        if request["op"] == "status":
            answer["status"] |= {"uri": uri, "version": "<img src=x onerror=alert(1)>\u202e", "policy": TEXT}
            answer["status"]["last_pass"] |= {"uri": uri, "warnings": [TEXT] * 1000}
        return [as_line(answer)]

    with HostileAgent(host.home.runtime_dir, say):
        page = open_at(browser, host.serve())
        is_examined(page)
        page.get_by_role("button", name="Retune now").click()
        expect(page.locator("#result")).to_contain_text("no")
        page.get_by_role("button", name="Check again").click()
        is_examined(page)
        expect(page.locator("#subtitle")).to_contain_text(uri)
        expect(page.locator("#guest-notes")).to_contain_text(f"The agent says that it serves {uri}.")
        assert page.locator("img").count() == 0
        assert page.locator("#notices .notice").count() <= 50
        page.context.close()
    assert not proof.exists()
    assert {"guests --json", "doctor --json"} <= set(ran(host))
    assert not [line for line in ran(host) if "connect" in line or "ext" in line]


def test_the_commands_look_at_the_connection_that_the_unit_names(host: CockpitHost, browser: Browser) -> None:
    """Root's files say which, through systemd."""
    systemctl = host.home.folder / "bin" / "systemctl"
    systemctl.write_text("#!/bin/sh\necho Environment=A=b LIBVIRT_DEFAULT_URI=test:///default\n", encoding="ascii")
    systemctl.chmod(0o755)
    with HostileAgent(host.home.runtime_dir):
        page = open_at(browser, host.serve())
        is_examined(page)
        page.context.close()
    assert {"guests --connect test:///default --json", "doctor --connect test:///default --json"} <= set(ran(host))
    assert not [line for line in ran(host) if "qemu" in line]


def look_now(page: Page) -> None:
    """Have the page ask at once instead of within two seconds."""
    page.locator("#span").dispatch_event("change")


def test_what_is_no_answer_is_said_and_the_next_good_one_is_shown(host: CockpitHost, browser: Browser) -> None:
    with HostileAgent(host.home.runtime_dir) as agent:
        page = open_page(browser).page
        page.clock.install()
        page.goto(host.serve() + PAGE)
        notices = page.locator("#notices")
        for said in UNREADABLE:
            agent.say = partial(say_always, said)
            look_now(page)
            expect(notices).to_contain_text(SOMETHING_WRONG)
            agent.say = honest
            look_now(page)
            expect(notices).not_to_contain_text(SOMETHING_WRONG)
        expect(page.locator("#subtitle")).to_contain_text("policy adaptive")
        asked: list[str] = []
        agent.say = partial(drip, agent, asked)
        look_now(page)
        wait_until(lambda: asked != [], HANG_S, "the page to ask")
        page.clock.fast_forward(10_000)
        expect(notices).to_contain_text("the agent does not answer")
        page.context.close()


def test_a_browser_whose_clock_is_set_back_goes_on_asking(host: CockpitHost, browser: Browser) -> None:
    with HostileAgent(host.home.runtime_dir) as agent:
        asked: list[Json] = []
        agent.say = partial(say_and_note, asked)
        page = open_page(browser).page
        page.clock.install()
        page.goto(host.serve() + PAGE)
        is_examined(page)
        page.clock.set_system_time(0)

        def counts() -> tuple[int, int]:
            return ran(host).count("guests --json"), len([one for one in asked if one["op"] == "history"])

        def has_asked(guests: int, history: int) -> bool:
            page.clock.fast_forward(10_000)
            return counts()[0] > guests and counts()[1] > history

        wait_until(partial(has_asked, *counts()), HANG_S, "the page to ask for guests and history")
        page.context.close()


def test_a_time_that_is_chosen_while_another_is_asked_for_is_shown_next(host: CockpitHost, browser: Browser) -> None:
    with HostileAgent(host.home.runtime_dir) as agent:
        asked: list[Json] = []
        chosen = threading.Event()
        agent.say = partial(say_and_note, asked, may_answer=chosen)
        page = open_at(browser, host.serve())
        wait_until(lambda: "history" in [one["op"] for one in asked], HANG_S, "the page to ask for an hour")
        page.locator("#span").select_option("86400")
        chosen.set()
        wait_until(lambda: asked.count({"op": "status"}) > 5, HANG_S, "the page to go on asking")
        assert 86_400 + 300 in [one["seconds"] for one in asked if one["op"] == "history"]
        page.context.close()


def test_each_field_may_be_anything(host: CockpitHost, browser: Browser) -> None:
    """What comes of it may be nonsense; the page neither stops nor runs anything."""
    with HostileAgent(host.home.runtime_dir) as agent:
        page = open_at(browser, host.serve())
        is_examined(page)
        for op in ("status", "history", "decisions"):
            for said in [said for _, said in wrong_answers(op, one_in=149)]:
                asked: list[str] = []
                agent.say = partial(say_wrong, op, said, asked)
                wait_until(partial(has_asked, page, op, asked), HANG_S, f"the page to ask for {op}")
        agent.say = honest
        look_now(page)
        expect(page.locator("#notices")).not_to_contain_text(SOMETHING_WRONG)
        expect(page.locator("#decisions tbody tr")).to_have_count(1)
        page.context.close()
    assert not [line for line in ran(host) if "connect" in line]


def has_asked(page: Page, op: str, asked: list[str]) -> bool:
    """Tell whether a question has come; if not, have the page ask: a round that is under way may be state it."""
    if op not in asked:
        look_now(page)
    return op in asked


def drip(agent: HostileAgent, asked: list[str], request: Json) -> Iterator[bytes]:
    asked.append(request["op"])
    return agent.drip(request)


def say_and_note(asked: list[Json], request: Json, may_answer: threading.Event | None = None) -> Iterable[bytes]:
    """Answer honestly, for the history not before it may."""
    asked.append(request)
    if may_answer is not None and request["op"] == "history":
        may_answer.wait(HANG_S)
    return honest(request)


def say_wrong(op: str, said: bytes, asked: list[str], request: Json) -> list[bytes]:
    """Answer one question with `said`; each status is of another pass, so that the page asks for decisions, too."""
    asked.append(request["op"])
    answer = answer_to(request["op"])
    if request["op"] == "status":
        answer["status"]["last_pass"]["duration_ms"] = time.monotonic()
    return [said if request["op"] == op else as_line(answer)]


def test_a_planted_history_and_switch_harm_nothing_where_no_agent_runs(host: CockpitHost, browser: Browser) -> None:
    plant_history(host.home.state_dir / "local.history", PLANTED_HISTORIES["view"])
    (host.home.state_dir / "local.off").write_text(TEXT)
    page = open_at(browser, host.serve())
    is_examined(page)
    expect(page.locator("#notices")).to_contain_text("No agent runs on this host")
    expect(page.locator("#notices")).to_contain_text("virtksm is paused")
    page.context.close()
