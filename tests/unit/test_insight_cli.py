"""What `virtksm guests` and `virtksm headroom` print: numbers in columns, what is missing as a dash, risks in words."""

import pytest

from tests.fakes import FakeFacts, FakeHypervisor
from virtksm.cli.guests import COLUMNS, USUAL, choose, survey_dict, survey_items
from virtksm.cli.headroom import find_notes, headroom_rows
from virtksm.cli.layout import to_lines
from virtksm.cli.main import parse
from virtksm.config.schema import Config
from virtksm.errors import UsageError, VirtksmError
from virtksm.guests.headroom import GuestNeed, Host, find_headroom, find_node_rooms, find_reserve_kib
from virtksm.guests.obstacles import Obstacle
from virtksm.guests.process import GuestProcess, OtherProcess, ProcessKsm
from virtksm.guests.survey import Survey, survey
from virtksm.model.snapshot import Guest, HostMemory, KsmState, NodeMemory, Settings
from virtksm.values import replace

GIB = 1024 * 1024
XML = "<domain><memory>2097152</memory><currentMemory>1048576</currentMemory></domain>"
HOST = Host(
    available_kib=20 * GIB, reserve_kib=4 * GIB, saved_kib=GIB, unmerging_kib=GIB, swap_free_kib=0, is_merging=True
)


def look(*names: str, others: tuple[OtherProcess, ...] = (), sharing: int = 512) -> Survey:
    guests = tuple(Guest(uuid=name, name=name, domain_id=1) for name in names)
    process = GuestProcess(arguments=("qemu",), ksm=ProcessKsm(rmap_items=1024, zero_pages=256, merging_pages=512))

    class Kernel(FakeHypervisor):
        def ksm_state(self) -> KsmState:
            return replace(super().ksm_state(), pages_shared=512, pages_sharing=sharing)

    facts = FakeFacts(
        rss_kib=dict.fromkeys(names, GIB),
        of_guests=dict.fromkeys(names, process),
        counters={"ksm_zero_pages": 512, "max_page_sharing": 256},
        profit_bytes=4096 * 1024,
        other_processes=others,
    )
    return survey(Kernel(running=guests, xml=dict.fromkeys(names, XML)), facts)


def lines_of(found: Survey) -> list[str]:
    return to_lines(survey_items(found, found.guests))


def headroom_text(found: Survey, host: Host, guests: list[GuestNeed], notes: list[str]) -> str:
    return "\n".join(to_lines(headroom_rows(found, find_headroom(guests, host), notes, usable_kib=32 * GIB)))


def test_a_table_fits_80_columns_and_o_chooses_its_columns() -> None:
    found = look("one", "a-longer-name")
    heading, one, two, *_ = lines_of(found)
    assert heading.split("  ")[0] == "NAME"
    assert max(len(heading), len(one), len(two)) <= 80
    assert {line.index("yes") for line in (one, two)} == {heading.index("CAN MERGE")}
    heading, one, *_ = to_lines(survey_items(found, found.guests, columns=tuple(COLUMNS)))
    assert "UUID" in heading
    assert ("1.0 GiB" in one, "2.0 GiB" in one) == (True, True)
    rows = survey_items(found, found.guests, columns=("name", "saved"), has_header=False)
    assert to_lines(rows) == ["one            2.0 MiB", "a-longer-name  2.0 MiB"]
    assert to_lines(survey_items(look(), [], has_header=False)) == []


def test_an_output_is_all_columns_or_some_in_any_order() -> None:
    for text, columns in (("all", tuple(COLUMNS)), ("saved,name", ("saved", "name")), (",".join(USUAL), USUAL)):
        assert parse(["guests", "-o", text]).output == columns
    with pytest.raises(UsageError, match="there is no column 'nope', only name, uuid, "):
        parse(["guests", "-o", "name,nope"])


def test_a_sum_that_adds_up_says_so_and_ksmd_that_goes_on_meanwhile_is_no_mystery() -> None:
    *_, host, guests, left, risk = lines_of(look("one", "two"))
    assert "4.0 MiB saved (pages_sharing 512, pages_shared 512, ksm_zero_pages 512), profit 4.0 MiB" in host
    assert guests == "Guests     4.0 MiB of it saved on guests"
    assert left == "Other      0.0 MiB (0 merging pages) not from these guests"
    assert risk == "Risk       a merged page serves 2.0 places, 256 at most: a memory error hits them all"
    *_, left, why, _risk = lines_of(look("one", "two", sharing=500))
    assert left.endswith("(-12 merging pages) not from these guests")
    assert why.strip() == "the counters changed while they were read"


def test_groups_that_can_merge_with_one_another_are_named_and_what_a_group_may_be_called_stays_text() -> None:
    found = look("one", "two", "three")
    groups = ["a\x1b", None, "a\x1b"]
    guests = (replace(one, xml=replace(one.xml, group=group)) for one, group in zip(found.guests, groups, strict=True))
    mixed = replace(found, guests=tuple(guests))
    *_, last = lines_of(mixed)
    assert last == "Groups     can merge with one another: a\\x1b (2), no group (1)"
    told = survey_dict(mixed, mixed.guests)
    assert told["mixed_groups"] == [["a\x1b", None]]
    heading, *rows = to_lines(survey_items(mixed, mixed.guests, columns=("name", "group")))
    assert heading.split() == ["NAME", "GROUP"]
    assert rows[1].split() == ["two", "-"]
    assert survey_dict(found, found.guests)["mixed_groups"] == []
    (one, two, three) = mixed.guests
    apart = replace(mixed, guests=(one, replace(two, obstacles=(Obstacle.UNMERGED,)), three))
    assert apart.mixed_pools == (), "the remedy is one"


def test_what_is_left_over_is_named_the_rest_summed_up() -> None:
    others = tuple(OtherProcess(pid=number, name="app", merging_pages=10) for number in range(1, 8))
    told = [line.strip() for line in lines_of(look("one", others=others))]
    named = told[told.index("Other      2.0 MiB (512 merging pages) not from these guests") + 1 :]
    assert named[:5] == [f"10 of app (pid {number})" for number in range(1, 6)]
    assert named[5] == "20 of 2 more processes"
    assert named[6].startswith("442 of processes that have exited")


def test_guests_are_chosen_by_name_or_uuid() -> None:
    found = look("one", "two", "three").guests
    found = (replace(found[0], guest=replace(found[0].guest, uuid="5f1c-1")), *found[1:])
    assert choose(found, []) == [*found]
    assert [seen.guest.name for seen in choose(found, ["three", "5f1c-1", "three"])] == ["one", "three"]
    with pytest.raises(VirtksmError, match=r"no running guest is called tw\\x1b"):
        choose(found, ["one", "tw\x1b"])


def test_a_host_without_guests_says_so_and_keeps_its_counters() -> None:
    told = lines_of(look())
    assert told[0] == "no guest runs"
    assert told[2].startswith("Host       4.0 MiB saved")


@pytest.mark.parametrize(
    ("swap_kib", "text"),
    [
        (None, "swap is unknown"),
        (0, "and no swap is free"),
        (100 * GIB, "which swap can hold (100.0 GiB free)"),
        (GIB, "12.0 GiB of them also with all free swap (1.0 GiB)"),
    ],
)
def test_the_risk_says_what_swap_can_hold(swap_kib: int | None, text: str) -> None:
    host = replace(HOST, swap_free_kib=swap_kib)
    told = headroom_text(look("one"), host, [GuestNeed(held_kib=2 * GIB, max_kib=2 * GIB)], ["a note"])
    assert f"13.0 GiB are missing, {text}" in told
    assert "1.0 GiB of their memory (50.0 %)" in told
    assert told.endswith("Note       a note")


def test_what_fits_fits_beside_the_policys_reserve() -> None:
    host = replace(HOST, saved_kib=0, unmerging_kib=0)
    memory = HostMemory(total_kib=100 * GIB, free_kib=0, buffers_kib=0, cached_kib=0)
    assert "unmerging everything takes up to 16.0 GiB: ok" in headroom_text(look(), host, [], [])
    assert find_reserve_kib(Config(), memory) == find_reserve_kib(Config(policy="ksmtuned"), memory) == 20 * GIB


def test_zero_pages_are_held_and_huge_pages_taken_at_the_start() -> None:
    (one,) = look("one").guests
    assert one.need == GuestNeed(held_kib=GIB + 1024, max_kib=2 * GIB, merged_kib=2048 + 1024)
    huge = replace(one, xml=replace(one.xml, has_hugepages=True))
    assert huge.need.growth_kib == 0


def test_the_room_of_a_node_that_guests_are_bound_to_is_told_beside_the_hosts() -> None:
    found, headroom = look("one"), find_headroom([], HOST)
    bound = {(0,): NodeMemory(16 * GIB, 9 * GIB, nodes=(0,)), (1, 2): NodeMemory(16 * GIB, 2 * GIB, nodes=(1, 2))}
    rooms = find_node_rooms([], bound, Config(), unmerging_kib=GIB, safe_kib=headroom.room_kib.safe)
    lines = to_lines(headroom_rows(found, headroom, [], rooms, usable_kib=32 * GIB))
    assert [line.strip() for line in lines if "NUMA" in line] == [
        "5.8 GiB: safe for guests bound to NUMA node 0, where 9.0 GiB are available, if no others take it",
        "0.0 MiB: safe for guests bound to NUMA nodes 1, 2, where 2.0 GiB are available, if no others take it",
    ]
    assert "NUMA" not in headroom_text(found, HOST, [], []), "nobody is bound to any"


def test_each_thing_that_makes_the_figures_doubtful_is_noted() -> None:
    found = look("one")
    (one,) = found.guests
    assert find_notes(found, is_full=True) == []
    unread = replace(one, guest=replace(one.guest, rss_kib=None), xml=replace(one.xml, memory_kib=None))
    idle = replace(found.ksm, settings=Settings(pages_to_scan=0, sleep_millisecs=10_000))
    doubtful = replace(found, guests=(unread,), ksm=idle)
    assert [note.split(":")[0] for note in find_notes(doubtful, is_full=False)] == [
        "the RSS of 1 guest cannot be read",
        "the maximum of 1 guest cannot be read",
        "of another machine libvirt reports neither cache that can be freed, nor swap, nor merged zero pages",
        "ksmd is idle",
    ]
    (off,) = find_notes(replace(found, ksm=replace(found.ksm, run=0)), is_full=True)
    assert off.startswith("KSM is off")
