"""Domain XML from anybody: it says something or is a ValueError."""

from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from virtksm.guests.xml import NAMESPACE, GuestXml, parse_guest_xml

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
