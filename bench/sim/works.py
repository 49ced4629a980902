"""The simulated works: what happens to guests in minutes, in an hour, in a day, and on which host. Pure.

Those that real guests can show are the race's (bench/race/works.py).
"""

from collections.abc import Iterable

from bench.sim.driver import Event
from bench.sim.host import SimHost
from bench.steps import Drift, Spoil, Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.model.snapshot import IDLE
from virtksm.values import replace

HOUR_S = 3600.0
GIB_KIB = 1024 * 1024
IMAGE_OF_SPOILERS, IMAGE_OF_NEWCOMERS = 77, 5

DRIFT_GUESTS, DRIFT_COMMON_MIB, DRIFT_ZERO_MIB, DRIFT_OWN_MIB = 16, 600, 100, 2800
DRIFT_HOURS, DRIFT_S, DRIFT_PAGES_PER_S = (1, 5, 9, 13, 17, 21), 300.0, 800.0
NEWCOMERS_S, OLD_GUESTS, OLD_COMMON_MIB, NEWCOMERS, NEW_COMMON_MIB = 22 * HOUR_S, 8, 900, 4, 256
NEWCOMERS_MERGED_PAGES = int(
    ((OLD_GUESTS - 1) * OLD_COMMON_MIB + 0.9 * (NEWCOMERS - 1) * NEW_COMMON_MIB) * PAGES_PER_MIB
)
"""Saved once 90 % of the newcomers' has merged."""
MIXED_LATE_S = 2700.0
LARGE_COMMON_MIB, LARGE_ZERO_MIB, LARGE_OWN_MIB, LARGE_IMAGES = 600, 100, 1000, 10
LARGE_EVERY_S, LARGE_REPLACED_S, LARGE_REWRITE_PER_S = 2.0, 600.0, 200


def start_all(guest: PayloadGuest, names: Iterable[str], *, every_s: float, from_s: float = 0.0) -> list[Event]:
    """Start guests of one kind, each with own pages of its own."""
    return [
        Start(at_s=from_s + every_s * number, guest=replace(guest, name=name, seed=guest.seed + number))
        for number, name in enumerate(names)
    ]


def spoilers(*, at_s: float = 60.0, low_s: float = 0.0) -> list[Event]:
    """Two guests of 256 MiB that rewrite their pages whenever those have merged; `low_s` as Spoil's."""
    guest = PayloadGuest(name="", memory_mib=264, common_mib=256, image=IMAGE_OF_SPOILERS)
    names = ("bad0", "bad1")
    return [*start_all(guest, names, every_s=1.0, from_s=at_s), Spoil(at_s=at_s + 10.0, names=names, low_s=low_s)]


def drift_day(*, changes: bool = True, rewriters: bool = False) -> list[Event]:
    """16 guests, 55 GiB; every four hours each replaces 940 MiB of its own pages, within five minutes.

    They become equal in all guests, and nobody grows.
    """
    common, zero, own = DRIFT_COMMON_MIB, DRIFT_ZERO_MIB, DRIFT_OWN_MIB
    guest = PayloadGuest(name="", memory_mib=common + zero + own + 20, common_mib=common, zero_mib=zero, own_mib=own)
    names = [f"g{number}" for number in range(DRIFT_GUESTS)]
    events = start_all(guest, names, every_s=5.0)
    for hour in DRIFT_HOURS if changes else ():
        for at_s, pages_per_s in ((hour * HOUR_S, DRIFT_PAGES_PER_S), (hour * HOUR_S + DRIFT_S, 0.0)):
            events += [Drift(at_s=at_s, name=name, pages_per_s=pages_per_s) for name in names]
    return events + (spoilers(at_s=120.0) if rewriters else [])


def drift_host(*hidden: str) -> SimHost:
    """A host of 64 GiB that is always short of memory."""
    return idle(SimHost(total_kib=64 * GIB_KIB, own_kib=4 * GIB_KIB, fill_mib_per_s=100.0, hidden=frozenset(hidden)))


def spoiler_day() -> list[Event]:
    """Eight guests of 2 GiB, and at hour 22 four newcomers of 512 MiB; `spoilers` are to be beside them."""
    old = PayloadGuest(name="", memory_mib=2048, common_mib=OLD_COMMON_MIB, own_mib=600)
    new = PayloadGuest(
        name="", memory_mib=520, common_mib=NEW_COMMON_MIB, own_mib=256, image=IMAGE_OF_NEWCOMERS, seed=100
    )
    news = start_all(new, [f"new{number}" for number in range(NEWCOMERS)], every_s=1.0, from_s=NEWCOMERS_S)
    return [*start_all(old, [f"old{number}" for number in range(OLD_GUESTS)], every_s=1.0), *news]


def mixed_hour(*, beside: bool) -> list[Event]:
    """Four guests that grow by 10 MiB a minute and a fifth late; `beside` two guests that cannot merge, and grow.

    One of 2 GiB with shared memory that grows by 50 MiB a second, again and again, and one with nosharepages.
    """
    plain = PayloadGuest(name="", memory_mib=1600, common_mib=500, zero_mib=50, own_mib=450, grow_mib_per_min=10)
    late = replace(plain, name="late", memory_mib=1003, seed=4, grow_mib_per_min=0)
    events: list[Event] = [
        Start(at_s=5.0 * number, guest=replace(plain, name=f"g{number}", seed=number // 2)) for number in range(4)
    ]
    events.append(Start(at_s=MIXED_LATE_S, guest=late))
    if not beside:
        return events
    apart = PayloadGuest(name="apart", memory_mib=6000, own_mib=500, grow_mib_per_min=50, nosharepages=True)
    shared = PayloadGuest(name="shared", memory_mib=2048, own_mib=50, grow_mib_per_min=3000, is_shared=True)
    events.append(Start(at_s=300.0, guest=apart))
    for at_s in range(300, 3600, 300):
        events += [Start(at_s=at_s, guest=shared), Stop(at_s=at_s + 299.0, name=shared.name)]
    return events


def mixed_may_mib(t_s: float) -> float:
    """Tell how many MiB may have merged in that hour, from minute ten on."""
    return 2600.0 + 20.0 * (t_s - 20.0) / 60 + 550.0 * (t_s >= MIXED_LATE_S + 5.0)


def little_guests(*, grows: bool, last_image: int = 0) -> list[Event]:
    """Three of 34 MiB that fill slowly; where each `grows` by 26 MiB, by 3 MiB a minute."""
    guest = PayloadGuest(name="", memory_mib=64, common_mib=16, own_mib=18, slow_mib_per_s=4, seed=1)
    if grows:
        guest = replace(guest, grow_mib_per_min=3)
    first, second, third = start_all(guest, ("g0", "g1", "g2"), every_s=40.0)
    assert isinstance(third, Start)
    return [first, second, replace(third, guest=replace(third.guest, image=last_image))]


def large_day(guests: int) -> list[Event]:
    """So many guests of 1.75 GiB and ten images, started two seconds apart; then one every ten minutes is replaced.

    Of the half that stays every fiftieth rewrites pages of its own.
    """
    booted_s, rewriting = guests * LARGE_EVERY_S + 60.0, range(guests - 1, guests // 2, -50)
    replaced = [(number, booted_s + (number + 1) * LARGE_REPLACED_S) for number in range(guests // 2)]
    events: list[Event] = [
        Start(
            at_s=number * LARGE_EVERY_S,
            guest=replace(large_guest(number), rewrite_per_s=LARGE_REWRITE_PER_S if number in rewriting else 0),
        )
        for number in range(guests)
    ]
    for number, at_s in replaced:
        events += [Stop(at_s=at_s, name=f"g{number}"), Start(at_s=at_s + 5.0, guest=large_guest(guests + number))]
    return events


def large_guest(number: int) -> PayloadGuest:
    return PayloadGuest(
        name=f"g{number}",
        memory_mib=1792,
        common_mib=LARGE_COMMON_MIB,
        zero_mib=LARGE_ZERO_MIB,
        own_mib=LARGE_OWN_MIB,
        image=number % LARGE_IMAGES,
        seed=number,
    )


def large_host(guests: int, *hidden: str) -> SimHost:
    """A host of 1 TiB for 500 guests."""
    return idle(
        SimHost(
            total_kib=1024 * GIB_KIB // 500 * guests,
            own_kib=8 * GIB_KIB,
            fill_mib_per_s=100.0,
            hidden=frozenset(hidden),
        )
    )


def idle(host: SimHost) -> SimHost:
    """Return the host with an idle ksmd."""
    host.set_parameters(dict(IDLE.items()))
    return host
