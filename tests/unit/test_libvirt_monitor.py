"""QEMU's answers, of which only the expected form is taken: a guest that has taken over its QEMU writes them."""

import json

import pytest

from virtksm.errors import MonitorFailed
from virtksm.host.libvirt_monitor import MAX_BACKENDS, parse_backends, parse_reply, parse_version

OBJECTS = [
    {"name": "type", "type": "string"},
    {"name": "rng0", "type": "child<rng-random>"},
    {"name": "ram-node1", "type": "child<memory-backend-memfd>"},
    {"name": "memdimm0", "type": "child<memory-backend-ram>"},
    {"name": "ram-node0", "type": "child<memory-backend-file>"},
]


def test_all_memory_backends_are_found_whatever_their_names_and_nothing_else() -> None:
    assert parse_backends(OBJECTS) == ("memdimm0", "ram-node0", "ram-node1")


@pytest.mark.parametrize(
    "returned",
    [
        None,
        [],
        {"name": "pc.ram", "type": "child<memory-backend-ram>"},
        [None, 1, "pc.ram", {"name": 1, "type": "child<memory-backend-ram>"}, {"name": "pc.ram"}],
        [{"name": str(number), "type": "child<memory-backend-ram>"} for number in range(MAX_BACKENDS + 1)],
    ],
)
def test_no_backends_or_too_many_are_an_error(returned: object) -> None:
    with pytest.raises(MonitorFailed, match="memory backends"):
        parse_backends(returned)


def test_a_version_is_three_numbers() -> None:
    assert parse_version({"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}) == (7, 2, 22)
    wrong: tuple[object, ...] = (None, [], {"qemu": "7.2"}, {"qemu": {"major": 7, "minor": 2}})
    for returned in wrong:
        with pytest.raises(MonitorFailed):
            parse_version(returned)


def test_an_answer_is_a_result_or_an_error() -> None:
    assert parse_reply('{"return": false, "id": "libvirt-1"}', "qom-get") is False
    wrong = {"error": {"class": "GenericError", "desc": "Property 'x' not found"}}
    with pytest.raises(MonitorFailed, match="qom-get of a guest's QEMU: Property 'x' not found"):
        parse_reply(json.dumps(wrong), "qom-get")
    for text in ("", "{", "[]", "1", "{}", '{"error": 1}', "[" * 100_000):
        with pytest.raises(MonitorFailed):
            parse_reply(text, "qom-get")
