"""Domain XML from anybody: it says something or is a ValueError, and it says what another parser finds in it."""

from __future__ import annotations

from contextlib import suppress
from xml.etree import ElementTree as ET

from hypothesis import example, given
from hypothesis import strategies as st

from virtksm.guests.xml import NAMESPACE, GuestXml, parse_guest_xml

memory = ["domain", "metadata", "memoryBacking", "nosharepages", "hugepages", "cpu", "numa", "cell"]
more = ["devices", "hostdev", "memballoon", "launchSecurity", "guest", f"{{{NAMESPACE}}}guest", "x"]
names = st.sampled_from([*memory, *more])
attributes = st.dictionaries(
    st.sampled_from(["private", "group", "id", "type", "memAccess", "freePageReporting"]),
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


@given(st.lists(trees, max_size=4))
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
        reports_free_pages=root.find("devices/memballoon[@freePageReporting='on']") is not None,
    )
