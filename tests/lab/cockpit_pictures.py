"""The pictures of docs/guide.md: `python -m tests.lab.cockpit_pictures` (root, a minute and a half) makes them anew.

Real guests, a real agent and a real Cockpit, as in tests/real/test_cockpit.py. Colours are reduced to 256, unseen.
"""

import grp
import io
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, FrameLocator, Page

from demo.guests import PayloadGuest
from tests.lab.browser import HANG_MS, chromium
from tests.lab.cockpit import URI, CockpitHost
from tests.lab.fixtures import QEMU_CACHE, REPO, GuestFactory
from tests.lab.ksm import lent_ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import AgentFactory

FOLDER = REPO / "docs" / "pictures"
GROUP = "daemon"
LAW = f'status_group = "{GROUP}"\n[adaptive]\nengage = "always"\nsettle_s = 1\n'
GUESTS = (
    PayloadGuest(name="web-1", memory_mib=192, common_mib=100, own_mib=40, seed=1),
    PayloadGuest(name="web-2", memory_mib=192, common_mib=100, own_mib=40, seed=2),
    PayloadGuest(name="db", memory_mib=384, common_mib=100, own_mib=220, seed=3),
    PayloadGuest(name="web-3", memory_mib=192, common_mib=100, own_mib=40, seed=4),
    PayloadGuest(name="build", memory_mib=256, own_mib=180, seed=5),
)
APART_S = 16.0
WIDE, NARROW = (1280, 1180), (400, 860)


def make_pictures() -> None:
    """Start guests one after the other, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with lent_ksm(), PrivateLibvirtd(cache=QEMU_CACHE) as libvirtd, CockpitHost(libvirtd) as host:
        guests, agents = GuestFactory(libvirtd, REPO / "build" / "payload.elf"), AgentFactory(host.home, URI)
        try:
            agents(LAW, prefix=host.prefix)
            roots, readers = host.serve(), host.serve(as_nobody=(grp.getgrnam(GROUP).gr_gid,))
            with chromium() as browser:
                light, dark = (_open(browser, roots, scheme, WIDE) for scheme in ("light", "dark"))
                narrow = _open(browser, readers, "light", NARROW)
                for page in (light, dark, narrow):
                    _inside(page).locator("#span").select_option("300")
                for spec in GUESTS:
                    guests(spec)
                    if spec is GUESTS[-1]:
                        _inside(dark).locator("#scan").wait_for()
                        _take(dark, "dark")
                    light.wait_for_timeout(1000 * APART_S)
                for page, name in ((light, "light"), (narrow, "narrow")):
                    _take(page, name)
                _inside(light).locator("#fold").scroll_into_view_if_needed()
                _take(light, "decisions")
        finally:
            agents.close()
            guests.close()


def _open(browser: Browser, address: str, scheme: Literal["light", "dark"], size: tuple[int, int]) -> Page:
    page = browser.new_context(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, timezone_id="UTC"
    ).new_page()
    page.goto(f"{address}/virtksm")
    _inside(page).locator("#page[aria-busy=false]").wait_for(timeout=HANG_MS)
    return page


def _inside(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[name='cockpit1:localhost/virtksm']")


def _take(page: Page, name: str) -> None:
    page.mouse.move(250, 30)  # where nothing lights up
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    target = FOLDER / f"{name}.png"
    taken.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    make_pictures()
