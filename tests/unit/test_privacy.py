"""Which guests are private, and which of them can merge: by metadata and by name, kept out by nosharepages alone."""

from __future__ import annotations

import pytest

from virtksm.model import Guest
from virtksm.privacy import MAX_CHARACTERS, NAMESPACE, UNKNOWN, GuestXml, exposed, parse_guest_xml

METADATA = f'<metadata><v:guest xmlns:v="{NAMESPACE}" private="yes"/></metadata>'
NOSHARE = "<memoryBacking><nosharepages/></memoryBacking>"


def domain(*parts: str) -> str:
    return f"<domain type='kvm' id='1'><name>one</name>{''.join(parts)}</domain>"


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        (domain(), GuestXml()),
        (domain(METADATA), GuestXml(is_private=True)),
        (domain(NOSHARE), GuestXml(is_kept_out=True)),
        (domain(NOSHARE, METADATA), GuestXml(is_private=True, is_kept_out=True)),
        (f"<?xml version='1.0' encoding='UTF-16'?>{domain(NOSHARE)}", GuestXml(is_kept_out=True)),
    ],
)
def test_it_reads_what_a_domain_says_of_itself(xml: str, found: GuestXml) -> None:
    assert parse_guest_xml(xml) == found


@pytest.mark.parametrize(
    ("value", "is_private"), [("yes", True), ("no", False), ("true", True), ("Yes", True), ("", True), ("No", True)]
)
def test_a_slip_of_the_pen_declares_a_guest_private(value: str, is_private: bool) -> None:
    assert parse_guest_xml(domain(METADATA.replace("yes", value))).is_private is is_private


@pytest.mark.parametrize(
    "other",
    [
        "<metadata><guest private='yes'/></metadata>",
        "<metadata><v:guest xmlns:v='urn:other' private='yes'/></metadata>",
        f"<metadata><v:guest xmlns:v='{NAMESPACE}'/></metadata>",
        f"<metadata><o:x xmlns:o='urn:o'><v:guest xmlns:v='{NAMESPACE}' private='yes'/></o:x></metadata>",
        "<description>&lt;metadata&gt;</description>",
    ],
)
def test_what_is_not_virtksms_declares_nothing(other: str) -> None:
    assert parse_guest_xml(domain(other)) == GuestXml()


@pytest.mark.parametrize(
    "other",
    [
        "<memoryBacking><hugepages/></memoryBacking>",
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        "<memoryBacking><locked/></memoryBacking>",
        "<metadata><x:memoryBacking xmlns:x='urn:x'><x:nosharepages/></x:memoryBacking></metadata>",
        "<devices><memoryBacking><nosharepages/></memoryBacking></devices>",
        "<nosharepages/>",
    ],
)
def test_nothing_but_nosharepages_keeps_a_guest_out(other: str) -> None:
    assert parse_guest_xml(domain(other)).is_kept_out is False


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("", "no XML"),
        ("<domain>", "no XML"),
        ("<domain/><domain/>", "no XML"),
        ("<domain>\0</domain>", "no XML"),
        ("<domain>&nbsp;</domain>", "no XML"),
        ("<domain>\ud800</domain>", "no XML"),
        ("<network/>", "no domain"),
        ("<d:domain xmlns:d='urn:d'/>", "no domain"),
        ("<!DOCTYPE domain><domain/>", "document type"),
        ('<!DOCTYPE d [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><domain>&c;</domain>', "document type"),
        ('<!DOCTYPE d SYSTEM "file:///etc/hostname"><domain/>', "document type"),
        (" " * (MAX_CHARACTERS + 1), "longer"),
    ],
)
def test_what_libvirt_never_writes_is_refused(xml: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_guest_xml(xml)


def test_deep_nesting_costs_no_stack() -> None:
    depth = 100_000
    assert parse_guest_xml(domain("<a>" * depth + "</a>" * depth)) == GuestXml()


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
