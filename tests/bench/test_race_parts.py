"""The race's smaller parts: what is read of the kernel and of the neighbour, options, and when contenders act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.race.__main__ import QUICK, parse_options
from bench.race.contenders import FRUITLESS_SCANS, WARM_SCANS, AdvisorBoot, AdvisorLate, Clairvoyant, Contender, Moment
from bench.race.ground import Ground
from bench.race.linux import LinuxGuest
from bench.race.neighbour import parse_times
from bench.race.sampling import Sampler
from bench.race.works import list_works
from bench.steps import Start
from demo.guests import PayloadGuest
from tests.lab.ksm import Ksm

STARTED = Moment(all_started=True, all_settled=False)
SETTLED = Moment(all_started=True, all_settled=True)
TWO = tuple(Start(at_s=0.0, guest=PayloadGuest(name=name, memory_mib=16, common_mib=10, seed=1)) for name in "ab")
WORK = replace(list_works(quick=True)["storm"], steps=TWO)


@pytest.fixture
def ksm(tmp_path: Path) -> Ksm:
    ksm = Ksm(tmp_path)
    ksm.write(pages_sharing=10, pages_shared=2, full_scans=3, run=1, pages_to_scan=100, sleep_millisecs=20)
    return ksm


@pytest.fixture
def sampler(ksm: Ksm, tmp_path: Path) -> Callable[[], Sampler]:
    (tmp_path / "schedstat").write_text("11420687843 4337017962 46807\n")
    (tmp_path / "vmstat").write_text("ksm_swpin_copy 0\ncow_ksm 24370\n")
    return lambda: Sampler(0.0, ksm, tmp_path, tmp_path / "vmstat")


def test_a_sample_reads_everything(ksm: Ksm, sampler: Callable[[], Sampler]) -> None:
    sample = sampler().read(1.25)
    assert (sample.at_s, sample.pages_sharing, sample.cow_ksm, sample.is_idle) == (1.25, 10, 24370, False)
    assert sample.ksmd_cpu_s == pytest.approx(11.420688)
    ksm.write(pages_to_scan=0)
    assert sampler().read(0.0).is_idle
    ksm.write(pages_to_scan=100, run=2)
    assert sampler().read(0.0).is_idle


def test_what_goes_wrong_while_sampling_is_raised(ksm: Ksm, sampler: Callable[[], Sampler]) -> None:
    running = sampler().__enter__()
    (ksm.root / "pages_sharing").unlink()
    running._thread.join()
    with pytest.raises(OSError, match="pages_sharing"):
        running.__exit__()


def test_the_neighbours_times_count_from_the_first_start() -> None:
    assert parse_times("9.500 4.1\n10.000 4.2\n10.250 4.3\n10.5", 10.0) == [(0.0, 4.2), (0.25, 4.3)]


def test_a_linux_guest_has_its_initramfs_beside_its_kernel() -> None:
    guest = LinuxGuest(name="l", memory_mib=900, common_mib=80, own_mib=600)
    assert "<initrd>/somewhere/initramfs.cpio</initrd>" in guest.domain_xml(Path("/somewhere/vmlinuz"), None)
    assert "own=600" in guest.cmdline()


def test_options_default_to_everything_and_quick_to_little() -> None:
    full, quick = parse_options([]), parse_options(["--quick", "--works", "small, storm,small"])
    assert ("stop" in full.works, "ksmtuned" in full.contenders) == (True, True)
    assert (quick.works, quick.contenders) == (["small", "storm"], QUICK["--contenders"])


@pytest.mark.parametrize("arguments", [["--works", "storms"], ["--contenders", ""], ["extra"]])
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(arguments)
    assert "script/bench race: error" in capsys.readouterr().err


class FakeGround(Ground):
    """A ground without guests, whose KSM is a folder."""

    def __init__(self, ksm: Ksm) -> None:
        self.ksm = ksm


def begun(contender: Contender, ksm: Ksm) -> Contender:
    contender.begin(FakeGround(ksm), WORK)
    return contender


def test_the_clairvoyant_scans_from_the_last_settling_until_99_percent_is_merged(ksm: Ksm) -> None:
    contender = begun(Clairvoyant(), ksm)
    contender.act(STARTED)
    assert ksm.read("pages_to_scan") == 0
    for sharing, pages in ((10, 10_000), (2533, 10_000), (2534, 0), (0, 0)):  # of 2560
        ksm.write(pages_sharing=sharing)
        contender.act(SETTLED)
        assert ksm.read("pages_to_scan") == pages


def test_the_clairvoyant_gives_up_when_scans_bring_no_more(ksm: Ksm) -> None:
    contender = begun(Clairvoyant(), ksm)
    contender.act(SETTLED)
    for scans, pages in ((5, 10_000), (5 + FRUITLESS_SCANS, 10_000), (6 + FRUITLESS_SCANS, 0)):
        ksm.write(pages_sharing=1000, full_scans=scans)
        contender.act(SETTLED)
        assert ksm.read("pages_to_scan") == pages


@dataclass
class FakeProcess:
    spec: PayloadGuest
    has_ended: bool = False

    def end(self) -> None:
        self.has_ended = True


def test_the_advisor_of_boot_is_ready_once_it_has_left_its_first_scans_behind(
    ksm: Ksm, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[FakeProcess] = []

    def start(spec: PayloadGuest) -> FakeProcess:
        processes.append(FakeProcess(spec))
        return processes[-1]

    monkeypatch.setattr("bench.race.contenders.MergeableProcess", start)
    contender = begun(AdvisorBoot(), ksm)
    assert (ksm.root / "advisor_mode").read_text() == "scan-time"
    was_ready = contender.is_ready
    ksm.write(full_scans=3 + WARM_SCANS)
    assert (was_ready, contender.is_ready) == (False, True)
    assert [process.has_ended for process in processes] == [True]


def test_the_late_advisor_waits_for_the_last_start_and_is_switched_on_once(ksm: Ksm) -> None:
    mode = ksm.root / "advisor_mode"
    contender = begun(AdvisorLate(), ksm)
    contender.act(Moment(all_started=False, all_settled=False))
    assert not mode.exists()
    contender.act(STARTED)
    assert mode.read_text() == "scan-time"
    mode.unlink()
    contender.act(SETTLED)
    assert not mode.exists()
