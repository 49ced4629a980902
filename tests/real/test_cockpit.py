"""The page KSM in a real Cockpit and a real browser, with a real agent and real guests behind it.

What only concerns the browser has an agent that is made up, and guests that do not run.
"""

import grp
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from demo.guests import PayloadGuest
from tests.lab.browser import Looked, chromium, open_page
from tests.lab.cockpit import PAGE, URI, CockpitHost
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.hostile_agent import HostileAgent
from tests.lab.ksm import Ksm, wait_agreed, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import PARKING_LAW, AgentFactory, AgentProcess
from virtksm.text import format_kib

pytestmark = [pytest.mark.real, pytest.mark.needs("chromium")]

Json = dict[str, Any]
Visit = Callable[..., Looked]
GROUP = "daemon"
HOSTILE = "<img src=x onerror=alert(1)>\u202e"
OFTEN = "const setOften = window.setInterval; window.setInterval = (work, ms) => setOften(work, ms / 5);"
"""For the page to look every 0.4 s instead of every two."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as lent:
        yield lent


@pytest.fixture
def host(libvirtd: PrivateLibvirtd) -> Iterator[CockpitHost]:
    with CockpitHost(libvirtd) as lent:
        yield lent


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Lend a way to open the page and wait until it shows something; its profile ends with the test."""
    opened: list[Looked] = []

    def look(address: str, **options: Any) -> Looked:  # noqa: ANN401  # Browser.new_context's own
        looked = open_page(browser, **options)
        opened.append(looked)
        looked.page.add_init_script(OFTEN)
        looked.page.goto(address + PAGE)
        expect(looked.page.locator("#page")).to_have_attribute("aria-busy", "false")
        return looked

    try:
        yield look
    finally:
        for looked in opened:
            looked.page.context.close()


@pytest.fixture
def start(
    ksm: Ksm,  # noqa: ARG001  # an agent writes to it: lent as long as one may run
    host: CockpitHost,
) -> Iterator[Callable[..., AgentProcess]]:
    """Lend a way to start an agent on the host's ordinary places."""
    factory = AgentFactory(host.home, URI)
    try:
        yield lambda config=PARKING_LAW: factory(config, prefix=host.prefix)
    finally:
        factory.close()


@pytest.fixture
def made_up(host: CockpitHost) -> Iterator[CockpitHost]:
    """Lend the host with an agent that is made up."""
    host.home.runtime_dir.mkdir(exist_ok=True)
    with HostileAgent(host.home.runtime_dir):
        yield host


def not_of_sockets(complaints: list[str]) -> list[str]:
    """Leave out sockets that were not there, or closed, which Cockpit's bridge in Python has the browser say."""
    return [one for one in complaints if not re.match(r"warning: \[Errno (2|13)\] ", one)]


def told(host: CockpitHost, *arguments: str) -> Json:
    done = host.home.run(*arguments, "--json", prefix=host.prefix)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def keep_printed(host: CockpitHost, command: str) -> Path:
    """Have all that a command prints kept in a file: what processes of others make of it is another thing next time."""
    program, kept = host.home.folder / "bin" / "virtksm", host.home.folder / f"{command}.json"
    real = program.rename(program.with_name("real"))
    keep = f'{real} "$@" >{kept}; code=$?; cat {kept}; exit $code'
    program.write_text(f'#!/bin/sh\n[ $1 = {command} ] || exec {real} "$@"\n{keep}\n', encoding="utf-8")
    program.chmod(0o755)
    return kept


def amount(status: Json, name: str) -> str:
    """Return an amount of memory of a status as the page words it."""
    return format_kib(status["now"][f"{name}_bytes"] / 1024)


def twin(number: int) -> PayloadGuest:
    return PayloadGuest(name=f"twin{number}", memory_mib=24, common_mib=16, seed=number)


def column(page: Page, table: str, label: str) -> list[str]:
    return [text.strip() for text in page.locator(f"{table} tbody [data-label='{label}']").all_inner_texts()]


def shown_and_worded(page: Page, status: Json) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the page says otherwise than a status, and how it is to be worded."""
    now, saved = status["now"], amount(status, "saved")
    worded = {
        "#saved": saved,
        "#saved-share": f"{now['saved_percent']:.1f} %",
        "#committed": f"{amount(status, 'committed')} resident",
        "#subtitle": f"{URI}, policy ksmtuned, virtksm {status['version']}",
        "#why": status["last_pass"]["decision"]["reason"],
        "#saved-chart figcaption": f"now {saved}",
        "#cpu-total": f"{now['ksmd_cpu_seconds']:.1f} s CPU since boot",
    }
    shown = {place: page.locator(place).inner_text() for place in worded}
    otherwise = [place for place, words in worded.items() if words not in shown[place]]
    return {place: shown[place] for place in otherwise}, {place: worded[place] for place in otherwise}


def test_it_shows_what_the_commands_say_and_what_happens_next(
    ksm: Ksm, host: CockpitHost, start: Callable[..., AgentProcess], guest: GuestFactory, visit: Visit
) -> None:
    agent = start()
    guest(twin(1))
    guest(twin(2))
    ksm.merge_all()
    agent.step()
    known = "ksmd's share of a core, which takes a sample from a second before"
    wait_until(lambda: told(host, "status")["ksmd"]["core_percent"] is not None, HANG_S, known)
    examined = keep_printed(host, "doctor")
    looked = visit(host.serve())
    page = looked.page

    wait_agreed(lambda: shown_and_worded(page, told(host, "status")), HANG_S, "the page to say what the status says")
    assert page.locator("#guest-count").inner_text() == "2"
    expect(page.locator("#cpu")).to_contain_text(" % of a core")
    expect(page.locator("#cpu-chart polyline")).not_to_have_count(0)

    def guests_shown_and_told() -> tuple[object, object]:
        guests = told(host, "guests")["guests"]
        texts = {
            "Guest": [one["name"] for one in guests],
            "Can merge": [one["can_merge_text"] for one in guests],
            "Saved": [format_kib(one["saved_bytes"] / 1024) for one in guests],
        }
        return {label: column(page, "#guests", label) for label in texts}, texts

    wait_agreed(guests_shown_and_told, HANG_S, "the page to list the guests as the command does")
    expect(page.locator("#doctor-summary")).not_to_have_text("Checking…")
    findings = json.loads(examined.read_text(encoding="utf-8"))["findings"]
    urgent = [one for one in findings if one["verdict"] in {"FAIL", "WARN"}]
    expect(page.locator("#todo li")).to_have_count(len(urgent))
    expect(page.locator("#rest li")).to_have_count(len(findings) - len(urgent))
    for one in urgent:
        expect(page.locator("#todo")).to_contain_text(one["remedy"])
    reason = told(host, "status")["last_pass"]["decision"]["reason"]
    expect(page.locator("#decisions tbody [data-label='Reason']").first).to_contain_text(reason)

    guest(PayloadGuest(name=HOSTILE, memory_mib=16, seed=3), settle=False)
    expect(page.locator("#guests tbody tr")).to_have_count(3)
    expect(page.locator("#guest-count")).to_have_text("3")
    assert "<img src=x onerror=alert(1)>\\u202e" in column(page, "#guests", "Guest")
    assert page.locator("img").count() == 0
    expect(page.get_by_role("status")).to_have_text("3 guests run")

    page.get_by_role("button", name="Retune now").click()
    agent.wait_for_pass("retune")
    expect(page.locator("#result")).to_contain_text("Pass made (no change)")
    expect(page.locator("#decisions tbody tr").first.locator("[data-label='Trigger']")).to_have_text("retune")
    assert looked.complaints == []


def test_its_table_sorts_by_keyboard_and_nothing_is_in_the_way_of_people_who_see_little_or_nothing(
    made_up: CockpitHost, guest: GuestFactory, visit: Visit
) -> None:
    for number, memory_mib in ((1, 32), (2, 16), (10, 24)):
        guest(PayloadGuest(name=f"guest{number}", memory_mib=memory_mib, nosharepages=True), paused=True)
    address = made_up.serve()
    page = visit(address, color_scheme="light").page
    button = page.get_by_role("button", name="Memory")
    header = page.get_by_role("columnheader", name="Memory")
    button.focus()
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "descending")
    assert column(page, "#guests", "Guest") == ["guest1", "guest10", "guest2"]
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "ascending")
    assert column(page, "#guests", "Guest") == ["guest2", "guest10", "guest1"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.locator("th[aria-sort]")).to_have_text("Guest")
    assert column(page, "#guests", "Guest") == ["guest1", "guest2", "guest10"], "numbers in names count as such"
    page.locator("#saved-chart svg").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#saved-chart figcaption")).to_contain_text(": 0.0 MiB")

    assert not page.locator("html.pf-theme-dark").count()
    for theme, width in (("light", 1280), ("dark", 320)):
        page.evaluate("style => window.dispatchEvent(new CustomEvent('cockpit-style', { detail: { style } }))", theme)
        assert page.locator("html.pf-theme-dark").count() == (theme == "dark")
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    assert visit(address, color_scheme="dark").page.locator("html.pf-theme-dark").count() == 1


def test_settings_are_kept_in_a_drop_in_that_the_agent_follows(
    host: CockpitHost, start: Callable[..., AgentProcess], visit: Visit
) -> None:
    agent = start("")
    home = host.home
    page = visit(host.serve()).page
    result, apply = page.locator("#result"), page.get_by_role("button", name="Apply")
    expect(page.locator("#policy")).to_have_value("adaptive")
    keys = told(host, "config", "show")
    for name, key in (("policy", keys["policy"]), ("engage", keys["adaptive.engage"])):
        assert page.locator(f"#{name} option").all_inner_texts() == key["choices"]
        expect(page.locator(f"#{name}-help")).to_have_text(key["meaning"])
    later = home.drop_in.with_name("90-later.toml")
    later.write_text("nonsense = 1\n")
    page.locator("#engage").select_option("never")
    apply.click()
    expect(result).to_contain_text("nonsense: is not a known key")
    assert not home.drop_in.exists(), "there was none"
    later.unlink()
    page.locator("#engage").select_option("never")
    apply.click()
    expect(result).to_contain_text("Saved, and the agent follows it.")
    agent.wait_for("config_reloaded")
    assert told(host, "config", "show")["adaptive.engage"]["origin"] == "/etc/virtksm/conf.d/80-cockpit.toml"
    assert home.drop_in.stat().st_mode & 0o777 == 0o644
    page.locator("#policy").select_option("ksmtuned")
    expect(page.locator("#engage")).to_be_disabled()
    apply.click()
    expect(page.locator("#subtitle")).to_contain_text("policy ksmtuned")
    assert told(host, "status")["policy"] == "ksmtuned"
    written = home.drop_in.read_text()

    for text, complaint in (
        ('policy = "ksmtuned"\n', "90-later.toml comes later and sets policy to ksmtuned"),
        ('status_group = "no-such-group"\n', "no such group"),
    ):
        later.write_text(text)
        page.locator("#policy").select_option("adaptive")
        apply.click()
        expect(result).to_contain_text(complaint)
        assert home.drop_in.read_text() == written, "what was there is put back"
        assert told(host, "status")["policy"] == "ksmtuned"
        later.unlink()

    home.drop_in.write_text(f"{written}# mine\n")
    page.locator("#policy").select_option("adaptive")
    apply.click()
    expect(result).to_contain_text("was edited by hand and is left as it is")
    assert home.drop_in.read_text() == f"{written}# mine\n"


def test_without_administrative_access_it_shows_all_and_changes_nothing(
    host: CockpitHost, start: Callable[..., AgentProcess], guest: GuestFactory, visit: Visit
) -> None:
    agent = start(f'status_group = "{GROUP}"\n{PARKING_LAW}')
    guest(twin(1))
    looked = visit(host.serve(as_nobody=(grp.getgrnam(GROUP).gr_gid,)))
    page = looked.page
    expect(page.get_by_text("Read-only: changes need administrative access.")).to_be_visible()
    expect(page.locator("#subtitle")).to_contain_text("policy ksmtuned")
    expect(page.locator("#guests tbody th")).to_have_text("twin1")
    expect(page.locator("#decisions tbody tr")).not_to_have_count(0)
    for control in ("#retune", "#policy", "#engage", "#settings button"):
        expect(page.locator(control)).to_be_disabled()
    asked = """async request => {
        const { askToAct } = await import("./agent.js");
        return askToAct(request).then(() => "done", problem => problem.kind);
    }"""
    for request in ({"op": "retune", "uri": URI, "dry_run": False}, {"op": "reload"}):
        assert page.evaluate(asked, request) == "access-denied"
    applied = """async () => {
        const { applySettings } = await import("./settings.js");
        return applySettings("adaptive", "never").then(() => "done", problem => problem.message);
    }"""
    assert "cannot be read" in page.evaluate(applied)
    assert not host.home.drop_in.exists()
    assert not agent.lines("config_reloaded")
    assert not [line for line in agent.lines("pass_completed") if "retune" in line["triggers"]]
    assert not_of_sockets(looked.complaints) == []

    stranger = visit(host.serve(as_nobody=())).page
    expect(stranger.locator("#notices")).to_contain_text("You may not ask the agent")
    expect(stranger.locator("#notices")).to_contain_text("Turn on administrative access")
    expect(stranger.locator("#guests tbody th")).to_have_text("twin1")


def test_without_an_agent_or_with_ksm_off_it_says_what_to_do(
    ksm: Ksm, host: CockpitHost, start: Callable[..., AgentProcess], visit: Visit
) -> None:
    looked = visit(host.serve())
    page = looked.page
    notices = page.locator("#notices")
    expect(notices).to_contain_text("No agent runs on this host")
    expect(notices).to_contain_text("systemctl enable --now virtksm.service")
    expect(page.locator("#retune")).to_be_disabled()
    saved = page.locator("#saved")
    wait_agreed(lambda: (saved.inner_text(), amount(told(host, "status"), "saved")), HANG_S, "the same to be shown")
    page.locator("#engage").select_option("always")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#result")).to_contain_text("No agent runs: it will hold once one does.")

    agent = start("")
    expect(notices).to_be_empty()
    expect(page.locator("#retune")).to_be_enabled()
    ksm.write(run=0)
    expect(notices).to_contain_text("KSM is off")
    ksm.write(run=1)
    expect(notices).to_be_empty()
    (host.home.folder / "bin" / "virtksm").unlink()
    agent.stop()
    expect(notices).to_contain_text("virtksm is not installed")
    assert not_of_sockets(looked.complaints) == []


def test_a_list_of_guests_that_hangs_keeps_nothing_else_from_being_shown(
    made_up: CockpitHost, browser: Browser
) -> None:
    program = made_up.home.folder / "bin" / "virtksm"
    real = program.rename(program.with_name("real"))
    hangs = f"[ $1 = guests ] && exec sleep {3 * HANG_S}"
    program.write_text(f'#!/bin/sh\n{hangs}\nexec {real} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    page = open_page(browser).page
    page.goto(made_up.serve() + PAGE)
    expect(page.locator("#doctor-summary")).not_to_have_text("Checking…")
    expect(page.locator("#page")).to_have_attribute("aria-busy", "true")
    page.context.close()


def test_it_is_a_page_of_cockpits_shell(made_up: CockpitHost, browser: Browser) -> None:
    looked = open_page(browser)
    page = looked.page
    try:
        page.goto(made_up.serve())
        page.get_by_role("link", name="KSM").click()
        frame = page.frame_locator("iframe[name='cockpit1:localhost/virtksm']")
        expect(frame.get_by_role("heading", name="Kernel Samepage Merging")).to_be_visible()
        expect(frame.locator("#page")).to_have_attribute("aria-busy", "false")
        expect(frame.locator("#subtitle")).to_contain_text(URI)
    finally:
        page.context.close()
