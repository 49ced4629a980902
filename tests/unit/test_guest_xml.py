"""What a guest's XML says: private by metadata, kept out by nosharepages alone, its memory and what lies behind it."""

import pytest

from virtksm.guests.xml import MAX_CHARACTERS, NAMESPACE, GuestXml, parse_guest_xml

METADATA = f'<metadata><v:guest xmlns:v="{NAMESPACE}" private="yes"/></metadata>'
NOSHARE = "<memoryBacking><nosharepages/></memoryBacking>"


def domain(*parts: str) -> str:
    return f"<domain type='kvm' id='1'><name>one</name>{''.join(parts)}</domain>"


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        (domain(), GuestXml()),
        (domain(NOSHARE, METADATA), GuestXml(is_private=True, is_kept_out=True)),
        (domain(METADATA.replace("private", "group")), GuestXml(group="yes")),
        (domain(METADATA.replace('private="yes"', 'group=""')), GuestXml()),
        (domain("<devices><memballoon freePageReporting='on'/></devices>"), GuestXml(reports_free_pages=True)),
        (domain("<devices><memballoon freePageReporting='off'/></devices>"), GuestXml()),
        (f"<?xml version='1.0' encoding='UTF-16'?>{domain(NOSHARE)}", GuestXml(is_kept_out=True)),
    ],
)
def test_it_reads_what_a_domain_says_of_itself(xml: str, found: GuestXml) -> None:
    assert parse_guest_xml(xml) == found


@pytest.mark.parametrize(("value", "is_private"), [("no", False), ("true", True), ("", True), ("No", True)])
def test_a_slip_of_the_pen_declares_a_guest_private(value: str, is_private: bool) -> None:
    assert parse_guest_xml(domain(METADATA.replace("yes", value))).is_private is is_private


@pytest.mark.parametrize(
    "other",
    [
        "<metadata><guest private='yes'/></metadata>",
        f"<metadata><v:guest xmlns:v='{NAMESPACE}'/></metadata>",
        f"<metadata><o:x xmlns:o='urn:o'><v:guest xmlns:v='{NAMESPACE}' private='yes'/></o:x></metadata>",
        "<metadata><x:memoryBacking xmlns:x='urn:x'><x:nosharepages/></x:memoryBacking></metadata>",
        "<devices><memoryBacking><nosharepages/></memoryBacking></devices>",
    ],
)
def test_what_stands_elsewhere_says_nothing(other: str) -> None:
    assert parse_guest_xml(domain(other)) == GuestXml()


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("", "no XML"),
        ("<domain>\0</domain>", "no XML"),
        ("<domain>\ud800</domain>", "no XML"),
        ("<network/>", "no domain"),
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


MEMORY = "<memory unit='KiB'>24576</memory><currentMemory unit='KiB'>16384</currentMemory>"


@pytest.mark.parametrize(
    ("memory", "amounts"),
    [
        (MEMORY, (24576, 16384)),
        ("<memory>24576</memory>", (24576, None)),
        ("<memory unit='MiB'>24</memory>", (None, None)),
        ("<memory unit='KiB'>24<!-- -->576</memory>", (24576, None)),
        ("<memory unit='KiB'>2e4</memory><currentMemory unit='KiB'>-1</currentMemory>", (None, None)),
        (f"<memory unit='KiB'>{'9' * 19}</memory><currentMemory unit='KiB'>\u0661</currentMemory>", (None, None)),
        (f"<devices>{MEMORY}</devices>", (None, None)),
    ],
)
def test_its_memory_is_what_libvirt_writes_in_kib(memory: str, amounts: tuple[int | None, int | None]) -> None:
    xml = parse_guest_xml(domain(memory))
    assert (xml.memory_kib, xml.current_kib) == amounts


@pytest.mark.parametrize(
    ("tuning", "limit_kib"),
    [
        ("<hard_limit unit='KiB'>300</hard_limit><swap_hard_limit unit='KiB'>100</swap_hard_limit>", 300),
        ("<hard_limit unit='KiB'>300</hard_limit><soft_limit unit='KiB'>200</soft_limit>", 200),
        ("<soft_limit unit='KiB'>200</soft_limit>", 200),
        ("<soft_limit unit='KiB'>much</soft_limit>", None),
        ("", None),
    ],
)
def test_its_limit_is_the_lower_one_that_memtune_sets(tuning: str, limit_kib: int | None) -> None:
    xml = parse_guest_xml(domain(f"{MEMORY}<memtune>{tuning}</memtune>"))
    assert (xml.limit_kib, xml.memory_kib, xml.current_kib) == (limit_kib, 24576, 16384)


@pytest.mark.parametrize(
    ("tuning", "bound_to"),
    [
        ("<memory mode='strict' nodeset='0-1'/>", ((0, 1),)),
        ("<memory mode='restrictive' nodeset='1'/>", ((1,),)),
        ("<memory mode='strict' nodeset='much'/>", ()),
        ("<memory mode='preferred' nodeset='1'/>", ()),
        ("<memory mode='interleave' nodeset='0-1'/>", ()),
        ("<memory mode='strict' placement='auto'/>", ()),
        (
            "<memory mode='strict' nodeset='0,2'/><memnode cellid='1' mode='strict' nodeset='2'/>"
            "<memnode cellid='2' mode='preferred' nodeset='3'/>",
            ((2,),),
        ),
        ("", ()),
    ],
)
def test_it_is_bound_to_the_nodes_that_numatune_leaves_it(tuning: str, bound_to: tuple[tuple[int, ...], ...]) -> None:
    assert parse_guest_xml(domain(f"<numatune>{tuning}</numatune>")).bound_to == bound_to


@pytest.mark.parametrize(
    ("backing", "is_shared"),
    [
        ("<source type='memfd'/>", True),
        ("<source type='memfd'/><access mode='private'/>", False),
        ("<source type='file'/>", False),
        ("<source type='file'/><access mode='shared'/>", True),
        ("<access mode='shared'/>", True),
        ("", False),
    ],
)
def test_its_ram_is_shared_as_qemu_maps_it(backing: str, is_shared: bool) -> None:
    assert parse_guest_xml(domain(f"<memoryBacking>{backing}</memoryBacking>")).is_shared is is_shared


@pytest.mark.parametrize(
    ("access", "cells", "is_shared"),
    [("private", ["shared", "shared"], True), ("shared", ["shared", None], True), ("shared", ["private"], False)],
)
def test_a_numa_cell_overrules_the_access_of_all(access: str, cells: list[str | None], is_shared: bool) -> None:
    written = "".join("<cell/>" if cell is None else f"<cell memAccess='{cell}'/>" for cell in cells)
    numa = f"<cpu><numa>{written}</numa></cpu>"
    xml = domain(f"<memoryBacking><access mode='{access}'/></memoryBacking>", numa)
    assert parse_guest_xml(xml).is_shared is is_shared


@pytest.mark.parametrize(
    ("device", "pins"),
    [
        ("<hostdev mode='subsystem' type='pci' managed='yes'><source/></hostdev>", True),
        ("<interface type='hostdev'/>", True),
        ("<interface type='vdpa'/>", True),
        ("<disk type='nvme' device='disk'/>", True),
        ("<hostdev mode='subsystem' type='mdev' model='vfio-pci'/>", False),
        ("<disk type='file'/>", False),
    ],
)
def test_a_device_that_reaches_all_memory_pins_it(device: str, pins: bool) -> None:
    assert parse_guest_xml(domain(f"<devices><controller type='pci'/>{device}</devices>")).pins_memory is pins


@pytest.mark.parametrize(
    ("xml", "is_confidential"),
    [
        ("<launchSecurity type='sev'><cbitpos>47</cbitpos><policy>0x0003</policy></launchSecurity>", True),
        ("<launchSecurity type='sev-snp'><policy>0x00030000</policy></launchSecurity>", True),
        ("<launchSecurity type='tdx'/>", True),
        ("<launchSecurity type='s390-pv'/>", True),
        ("<launchSecurity/>", True),
        ("<metadata><launchSecurity type='sev'/></metadata>", False),
        ("<l:launchSecurity xmlns:l='urn:l' type='sev'/>", False),
        ("<description>&lt;launchSecurity type='sev'/&gt;</description>", False),
    ],
)
def test_a_guest_s_memory_is_encrypted_by_whatever_type_of_launch_security(xml: str, is_confidential: bool) -> None:
    assert parse_guest_xml(domain(xml)).is_confidential is is_confidential


@pytest.mark.parametrize(
    ("pages", "cells", "is_all_huge"),
    [([None], [None, None], True), (["0"], [None], True), (["0"], [None, None], False), (["0-1"], ["1", "0"], True),
     (["0", "1"], [None, None], True), (["0,2-3"], ["0", "1", "2", "3"], False), (["0", None], [None, None], True),
     ([""], [None], False), (["x-1,3-0,-,0-99999999999999999999"], [None], False), (["0"], ["x"], False)],
)  # fmt: skip
def test_huge_pages_with_a_nodeset_count_for_its_numa_cells_alone(
    pages: list[str | None], cells: list[str | None], *, is_all_huge: bool
) -> None:
    written = "".join("<page size='2048'/>" if one is None else f"<page nodeset='{one}'/>" for one in pages)
    numa = "".join("<cell/>" if one is None else f"<cell id='{one}'/>" for one in cells)
    xml = domain(f"<memoryBacking><hugepages>{written}</hugepages></memoryBacking>", f"<cpu><numa>{numa}</numa></cpu>")
    assert parse_guest_xml(xml).has_hugepages is is_all_huge


def test_the_administrators_own_arguments_are_read() -> None:
    qemu = "http://libvirt.org/schemas/domain/qemu/1.0"
    arguments = "<q:arg value='-M'/><q:env name='a'/><q:arg value='x=y'/>"
    xml = parse_guest_xml(domain(f"<q:commandline xmlns:q='{qemu}'>{arguments}</q:commandline>"))
    assert xml == GuestXml(qemu_arguments=("-M", "x=y"))


BASE = "<source file='/base.qcow2'/>"


def disk(*chain: str, above: str = "") -> str:
    """A disk on a chain of backing stores with these sources, the nearest first."""
    inner = "<backingStore/>"
    for number, source in reversed(list(enumerate(chain))):
        inner = f"<backingStore type='file' index='{number}'><format type='qcow2'/>{source}{inner}</backingStore>"
    return (
        f"<devices><disk type='file' device='disk'><source file='{above}'/>{inner}<target dev='vda'/></disk></devices>"
    )


KERNEL = "<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/i</initrd></os>"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (disk(BASE, above="/a"), disk("<source file='/snapshot'/>", BASE, above="/b")),
        (disk(BASE), disk("<source index='7' startupPolicy='optional' file='/base.qcow2'/>")),
        (disk(BASE), "<devices><disk device='cdrom'><source file='/seed.iso'/></disk></devices>" + disk(BASE)),
        (disk(BASE), disk(BASE) + disk("<source file='/data'/>")),
        (disk(BASE), KERNEL + disk(BASE)),
        (disk("<source protocol='rbd' name='pool/base'><host name='a'/></source>"),
         disk("<source protocol='rbd' name='pool/base'><host name='b'/></source>")),
        (KERNEL, disk() + KERNEL.replace("/i<", "/j<")),
    ],
)  # fmt: skip
def test_guests_of_one_image_are_told_by_their_innermost_backing_store_or_by_their_kernel(one: str, other: str) -> None:
    images = {parse_guest_xml(domain(xml)).image for xml in (one, other)}
    assert len(images) == 1
    assert len(images.pop() or "") == len("image-") + 16


@pytest.mark.parametrize(
    "xml",
    [
        disk("<source file='/other.qcow2'/>"),
        disk("<source dev='/base.qcow2'/>"),
        disk("<source pool='p' volume='/base.qcow2'/>"),
        disk("<source protocol='nbd' name='/base.qcow2'/>"),
        KERNEL,
        f"<devices><disk><mirror><backingStore>{BASE}</backingStore></mirror></disk></devices>",
        f"<devices><filesystem><backingStore>{BASE}</backingStore></filesystem></devices>",
        f"<metadata><disk><backingStore>{BASE}</backingStore></disk></metadata>",
    ],
)
def test_others_have_another_image_or_none(xml: str) -> None:
    assert parse_guest_xml(domain(xml)).image != parse_guest_xml(domain(disk(BASE))).image


def test_a_disk_without_a_backing_store_is_no_image_and_no_chain_is_too_long_to_be_read() -> None:
    assert parse_guest_xml(domain(disk(above="/a"))).image is None
    assert parse_guest_xml(domain(f"<devices><disk>{BASE}</disk></devices>")).image is None
    chain = ["<source file='/a'/>"] * 5_000
    assert parse_guest_xml(domain(disk(*chain, BASE))).image == parse_guest_xml(domain(disk(BASE))).image
