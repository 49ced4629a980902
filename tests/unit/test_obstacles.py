"""Why a guest cannot merge, and what overrules it; which private guests can, and which groups share a pool."""

import pytest

from tests.lab.samples import guest
from virtksm.guests.obstacles import Obstacle, exposed, find_mixed, find_obstacles, is_merge_off, pool_text
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.values import replace

OFF = ("qemu", "-machine", "pc,usb=off,mem-merge=off,memory-backend=pc.ram", "-m", "24")
ON = ("qemu", "-machine", "pc,usb=off,memory-backend=pc.ram", "-m", "24")
APART = GuestXml(is_kept_out=True)


def process(arguments: tuple[str, ...], **counted: bool) -> GuestProcess:
    return GuestProcess(arguments=arguments, ksm=ProcessKsm(**counted))


@pytest.mark.parametrize(
    ("xml", "arguments", "found"),
    [
        (UNKNOWN, ON, []),
        (APART, OFF, ["nosharepages"]),
        (UNKNOWN, OFF, ["mem_merge_off"]),
        (GuestXml(qemu_arguments=OFF), (), ["mem_merge_off"]),
        (GuestXml(qemu_arguments=OFF), ON, []),
        (GuestXml(is_shared=True), ON, ["shared_memory"]),
        (GuestXml(has_hugepages=True, is_shared=True), ON, ["hugepages"]),
        (GuestXml(pins_memory=True), ON, ["pinned"]),
        (GuestXml(is_confidential=True), ON, ["confidential"]),
        (replace(APART, has_hugepages=True, pins_memory=True), OFF, ["nosharepages", "hugepages", "pinned"]),
        (replace(APART, is_confidential=True, is_shared=True), ON, ["nosharepages", "confidential", "shared_memory"]),
    ],
)
def test_each_obstacle_is_named_once(xml: GuestXml, arguments: tuple[str, ...], found: list[str]) -> None:
    assert [one.value for one in find_obstacles(xml, process(arguments) if arguments else None)] == found


def test_the_kernels_word_counts_where_nothing_else_tells() -> None:
    assert find_obstacles(UNKNOWN, process(ON, is_mergeable=True)) == ()
    assert find_obstacles(UNKNOWN, process(ON, is_mergeable=False)) == (Obstacle.NOT_OFFERED,)
    assert find_obstacles(APART, process(OFF, is_mergeable=False)) == (Obstacle.NOSHAREPAGES,)


def test_a_process_that_merges_any_memory_is_kept_out_by_no_request_of_its_own() -> None:
    assert find_obstacles(APART, process(OFF, merges_any=True)) == ()
    assert find_obstacles(UNKNOWN, process(OFF, merges_any=True)) == ()
    assert find_obstacles(GuestXml(has_hugepages=True), process(OFF, merges_any=True)) == (Obstacle.HUGEPAGES,)
    assert find_obstacles(GuestXml(is_confidential=True), process(ON, merges_any=True)) == (Obstacle.CONFIDENTIAL,)


def test_ksm_that_is_off_stands_in_every_guests_way() -> None:
    assert find_obstacles(UNKNOWN, ksm_run=1) == find_obstacles(UNKNOWN, ksm_run=None) == ()
    assert find_obstacles(UNKNOWN, ksm_run=0) == find_obstacles(UNKNOWN, ksm_run=2) == (Obstacle.KSM_OFF,)
    assert find_obstacles(APART, ksm_run=0) == (Obstacle.NOSHAREPAGES, Obstacle.KSM_OFF)


@pytest.mark.parametrize(
    ("arguments", "is_off"),
    [(OFF, True), (ON, False), ((*OFF, "-machine", "mem-merge=on"), False), ((*ON, "-M", "mem-merge=off"), True),
     ((*ON, "-name", "guest=mem-merge=off"), False), (("-machine",), False)],
)  # fmt: skip
def test_the_last_word_on_the_command_line_holds(arguments: tuple[str, ...], is_off: bool) -> None:
    assert is_merge_off(arguments) is is_off


def test_every_obstacle_has_its_words() -> None:
    assert len({one.text for one in Obstacle}) == len(Obstacle)
    assert {one.value for one in Obstacle if not one.is_whole} == {"hugepages", "shared_memory", "pinned", "unmerged"}


def test_private_guests_that_can_merge_are_named_in_order() -> None:
    guests = [guest(name) for name in ("tenant-b", "tenant-a", "Tenant-c", "open", "declared", "apart", "new")]
    known = {one.key: UNKNOWN for one in guests if one.name != "new"}
    known[guest("declared").key] = GuestXml(is_private=True)
    known[guest("apart").key] = GuestXml(is_private=True, is_kept_out=True)
    assert exposed(guests, known, ["tenant-*", "new", "apart"]) == ("declared", "tenant-a", "tenant-b")
    assert exposed(guests, known, []) == ("declared",)
    assert exposed(guests, {}, ["*"]) == ()
    another_run = replace(guest("declared"), domain_id=2)
    assert exposed([another_run], known, []) == ()


A, B, NO_GROUP = GuestXml(group="a"), GuestXml(group="b"), UNKNOWN


@pytest.mark.parametrize(
    ("xml", "last", "text"),
    [
        ((replace(APART, group="b"),), None, None),
        ((A, A), None, None),
        ((NO_GROUP, NO_GROUP), None, None),
        ((A, A, B), None, "a (2), b (1)"),
        ((NO_GROUP, B, A), None, "a (1), b (1), no group (1)"),
        ((A, NO_GROUP), None, "a (1), no group (1)"),
        ((A, replace(APART, group="b")), None, None),
        ((A, replace(B, has_hugepages=True)), None, "a (1), b (1)"),
        ((A, B), process(ON, is_mergeable=False), None),
    ],
)
def test_a_pool_is_mixed_where_guests_of_different_groups_can_merge(
    xml: tuple[GuestXml, ...], last: GuestProcess | None, text: str | None
) -> None:
    processes = [None] * (len(xml) - 1) + [last]
    seen = [(guest(str(number)), *one) for number, one in enumerate(zip(xml, processes, strict=True))]
    assert [pool_text(pool) for pool in find_mixed(seen)] == ([] if text is None else [text])
