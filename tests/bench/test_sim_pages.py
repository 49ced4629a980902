"""The simulator against a model that holds every page by itself: all counters agree, batch for batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.memory import Kind, SimGuest
from bench.sim.pages import skip_age
from bench.sim.trees import copies_of
from bench.sim.visit import Rules
from demo.guests import PAGES_PER_MIB, PayloadGuest

Content = tuple[str, str, int, int]


@dataclass(eq=False, slots=True)
class Page:
    """A page and its rmap_item."""

    content: Content
    known: bool = False
    checksum: Content | None = None
    age: int = 0
    skips: int = 0
    stable: Content | None = None
    is_unstable: bool = False
    ended: bool = False


@dataclass
class Model:
    """ksmd, page by page."""

    rules: Rules
    processes: list[list[Page]] = field(default_factory=list)
    cursor: list[Page] | None = None
    place: int = 0
    unstable: dict[Content, Page] = field(default_factory=dict)
    scanned: int = 0
    skipped: int = 0
    full_scans: int = 0
    live: Counter[Content] = field(default_factory=Counter)

    def pages(self) -> Iterator[Page]:
        return (page for process in self.processes for page in process)

    def counters(self) -> dict[str, int]:
        stable = Counter(page.stable for page in self.pages() if page.stable)
        return {
            "shared": sum(map(copies_of, stable.values())),
            "sharing": sum(count - copies_of(count) for count in stable.values()),
            "unshared": sum(page.is_unstable for page in self.pages()),
            "known": sum(page.known for page in self.pages()),
            "saved": sum(count - copies_of(count) for count in self.live.values()),
            "scanned": self.scanned,
            "skipped": self.skipped,
            "full_scans": self.full_scans,
        }

    def enter(self, pages: list[Page]) -> None:
        self.processes.insert(self.cursor_place(0) if self.cursor else len(self.processes), pages)

    def leave(self, pages: list[Page]) -> None:
        for page in pages:
            page.ended = True
            self.live[page.content] -= page.stable == page.content
        if pages is self.cursor:
            return
        del self.processes[self.place_of(pages)]
        if any(page.known for page in pages):
            self.processes.insert(self.cursor_place(1) if self.cursor else 0, pages)

    def place_of(self, pages: list[Page]) -> int:
        return next(place for place, process in enumerate(self.processes) if process is pages)

    def cursor_place(self, more: int) -> int:
        assert self.cursor is not None
        return self.place_of(self.cursor) + more

    def batch(self, pages_to_scan: int) -> None:
        while pages_to_scan and self.processes:
            if self.cursor is None:
                self.unstable, self.cursor, self.place = {}, self.processes[0], 0
            if self.cursor and self.cursor[0].ended:
                place = self.cursor_place(0)
                del self.processes[place]
            elif self.place < len(self.cursor):
                page = self.cursor[self.place]
                self.place += 1
                pages_to_scan -= self.visit(page)
                continue
            else:
                place = self.cursor_place(1)
            self.place = 0
            if place == len(self.processes):
                self.cursor, self.full_scans = None, self.full_scans + 1
                return
            self.cursor = self.processes[place]

    def visit(self, page: Page) -> bool:
        """Visit one page; tell whether it counts as scanned."""
        if page.stable == page.content:
            self.scanned += 1
            return True
        skips = self.rules.smart_scan and self.skips(page)
        page.known, page.stable, page.is_unstable = True, None, False
        if skips:
            self.skipped += 1
            return False
        self.scanned += 1
        settled = page.checksum == page.content
        if not settled and (self.rules.checksum_first or not self.live[page.content]):
            page.checksum = page.content
        elif self.live[page.content]:
            page.stable = page.content
            self.live[page.content] += 1
        else:
            self.pair_or_insert(page)
        return True

    def write(self, name: str, page: Page, version: int) -> None:
        kind, owner, index, _ = page.content
        if kind == "own":
            owner = name
        self.live[page.content] -= page.stable == page.content
        page.content = (kind, owner, index, version)
        self.live[page.content] += page.stable == page.content

    def skips(self, page: Page) -> bool:
        age, page.age = page.age, min(page.age + 1, 255)
        if age < 3:
            return False
        if page.skips == 0:
            page.skips = skip_age(age)
            return False
        page.skips -= 1
        return True

    def pair_or_insert(self, page: Page) -> None:
        twin = self.unstable.get(page.content)
        if twin is not None and twin.is_unstable and twin.content == page.content and not twin.ended:
            twin.is_unstable = False
            twin.stable = page.stable = page.content
            self.live[page.content] += 2
        else:
            page.is_unstable = True
            self.unstable[page.content] = page


def contents(guest: SimGuest) -> list[Page]:
    pages = []
    for region in guest.regions:
        for index in range(region.pages):
            match region.kind:
                case Kind.COMMON:
                    pages.append(Page(("common", str(region.image), index, 0)))
                case Kind.ZERO:
                    pages.append(Page(("zero", "", 0, 0)))
                case Kind.OWN:
                    pages.append(Page(("own", str(region.image), index, 0)))
    return pages


mib = st.integers(0, 1)
starts = st.builds(
    PayloadGuest,
    name=st.sampled_from("abcd"),
    memory_mib=st.just(64),
    common_mib=mib,
    zero_mib=mib,
    own_mib=mib,
    image=mib,
    seed=mib,
)
stops = st.sampled_from("abcd")
writes = st.tuples(st.sampled_from("abcd"), st.integers(0, 1), *[st.integers(0, PAGES_PER_MIB)] * 2, st.integers(1, 2))
batches = st.sampled_from([10**6] * 3 + [PAGES_PER_MIB, 100, 700])
full_scans = st.integers(2, 15).map(lambda count: [10**6] * count)
actions = st.lists(batches | full_scans | starts | starts | stops | writes, min_size=4, max_size=30)
rules = st.builds(Rules, smart_scan=st.booleans(), checksum_first=st.booleans())


@settings(max_examples=60)
@given(actions=actions, rules=rules)
def test_runs_and_single_pages_agree(actions: list[object], rules: Rules) -> None:
    sim = SimHost(total_kib=2**24, ksmd=Ksmd(rules=rules, sleep_millisecs=10_000), fill_mib_per_s=1e9)
    model = Model(rules)
    pages: dict[str, list[Page]] = {}
    for action in actions:
        match action:
            case int():
                scan(sim, model, action)
            case list():
                for pages_to_scan in action:
                    scan(sim, model, pages_to_scan)
            case PayloadGuest() if action.name not in pages and action.content_mib:
                pages[action.name] = contents(sim.start(action))
                model.enter(pages[action.name])
                sim.now_s += 1e-3  # it fills
                sim.ksmd.now_s = sim.now_s
            case str() if action in pages:
                sim.stop(action)
                model.leave(pages.pop(action))
            case (str(name), int(own), int(low), int(high), int(version)) if name in pages:
                write(sim, name, model, pages[name], own, low, high, version)
        assert simulated(sim) == model.counters()


def scan(sim: SimHost, model: Model, pages_to_scan: int) -> None:
    """Make exactly one batch."""
    sim.ksmd.pages_to_scan = pages_to_scan
    sim.ksmd._wakes_s = sim.ksmd.now_s
    sim.advance(5.0)
    model.batch(pages_to_scan)


def write(
    sim: SimHost, name: str, model: Model, pages: list[Page], own: int, low: int, high: int, version: int
) -> None:
    regions = sim.guests_by_name[name].regions
    region = regions[2 if own else 0]
    high = min(high, region.pages)
    region.write(sim.ksmd.trees, low, high, version)
    first = sum(before.pages for before in regions[: 2 if own else 0])
    for page in pages[first + low : first + max(low, high)]:
        model.write(name, page, version)


def simulated(sim: SimHost) -> dict[str, int]:
    trees = sim.ksmd.trees
    return {
        "shared": trees.pages_shared,
        "sharing": trees.pages_sharing,
        "unshared": trees.pages_unshared,
        "known": trees.known,
        "saved": sim.saved_pages,
        "scanned": sim.ksmd.pages_scanned,
        "skipped": sim.ksmd.pages_skipped,
        "full_scans": sim.ksmd.full_scans,
    }
