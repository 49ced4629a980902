"""Which private guests can merge, by metadata and by name."""

from __future__ import annotations

from virtksm.guests.obstacles import exposed
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.model.snapshot import Guest


def guest(name: str) -> Guest:
    return Guest(uuid=f"uuid of {name}", name=name, domain_id=1)


def test_private_guests_that_can_merge_are_named_in_order() -> None:
    guests = [guest(name) for name in ("tenant-b", "tenant-a", "Tenant-c", "open", "declared", "apart", "new")]
    known = {one.key: UNKNOWN for one in guests if one.name != "new"}
    known[guest("declared").key] = GuestXml(is_private=True)
    known[guest("apart").key] = GuestXml(is_private=True, is_kept_out=True)
    assert exposed(guests, known, ["tenant-*", "new", "apart"]) == ("declared", "tenant-a", "tenant-b")
    assert exposed(guests, known, []) == ("declared",)
    assert exposed(guests, {}, ["*"]) == ()


def test_another_run_of_a_guest_is_another_guest() -> None:
    known = {guest("one").key: GuestXml(is_private=True)}
    assert exposed([Guest(uuid="uuid of one", name="one", domain_id=2)], known, []) == ()
