"""Rule 12 on any readings: nobody is named that has not lost most of what had merged, in three rests in a row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_policy_adaptive import having_scanned
from tests.unit.test_rewriters import EVERY_S, GUESTS, MIB, PAID_S, Seen, resting, snapshot_of
from virtksm.model.snapshot import MergedReading
from virtksm.policy.adaptive.rewriters import REPEATS, watch
from virtksm.values import replace

mib = st.integers(0, 4096)
readings = st.none() | st.builds(
    MergedReading,
    taken_s=st.floats(-10, PAID_S + 10),
    counted_kib=mib.map(MIB.__mul__),
    mapped_kib=mib.map(MIB.__mul__),
)
rests = st.lists(st.lists(st.tuples(readings, readings, st.integers(0, 8192)), min_size=1, max_size=3), max_size=8)


def speaks(reading: MergedReading | None, broken_mib: int) -> bool:
    if reading is None or not 0 < reading.taken_s < PAID_S:
        return False
    lost_kib = min(reading.counted_kib - reading.mapped_kib, broken_mib * MIB)
    return lost_kib * 2 > reading.counted_kib


@given(rests)
def test_who_is_named_has_lost_most_of_it_in_so_many_rests_in_a_row(
    seen: list[list[tuple[MergedReading | None, MergedReading | None, int]]],
) -> None:
    state, in_a_row, may_be = having_scanned(GUESTS), dict.fromkeys(GUESTS, 0), set[str]()
    for number, passes in enumerate(seen, start=1):
        began_s, spoke = number * EVERY_S, set[str]()
        state = resting(began_s, state)
        for *read, broken_mib in passes:
            snapshot = snapshot_of(Seen(broken_mib=broken_mib), began_s)
            spoke |= {name for name, one in zip(GUESTS, read, strict=True) if speaks(one, broken_mib)}
            moved = [one and replace(one, taken_s=one.taken_s + began_s) for one in read]
            guests = tuple(replace(guest, merged=one) for guest, one in zip(snapshot.guests, moved, strict=True))
            state = watch(replace(snapshot, guests=guests), state, is_wanted=True)
        in_a_row = {name: in_a_row[name] + 1 if name in spoke else 0 for name in GUESTS}
        may_be |= {f"{name}/1" for name, times in in_a_row.items() if times >= REPEATS}
        assert state.rewriters.keys() <= may_be
