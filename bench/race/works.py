"""The works of the race: which guests start and stop when, each in its full size and for --quick.

Pure. Contents of payload guests are known to the page, so possible savings are, too. Guests are made of small pages
alone, so that KSM's counters see every page, and no contender pays for splitting huge ones; in huge and zero they have
QEMU's default, huge ones.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.race.linux import COMMON_MIB, LinuxGuest
from bench.steps import Drift, Start, Stop
from demo.guests import KEPT_MIB, PAGES_PER_MIB, PayloadGuest
from virtksm.values import replace

MAX_SHARERS = 256
"""The kernel's max_page_sharing: so many equal pages take one page of memory, then the next one begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """`already` are guests that are there when the clock starts; after `busy_until_s` nothing new happens.

    `changes_s` after the last guest has settled, memory has changed in place, or grown, for the last time; a work whose
    memory changes twice has `earlier`, when the earlier change ends and the later one begins, in the same seconds.
    """

    name: str
    title: str
    steps: tuple[Start | Stop | Drift, ...]
    length_s: float
    already: tuple[PayloadGuest, ...] = ()
    busy_until_s: float = 0.0
    has_clairvoyant: bool = True
    huge_pages: bool = False
    use_zero_pages: bool = False
    changes_s: float = 0.0
    earlier: tuple[float, float] | None = None

    @property
    def guests(self) -> tuple[PayloadGuest, ...]:
        """Tell every guest that ever runs."""
        return (*self.already, *(step.guest for step in self.steps if isinstance(step, Start)))

    @property
    def savings_until_s(self) -> float:
        """Tell until when savings only grow: to the first stop, or to the end."""
        return min((step.at_s for step in self.steps if isinstance(step, Stop)), default=self.length_s)

    @property
    def expected_sharing_pages(self) -> int:
        """Tell pages_sharing when all that is equal is merged: every content takes one page, the rest is saved.

        Zero pages in huge pages come free when ksmd splits these, which no counter tells.
        """
        common = sharing_pages((guest.image, guest.common_mib) for guest in self.guests)
        own = sharing_pages((guest.seed, guest.own_mib) for guest in self.guests)
        own += sharing_pages((0, min(2 * guest.drift_mib, guest.own_mib)) for guest in self.guests)
        zero = 0 if self.huge_pages else sum(guest.zero_mib for guest in self.guests) * PAGES_PER_MIB
        return common + own + zero - math.ceil(zero / MAX_SHARERS)


def sharing_pages(owned_mib: Iterable[tuple[int, int]]) -> int:
    """Count what is saved of contents given as (owner, MiB): of each owner all but the largest."""
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for owner, mib in owned_mib:
        sizes[owner].append(mib)
    return sum(sum(each) - max(each) for each in sizes.values()) * PAGES_PER_MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a work is: `guests` of `memory_mib`, started `every_s` apart, watched for `length_s`."""

    guests: int
    memory_mib: int
    every_s: float
    length_s: float

    def __str__(self) -> str:
        return f"{self.guests} guests of {self.memory_mib} MiB, {self.every_s:g} s apart"

    def work(
        self,
        name: str,
        title: str,
        describe: Callable[[int], PayloadGuest],
        *,
        stops: tuple[Stop, ...] = (),
        busy_until_s: float = 0.0,
        has_clairvoyant: bool = True,
    ) -> Work:
        """Make a work whose guests are described by their numbers."""
        starts = [Start(at_s=number * self.every_s, guest=describe(number)) for number in range(self.guests)]
        return Work(
            name=name,
            title=f"{self}{title}",
            steps=(*starts, *stops),
            length_s=self.length_s,
            busy_until_s=busy_until_s,
            has_clairvoyant=has_clairvoyant,
        )


def mixed(number: int, memory_mib: int, *, slow_mib_per_s: int = 0, rewrite_per_s: int = 0) -> PayloadGuest:
    """Describe a guest that fills all of its memory: half common, a tenth zero, the rest its own."""
    content_mib = memory_mib - KEPT_MIB
    common_mib, zero_mib = content_mib // 2, content_mib // 10
    return PayloadGuest(
        name=f"g{number}",
        memory_mib=memory_mib,
        common_mib=common_mib,
        zero_mib=zero_mib,
        own_mib=content_mib - common_mib - zero_mib,
        seed=number + 1,
        slow_mib_per_s=slow_mib_per_s,
        rewrite_per_s=rewrite_per_s,
    )


def storm(scale: Scale) -> Work:
    title = ": half common, a tenth zero, the rest own"
    return scale.work("storm", title, lambda number: mixed(number, scale.memory_mib))


def huge(scale: Scale) -> Work:
    work = storm(scale)
    return replace(work, name="huge", title=f"{work.title}; of huge pages", huge_pages=True)


def zero(scale: Scale, *, grow_mib: int, within_s: int, after_s: int) -> Work:
    content_mib = scale.memory_mib - KEPT_MIB - grow_mib
    zero_mib = content_mib * 6 // 10

    def describe(number: int) -> PayloadGuest:
        return PayloadGuest(
            name=f"g{number}",
            memory_mib=scale.memory_mib,
            zero_mib=zero_mib,
            own_mib=content_mib - zero_mib,
            seed=number + 1,
            grow_mib_per_min=grow_mib * 60 // within_s,
            grow_after_s=after_s,
            grow_zero_mib=grow_mib * 6 // 10,
        )

    title = (
        f", of huge pages: 60 % zero, the rest own, with use_zero_pages; after {after_s} s each grows by {grow_mib} "
        f"MiB of the same kind within {within_s} s"
    )
    changes_s = after_s + within_s
    busy_until_s = scale.guests * scale.every_s + changes_s
    work = scale.work("zero", title, describe, busy_until_s=busy_until_s, has_clairvoyant=False)
    return replace(work, huge_pages=True, use_zero_pages=True, changes_s=changes_s)


def small(scale: Scale) -> Work:
    def describe(number: int) -> PayloadGuest:
        return mixed(number, scale.memory_mib, slow_mib_per_s=scale.memory_mib // 10)

    return scale.work("small", ", that fill in 10 s each: half common, a tenth zero, the rest own", describe)


def linux(scale: Scale, *, own_mib: int) -> Work:
    def describe(number: int) -> LinuxGuest:
        return LinuxGuest(
            name=f"g{number}", memory_mib=scale.memory_mib, common_mib=COMMON_MIB, own_mib=own_mib, seed=number
        )

    title = f", Linux: {COMMON_MIB} MiB common, {own_mib} MiB own, and what a kernel itself uses"
    return scale.work("linux", title, describe, has_clairvoyant=False)


def twin(scale: Scale, *, filled_over_s: int) -> Work:
    # smart_scan visits an old page in every ninth scan only, and two that it visits in different ones never meet. The
    # old guest fills slowly while ksmd scans flat out, so that its pages are spread over all nine.
    def only_own(name: str, slow_mib_per_s: int = 0) -> PayloadGuest:
        own_mib = scale.memory_mib - KEPT_MIB
        return PayloadGuest(
            name=name, memory_mib=scale.memory_mib, own_mib=own_mib, seed=1, slow_mib_per_s=slow_mib_per_s
        )

    work = scale.work("twin", "; smart_scan has come to skip its twin's pages", lambda _: only_own("new"))
    return replace(work, already=(only_own("old", slow_mib_per_s=scale.memory_mib // filled_over_s),))


def growth(scale: Scale, *, grow_mib_per_min: int, minutes: float) -> Work:
    # Grown pages are own ones: equal in two guests of the same seed, so half of the growth can merge.
    grown_mib = round(grow_mib_per_min * minutes)

    def pair(number: int) -> PayloadGuest:
        return PayloadGuest(
            name=f"g{number}",
            memory_mib=scale.memory_mib + grown_mib,
            common_mib=(scale.memory_mib - KEPT_MIB) // 2,
            own_mib=(scale.memory_mib - KEPT_MIB) // 2,
            seed=number // 2 + 1,
            grow_mib_per_min=grow_mib_per_min,
        )

    title = f", that grow by {grow_mib_per_min} MiB a minute for {minutes:g} minutes, two and two alike"
    busy_until_s = scale.guests * scale.every_s + minutes * 60
    return scale.work("growth", title, pair, busy_until_s=busy_until_s, has_clairvoyant=False)


def churn(scale: Scale, *, rewrite_per_s: int) -> Work:
    def describe(number: int) -> PayloadGuest:
        return mixed(number, scale.memory_mib, rewrite_per_s=0 if number % 4 else rewrite_per_s)

    title = f": half common, a tenth zero; a quarter of them rewrite {rewrite_per_s} own pages a second"
    return scale.work("churn", title, describe)


def thrash(scale: Scale, *, rewrite_common_per_s: int) -> Work:
    # So long that a fifth of flat out's merges is more than one of each page, without which nobody can know.
    common_mib = scale.memory_mib // 2
    lasts_s = common_mib * PAGES_PER_MIB / rewrite_common_per_s

    def describe(number: int) -> PayloadGuest:
        return PayloadGuest(
            name=f"g{number}",
            memory_mib=scale.memory_mib,
            common_mib=common_mib,
            own_mib=scale.memory_mib - common_mib - KEPT_MIB,
            seed=number + 1,
            rewrite_common_per_s=rewrite_common_per_s,
        )

    return scale.work("thrash", f", that rewrite their common pages, in step, within {lasts_s:.0f} s", describe)


def stop(scale: Scale) -> Work:
    stop_s = scale.length_s / 2
    stops = tuple(Stop(at_s=stop_s + number // 2, name=f"g{number}") for number in range(0, scale.guests, 2))
    title = f": half common, a tenth zero, the rest own; after {stop_s:g} s half of them stop"
    busy_until_s = stop_s + len(stops)
    return scale.work(
        "stop", title, lambda number: mixed(number, scale.memory_mib), stops=stops, busy_until_s=busy_until_s
    )


def drift(scale: Scale, *, within_s: int, after_s: int, again_s: int) -> Work:
    # In the simulator a guest settles as soon as it has started, more or less, and is told by steps.
    own_mib = scale.memory_mib - KEPT_MIB
    drift_mib = own_mib * 6 // 10

    def describe(number: int) -> PayloadGuest:
        return PayloadGuest(
            name=f"g{number}",
            memory_mib=scale.memory_mib,
            own_mib=own_mib,
            seed=number + 1,
            drift_mib=drift_mib,
            drift_s=within_s,
            drift_after_s=after_s,
            drift_again_s=again_s,
        )

    title = f", all their own; after {after_s} and {again_s} s 60 % of each becomes equal within {within_s} s"
    changes_s = again_s + within_s
    work = scale.work("drift", title, describe, busy_until_s=changes_s, has_clairvoyant=False)
    settled_s = scale.guests * scale.every_s
    times = ((begin_s + settled_s, drift_mib * PAGES_PER_MIB / within_s) for begin_s in (after_s, again_s))
    drifts = [
        Drift(at_s=at_s, name=guest.name, pages_per_s=per_s)
        for begin_s, pages_per_s in times
        for at_s, per_s in ((begin_s, pages_per_s), (begin_s + within_s, 0.0))
        for guest in work.guests
    ]
    return replace(work, steps=(*work.steps, *drifts), changes_s=changes_s, earlier=(after_s + within_s, again_s))


def list_works(*, quick: bool) -> Mapping[str, Work]:
    """Tell all works by name: the race's, or smaller and shorter ones."""
    if quick:
        works = (
            storm(Scale(guests=4, memory_mib=320, every_s=2.0, length_s=30.0)),
            huge(Scale(guests=4, memory_mib=384, every_s=2.0, length_s=40.0)),
            zero(Scale(guests=6, memory_mib=256, every_s=2.0, length_s=70.0), grow_mib=60, within_s=5, after_s=25),
            small(Scale(guests=4, memory_mib=96, every_s=2.0, length_s=30.0)),
            twin(Scale(guests=1, memory_mib=384, every_s=0.0, length_s=25.0), filled_over_s=12),
            growth(Scale(guests=4, memory_mib=64, every_s=1.0, length_s=60.0), grow_mib_per_min=320, minutes=0.5),
            churn(Scale(guests=4, memory_mib=256, every_s=1.0, length_s=40.0), rewrite_per_s=5000),
            thrash(Scale(guests=4, memory_mib=128, every_s=1.0, length_s=100.0), rewrite_common_per_s=2048),
            stop(Scale(guests=4, memory_mib=256, every_s=1.0, length_s=50.0)),
            linux(Scale(guests=3, memory_mib=384, every_s=2.0, length_s=60.0), own_mib=100),
            drift(Scale(guests=4, memory_mib=256, every_s=1.0, length_s=110.0), within_s=10, after_s=5, again_s=40),
        )
    else:
        works = (
            storm(Scale(guests=8, memory_mib=1024, every_s=5.0, length_s=300.0)),
            huge(Scale(guests=8, memory_mib=768, every_s=5.0, length_s=300.0)),
            zero(Scale(guests=6, memory_mib=768, every_s=5.0, length_s=300.0), grow_mib=240, within_s=20, after_s=60),
            small(Scale(guests=8, memory_mib=192, every_s=5.0, length_s=300.0)),
            twin(Scale(guests=1, memory_mib=1024, every_s=0.0, length_s=300.0), filled_over_s=20),
            growth(Scale(guests=4, memory_mib=128, every_s=2.0, length_s=700.0), grow_mib_per_min=64, minutes=10.0),
            churn(Scale(guests=8, memory_mib=512, every_s=2.0, length_s=300.0), rewrite_per_s=5000),
            thrash(Scale(guests=8, memory_mib=128, every_s=1.0, length_s=300.0), rewrite_common_per_s=2048),
            stop(Scale(guests=8, memory_mib=512, every_s=3.0, length_s=300.0)),
            linux(Scale(guests=8, memory_mib=900, every_s=5.0, length_s=300.0), own_mib=600),
            drift(Scale(guests=8, memory_mib=512, every_s=2.0, length_s=900.0), within_s=60, after_s=180, again_s=600),
        )
    return {work.name: work for work in works}
