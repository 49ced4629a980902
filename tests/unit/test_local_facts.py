"""Facts from /proc and /sys: processes told apart by their UUID, kernel files by what they hold."""

from pathlib import Path

import pytest

from tests.fake_proc import FakeProc, stat
from tests.fakes import FakeClock
from virtksm.guests.process import ProcessKsm
from virtksm.host.local_facts import KSMD_AGAIN_S, ProcFacts, parse_choice, parse_meminfo, parse_vmstat
from virtksm.host.other_processes import READ_EVERY_S
from virtksm.host.proc_files import KERNEL_THREAD, MAX_STUCK, parse_counter, parse_process_ksm
from virtksm.model.snapshot import Guest, HostMemory
from virtksm.values import replace


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def facts(clock: FakeClock) -> ProcFacts:
    return ProcFacts(clock)


def guest(uuid: str, domain_id: int = 1) -> Guest:
    return Guest(uuid=uuid, name="guest", domain_id=domain_id)


def rss_kib(facts: ProcFacts, running: Guest) -> int | None:
    return facts.guests((running,))[0].rss_kib


def test_what_the_kernel_offers_is_told_and_what_it_lacks_is_none(tmp_path: Path) -> None:
    facts = ProcFacts(FakeClock(), sys_ksm=str(tmp_path))
    assert (facts.ksm_counter("run"), facts.advisor_mode(), facts.general_profit_bytes()) == (None, None, None)
    (tmp_path / "run").write_text("2\n", encoding="ascii")
    (tmp_path / "advisor_mode").write_bytes(b"none [\xff]")
    (tmp_path / "general_profit").write_text("-64\n", encoding="ascii")
    assert (facts.ksm_counter("run"), facts.general_profit_bytes()) == (2, -64)
    assert facts.advisor_mode() not in (None, "none")
    (tmp_path / "run").write_bytes(b"\xff\xfe1")
    assert facts.ksm_counter("run") is None


def test_how_large_a_huge_page_is_the_kernel_tells_and_no_page_s_size(tmp_path: Path) -> None:
    """With pages of 64 KiB they are of 2 MiB on ppc64le, of 512 MiB on arm64; with 4 KiB of 1 MiB on s390x."""
    facts = ProcFacts(FakeClock(), sys_thp=str(tmp_path))
    assert facts.huge_page_kib() is None
    (tmp_path / "hpage_pmd_size").write_text("1048576\n", encoding="ascii")
    assert facts.huge_page_kib() == 1024


@pytest.mark.parametrize(
    ("balancing", "release", "hides"),
    [
        ("1", "6.1.0-57-cloud-amd64", True),
        ("1", "6.4.16-200.fc38.x86_64", True),
        ("0", "6.1.0-57-cloud-amd64", False),
        (None, "6.1.0-57-cloud-amd64", False),
        ("1", "6.12.118+deb13-amd64", False),
        ("1", "6.5.0-1-amd64", False),
    ],
)
def test_linux_6_1_to_6_4_that_balances_numa_nodes_hides_pages(
    proc: FakeProc, facts: ProcFacts, balancing: str | None, release: str, hides: bool
) -> None:
    folder = proc.folder / "sys" / "kernel"
    folder.mkdir(parents=True)
    (folder / "osrelease").write_text(f"{release}\n", encoding="ascii")
    if balancing is not None:
        (folder / "numa_balancing").write_text(f"{balancing}\n", encoding="ascii")
    assert facts.numa_balancing_hides_pages() is hides


def test_small_texts() -> None:
    assert [parse_choice(text) for text in ("[none] scan-time\n", "none [scan-time]\n", "")] == [
        "none",
        "scan-time",
        "",
    ]
    counted = [parse_vmstat(text, "cow_ksm") for text in ("xcow_ksm 1\ncow_ksm 2\n", "cow_ksm_3 3\n", "cow_ksm -1\n")]
    assert counted == [2, None, None]
    assert [parse_counter(text) for text in ("5\n", "-5", "", "5 6")] == [5, None, None, None]
    assert [parse_counter(text, is_signed=True) for text in ("-5\n", "5\n", "--5")] == [-5, 5, None]


def test_meminfo_is_read_as_the_kernel_writes_it() -> None:
    text = "MemTotal:       16000 kB\nMemFree:         4000 kB\nMemAvailable: 9000 kB\nBuffers: 10 kB\nCached: 20 kB\n"
    assert parse_meminfo(text) == HostMemory(
        total_kib=16000, free_kib=4000, buffers_kib=10, cached_kib=20, available_kib=9000
    )
    assert parse_meminfo(text.replace("MemAvailable", "Other")).available_kib is None
    assert parse_meminfo(f"{text}SwapFree: 500 kB\n").swap_free_kib == 500
    assert parse_meminfo(f"{text}SwapFree: 500 kB\n").swapped_kib is None
    swap = "SwapTotal: 900 kB\nSwapFree: 500 kB\nSwapCached: {} kB\n"
    swapped_kib = [parse_meminfo(text + swap.format(cached_kib)).swapped_kib for cached_kib in (0, 100, 500)]
    assert swapped_kib == [400, 300, 0], "what is in memory, too, is read without the disk"
    with pytest.raises(ValueError, match="Cached is missing"):
        parse_meminfo(text.replace("Cached", "Other"))


LINUX_6_1 = "ksm_rmap_items 20\n"
LINUX_6_4 = f"{LINUX_6_1}ksm_merging_pages 7\nksm_process_profit -100\n"
LINUX_6_6 = LINUX_6_4.replace("ksm_merging", "ksm_zero_pages 3\nksm_merging")
LINUX_6_18 = f"{LINUX_6_6}ksm_merge_any: no\nksm_mergeable: yes\n"
COUNTED = ProcessKsm(rmap_items=20, zero_pages=3, merging_pages=7, profit_bytes=-100)


@pytest.mark.parametrize(
    ("stat", "merging", "found"),
    [
        ("", "", ProcessKsm()),
        (LINUX_6_1, "7\n", ProcessKsm(rmap_items=20, merging_pages=7)),
        (LINUX_6_4, "7\n", replace(COUNTED, zero_pages=None)),
        (LINUX_6_6, "7\n", COUNTED),
        (LINUX_6_18, "8\n", replace(COUNTED, merges_any=False, is_mergeable=True)),
        ("ksm_zero_pages -1\nksm_mergeable: perhaps\n", "", ProcessKsm()),
    ],
)
def test_a_process_is_counted_as_far_as_its_kernel_does(stat: str, merging: str, found: ProcessKsm) -> None:
    assert parse_process_ksm(stat, merging) == found


def test_ksmds_time_is_a_whole_number_of_ticks_and_nothing_else_is(proc: FakeProc, facts: ProcFacts) -> None:
    user, system = 5, 25155
    assert user / 100 + system / 100 != (user + system) / 100
    proc.process(37, "ksmd")
    proc.write(37, "stat", stat(flags=KERNEL_THREAD, user=user, system=system))
    assert facts.ksmd_cpu_seconds() == (user + system) / 100
    proc.write(37, "stat", "37 (ksmd) S 2")
    assert facts.ksmd_cpu_seconds() is None


def test_ksmd_is_looked_for_again_where_it_was_not_found_and_when_it_is_gone(
    proc: FakeProc, facts: ProcFacts, clock: FakeClock
) -> None:
    proc.process(100, "ksmd")
    proc.hang(100, "cmdline")
    assert facts.ksmd_cpu_seconds() is None, "it only calls itself so"
    assert facts.trouble == ()
    proc.process(37, "ksmd")
    proc.write(37, "stat", stat(flags=KERNEL_THREAD, user=100))
    assert facts.ksmd_cpu_seconds() is None, "not in each pass"
    clock.now_s += KSMD_AGAIN_S
    assert facts.ksmd_cpu_seconds() == 1.0
    proc.process(37, "sleep")
    proc.process(38, "ksmd")
    proc.write(38, "stat", stat(flags=KERNEL_THREAD, user=200))
    assert facts.ksmd_cpu_seconds() == 2.0


def test_what_is_shared_of_a_guest_s_memory_cannot_merge(proc: FakeProc, facts: ProcFacts) -> None:
    proc.qemu(100, "A", mib=10, shared_mib=8)
    (seen,) = facts.guests((guest("A"),))
    assert (seen.rss_kib, seen.shared_kib, seen.mergeable_kib) == (10 * 1024, 8 * 1024, 2 * 1024)


@pytest.mark.parametrize("statm", ["", "0 0 0 0 0 0 0\n", "a b c\n"])
def test_a_guest_whose_memory_is_not_told_is_unread(proc: FakeProc, facts: ProcFacts, statm: str) -> None:
    proc.qemu(100, "A")
    assert rss_kib(facts, guest("A")) == 10 * 1024
    proc.write(100, "statm", statm)
    assert rss_kib(facts, guest("A")) is None


def test_without_proc_no_guest_is_read(facts: ProcFacts, proc: FakeProc) -> None:
    proc.end(1)
    assert rss_kib(facts, guest("A")) is None
    proc.folder.rmdir()
    assert rss_kib(facts, guest("A", domain_id=2)) is None
    assert facts.ksmd_cpu_seconds() is None


def test_strangers_that_hang_hide_no_guest(proc: FakeProc, clock: FakeClock) -> None:
    facts = ProcFacts(clock, wait=proc.wait)
    for pid in range(1000, 1000 + MAX_STUCK):
        proc.process(pid, "x", users=(1000,) * 4)
        proc.hang(pid, "ksm_stat")
        facts.other_processes_memory(())
        clock.now_s += READ_EVERY_S
    assert len(facts.trouble) == MAX_STUCK
    proc.qemu(100, "A")
    assert rss_kib(facts, guest("A")) == 10 * 1024


def test_a_guest_whose_process_hangs_is_left_out_of_a_look_and_named(proc: FakeProc, clock: FakeClock) -> None:
    facts = ProcFacts(clock, wait=proc.wait)
    running = (guest("A"), guest("B", domain_id=2))
    proc.qemu(100, "A")
    proc.qemu(101, "B")
    assert None not in [one.rss_kib for one in facts.guests(running)]
    proc.hang(100, "cmdline")
    hung, other = facts.processes(running)
    assert hung is None
    assert other is not None
    assert [text.split(" (")[0] for text in facts.trouble] == ["process 100"]
    assert None not in [one.rss_kib for one in facts.guests(running)], "a pass goes on"
