"""Which groups' guests share a KSM pool: only those that merge, and guests without a group as one more."""

from __future__ import annotations

import pytest

from virtksm.guests.obstacles import find_mixed, pool_text
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.guests.xml import GuestXml
from virtksm.model.snapshot import Guest

A, B, NONE = GuestXml(group="a"), GuestXml(group="b"), GuestXml()
APART = GuestXml(group="b", is_kept_out=True)
UNMERGED = GuestProcess(arguments=(), ksm=ProcessKsm(is_mergeable=False))


def guests(*xml: GuestXml, last: GuestProcess | None = None) -> list[tuple[Guest, GuestXml, GuestProcess | None]]:
    seen = [(Guest(uuid=str(number), name=f"g{number}"), one, None) for number, one in enumerate(xml)]
    return [*seen[:-1], (*seen[-1][:2], last)]


@pytest.mark.parametrize(
    ("xml", "last", "text"),
    [
        ((APART,), None, None),
        ((A, A), None, None),
        ((NONE, NONE), None, None),
        ((A, A, B), None, "a (2), b (1)"),
        ((NONE, B, A), None, "a (1), b (1), no group (1)"),
        ((A, NONE), None, "a (1), no group (1)"),
        ((A, APART), None, None),
        ((A, GuestXml(group="b", has_hugepages=True)), None, "a (1), b (1)"),
        ((A, B), UNMERGED, None),
    ],
)
def test_a_pool_is_mixed_where_guests_of_different_groups_can_merge(
    xml: tuple[GuestXml, ...], last: GuestProcess | None, text: str | None
) -> None:
    mixed = find_mixed(guests(*xml, last=last))
    assert [pool_text(pool) for pool in mixed] == ([] if text is None else [text])
