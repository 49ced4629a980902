"""Domain XML from anybody: it says something or is a ValueError, and it says what another parser finds in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from xml.etree import ElementTree as ET

from hypothesis import example, given
from hypothesis import strategies as st

from virtksm.guests.xml import NAMESPACE, GuestXml, parse_guest_xml

memory = ["domain", "metadata", "memoryBacking", "nosharepages", "hugepages", "cpu", "numa", "cell"]
more = ["devices", "disk", "backingStore", "source", "os", "kernel", "hostdev", "memballoon", "launchSecurity", "guest"]
names = st.sampled_from([*memory, *more, f"{{{NAMESPACE}}}guest", "x"])
attributes = st.dictionaries(
    st.sampled_from(["private", "group", "id", "type", "memAccess", "freePageReporting", "file"]),
    st.sampled_from(["yes", "no", "on", "", "pci", "shared", "sev-snp", "<&\"'>"]),
)
characters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")


def build(parts: tuple[str, dict[str, str], str, list[ET.Element]]) -> ET.Element:
    name, given_attributes, text, children = parts
    element = ET.Element(name, given_attributes)
    element.text = text
    element.extend(children)
    return element


def elements(children: st.SearchStrategy[list[ET.Element]]) -> st.SearchStrategy[ET.Element]:
    return st.tuples(names, attributes, st.text(characters, max_size=5), children).map(build)


trees = st.recursive(elements(st.just([])), lambda inner: elements(st.lists(inner, max_size=4)), max_leaves=12)
stores = st.recursive(
    attributes.map(partial(ET.Element, "source")),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: build(("backingStore", {}, "", parts))),
    max_leaves=6,
)
disks = st.lists(stores, max_size=3).map(lambda parts: build(("devices", {}, "", [build(("disk", {}, "", parts))])))
signs = [
    "<",
    ">",
    "</",
    "/>",
    "&",
    ";",
    "&#0;",
    "&#x41;",
    "<!DOCTYPE",
    "<!ENTITY a 'b'>",
    "[",
    "]>",
    "<![CDATA[",
    "]]>",
]
words = [
    "<?xml version='1.0'",
    " encoding='x'",
    "?>",
    "<domain>",
    "</domain>",
    "<!--",
    "-->",
    "\ud800",
    "\0",
    "xmlns:v='",
]
soups = st.lists(st.sampled_from([*signs, *words, NAMESPACE]) | st.text(max_size=3), max_size=30).map("".join)


@given(st.text() | soups)
@example("<?xml version='1.0' encoding='nonsense'?><domain/>")
@example("<?xml version='1.0' encoding='idna'?><domain/>")
@example("<!DOCTYPE d [<!ENTITY % a 'b'>%a;]><domain/>")
def test_any_text_is_understood_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(parse_guest_xml(text), GuestXml)


def sources(store: ET.Element) -> Iterator[ET.Element]:
    """Yield the sources of a chain of backing stores, the innermost last."""
    for child in store:
        if child.tag == "source":
            yield child
        elif child.tag == "backingStore":
            yield from sources(child)


def image_of(root: ET.Element) -> str | None:
    """Return the image that a domain's XML tells."""
    disks = [
        [one for store in disk.findall("backingStore") for one in sources(store)]
        for disk in root.findall("devices/disk")
    ]
    innermost = next((chain[-1].attrib for chain in disks if chain), {})
    text = f"file={innermost['file']}" if "file" in innermost else ""
    for kernel in [] if text else root.findall("os/kernel"):
        text = "".join(kernel.itertext())
    return f"image-{sha256(text.encode()).hexdigest()[:16]}" if text else None


@given(st.lists(trees | disks, max_size=4))
def test_it_says_what_another_parser_says(children: list[ET.Element]) -> None:
    root = ET.Element("domain")
    root.extend(children)
    text = ET.tostring(root, encoding="unicode")
    cells = root.findall("cpu/numa/cell")
    declared = root.findall(f"metadata/{{{NAMESPACE}}}guest")
    assert parse_guest_xml(text) == GuestXml(
        is_private=any(one.get("private", "no") != "no" for one in declared),
        group=next((one.get("group") for one in declared if one.get("group")), None),
        is_kept_out=root.find("memoryBacking/nosharepages") is not None,
        has_hugepages=root.find("memoryBacking/hugepages") is not None,
        is_shared=bool(cells) and all(cell.get("memAccess") == "shared" for cell in cells),
        pins_memory=root.find("devices/hostdev[@type='pci']") is not None,
        is_confidential=root.find("launchSecurity") is not None,
        image=image_of(root),
        reports_free_pages=root.find("devices/memballoon[@freePageReporting='on']") is not None,
    )
