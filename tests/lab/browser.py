"""Debian's Chromium without a window, driven by Playwright, and what a page says while it is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from tests.lab.hang import HANG_S

CHROMIUM = "/usr/bin/chromium"
# Tests run as root, where Chromium's sandbox cannot; without a network its background services only complain.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
HANG_MS = 1000 * HANG_S
# Not Playwright's five seconds: a page asks commands, each a program's start.
expect.set_options(timeout=HANG_MS)


@dataclass(slots=True)
class Looked:
    """A page, and all that it has complained about: console, uncaught errors, what it could not load."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def complain(self, kind: str, what: object) -> None:
        if "Slow network is detected" not in str(what):  # the browser's own word, on a machine that is slow
            self.complaints.append(f"{kind}: {what}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Lend a browser; it must not outlive the tests that use it, as its event loop would be in the way of others."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, **options: Any) -> Looked:  # noqa: ANN401  # Browser.new_context's own
    """Open an empty page in a profile of its own; `options` are those of Browser.new_context."""
    context = browser.new_context(**options)
    context.set_default_timeout(HANG_MS)
    looked = Looked(context.new_page())
    looked.page.on("console", lambda message: looked.complain(message.type, message.text))
    looked.page.on("pageerror", lambda error: looked.complain("error", error))
    looked.page.on("requestfailed", lambda request: looked.complain("not loaded", request.url))

    def on_response(response: Response) -> None:
        if response.status >= 400:
            looked.complain(str(response.status), response.url)

    looked.page.on("response", on_response)
    return looked
