"""Values as they leave the program: each unit by its name's ending, and nothing else changed."""

import json
from collections.abc import Mapping

import pytest

from virtksm.json_output import output_name, to_json, to_output


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ({"saved_kib": 3}, {"saved_bytes": 3072}),
        ({"kib": None}, {"bytes": None}),
        ({"saved_kib": [1, None, 2.5]}, {"saved_bytes": [1024, None, 2560]}),
        ({"room_kib": {"safe": 1}}, {"room_bytes": {"safe": 1024}}),
        ({"waited_kib_s": 1.5}, {"waited_byte_s": 1536}),
        ({"duration_ms": 12.345, "page_cost_us": 7.1}, {"duration_s": 0.012345, "page_cost_s": 7.1e-06}),
        ({"events": [{"at_s": 0.0005}]}, {"events": [{"at": "1970-01-01T00:00:00.000Z"}]}),
        ({"began_at_s": 1_767_323_045.9996}, {"began_at": "2026-01-02T03:04:06.000Z"}),
        ({"at_s": 1e19, "last_at_s": True}, {"at": None, "last_at": None}),
        ({"kib": True, "page_kib": "x"}, {"bytes": True, "page_bytes": "x"}),
        ({"sleep_millisecs": 20, "pages_shared": 7, "next_pass_s": 0.5, "alms": 1},) * 2,
        ({"law": {"config": {"adaptive.sleep_ms": 1}}},) * 2,
        (
            {"quantity": "free_kib", "value": 2, "present": 1.5, "text": "when"},
            {"quantity": "free_bytes", "value": 2048, "present": 1536, "text": "when"},
        ),
        ({"quantity": "passed_s", "value": 2, "present": 0},) * 2,
        ({"quantity": {"at_s": 1}, "value": 1}, {"quantity": {"at": "1970-01-01T00:00:01.000Z"}, "value": 1}),
    ],
)
def test_a_name_says_what_becomes_of_its_value(inside: Mapping[str, object], outside: Mapping[str, object]) -> None:
    assert to_output(inside) == outside
    assert to_output(outside) == outside, "once is enough"


def test_what_is_nested_without_end_is_printed_all_the_same() -> None:
    nested: object = {"at_s": 1}
    for _ in range(900):
        nested = {"deep": nested}
    assert json.loads(to_json(nested)) == nested


def test_a_name_changes_as_its_value_does() -> None:
    assert [output_name(name) for name in ("total_kib", "kib", "at_s", "taken_s")] == [
        "total_bytes", "bytes", "at", "taken_s",
    ]  # fmt: skip
