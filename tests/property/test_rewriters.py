"""Rule 6 on any readings: nobody is named that has not lost most of what had merged, three times in a row."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_policy_adaptive import having_scanned
from tests.unit.test_rewriters import EVERY_S, GUESTS, MIB, PAID_S, Seen, resting, snapshot_of
from virtksm.model.snapshot import MergedReading
from virtksm.policy.adaptive.rewriters import REPEATS, watch
from virtksm.values import replace

MOST_MIB = 4096
mib = st.integers(0, MOST_MIB)
readings = st.none() | st.builds(
    MergedReading,
    taken_s=st.floats(-10, PAID_S + 10),
    counted_kib=mib.map(MIB.__mul__),
    mapped_kib=mib.map(MIB.__mul__),
)
rests = st.lists(st.lists(st.tuples(readings, readings, st.integers(0, 8192)), min_size=1, max_size=3), max_size=8)


def is_of_use(reading: MergedReading | None) -> bool:
    return reading is not None and 0 < reading.taken_s < PAID_S


def speaks(reading: MergedReading, broken_mib: int) -> bool:
    lost_kib = min(reading.counted_kib - reading.mapped_kib, broken_mib * MIB)
    return lost_kib * 2 > reading.counted_kib


@given(rests)
def test_who_is_named_has_lost_most_of_it_so_many_times_in_a_row_and_held_no_such_amount_between(
    seen: list[list[tuple[MergedReading | None, MergedReading | None, int]]],
) -> None:
    state, in_a_row, may_be = having_scanned(GUESTS), dict.fromkeys(GUESTS, 0), set[str]()
    for number, passes in enumerate(seen, start=1):
        began_s, spoke, held, lacked = number * EVERY_S, set[str](), set[str](), set[str]()
        state = resting(began_s, state)
        for *read, broken_mib in passes:
            snapshot = snapshot_of(Seen(broken_mib=broken_mib), began_s)
            told = [(name, one) for name, one in zip(GUESTS, read, strict=True) if one and is_of_use(one)]
            spoke |= {name for name, one in told if speaks(one, broken_mib)}
            for name, one in told:
                (held if one.mapped_kib * 2 >= MOST_MIB * MIB else lacked).add(name)
            moved = [one and replace(one, taken_s=one.taken_s + began_s) for one in read]
            guests = tuple(replace(guest, merged=one) for guest, one in zip(snapshot.guests, moved, strict=True))
            state = watch(replace(snapshot, guests=guests), state, is_wanted=True)
        in_a_row = {
            name: times + 1 if name in spoke else 0 if name in held - lacked else times
            for name, times in in_a_row.items()
        }
        may_be |= {f"{name}/1" for name, times in in_a_row.items() if times >= REPEATS}
        assert state.rewriters.keys() <= may_be
