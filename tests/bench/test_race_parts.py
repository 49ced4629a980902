"""The race's smaller parts: what is read of the kernel and of the neighbour, options, and when the clairvoyant ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.race.contenders import (
    FRUITLESS_SCANS,
    WARM_SCANS,
    AdvisorBoot,
    AdvisorLate,
    Clairvoyant,
    Contender,
    Moment,
)
from bench.race.ground import Ground
from bench.race.linux import LinuxGuest
from bench.race.neighbour import parse_times
from bench.race.options import QUICK_CONTENDERS, parse_options
from bench.race.sampling import Eyes, NoKsmd, parse_stat_cpu_ticks
from bench.race.steps import Work
from bench.steps import Start
from demo.guests import PayloadGuest
from tests.lab.ksm import Ksm

RUNNING = Moment(all_started=True, all_settled=False)
SETTLED = Moment(all_started=True, all_settled=True)
WORK = Work(
    name="made-up",
    told="two equal guests",
    steps=tuple(
        Start(at_s=0.0, guest=PayloadGuest(name=name, memory_mib=16, common_mib=10, seed=1)) for name in ("a", "b")
    ),
    length_s=60.0,
)


def write_ksm(root: Path, **values: int | str) -> None:
    for name, value in values.items():
        (root / name).write_text(f"{value}\n")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    ksm, proc = tmp_path / "ksm", tmp_path / "proc"
    ksm.mkdir()
    (proc / "37").mkdir(parents=True)
    (proc / "1").mkdir()
    write_ksm(
        ksm,
        pages_sharing=10,
        pages_shared=2,
        full_scans=3,
        pages_scanned=40,
        run=1,
        pages_to_scan=100,
        sleep_millisecs=20,
    )
    (proc / "1" / "comm").write_text("init\n")
    (proc / "37" / "comm").write_text("ksmd\n")
    (proc / "37" / "stat").write_text("37 (ksmd) S 2 0 0 0 -1 2097216 0 0 0 0 5 1141 0 0 25 5 1 0 26 0 0\n")
    (proc / "37" / "schedstat").write_text("11420687843 4337017962 46807\n")
    (proc / "vmstat").write_text("ksm_swpin_copy 0\ncow_ksm 24370\n")
    return ksm, proc


def test_a_sample_reads_everything(roots: tuple[Path, Path]) -> None:
    sample = Eyes(*roots).read(1.23456)

    assert (sample.at_s, sample.pages_sharing, sample.pages_scanned, sample.cow_ksm) == (1.235, 10, 40, 24370)
    assert sample.ksmd_cpu_s == pytest.approx(11.420688)
    assert not sample.is_idle


def test_what_an_older_kernel_lacks_is_none(roots: tuple[Path, Path]) -> None:
    ksm, proc = roots
    (ksm / "pages_scanned").unlink()
    (proc / "vmstat").write_text("nr_free_pages 5\n")
    (proc / "37" / "schedstat").unlink()

    sample = Eyes(ksm, proc).read(0.0)

    assert (sample.pages_scanned, sample.pages_skipped, sample.cow_ksm) == (None, None, None)
    assert sample.ksmd_cpu_s == pytest.approx(11.46, rel=0.1)  # in ticks


@pytest.mark.parametrize("values", [{"run": 0}, {"run": 2}, {"pages_to_scan": 0}])
def test_nothing_is_scanned(roots: tuple[Path, Path], values: dict[str, int]) -> None:
    write_ksm(roots[0], **values)

    assert Eyes(*roots).read(0.0).is_idle


def test_without_ksmd_to_see_there_is_nothing_to_measure(roots: tuple[Path, Path]) -> None:
    (roots[1] / "37" / "comm").write_text("kswapd0\n")

    with pytest.raises(NoKsmd):
        Eyes(*roots)


def test_a_process_name_may_hold_anything() -> None:
    assert parse_stat_cpu_ticks("1 (a) b (c) S 2 0 0 0 -1 1 0 0 0 0 5 7 0 0 25 5") == 12


def test_the_neighbours_times_count_from_the_first_start() -> None:
    assert parse_times("9.500 4.1\n10.000 4.2\n10.250 4.3\n10.5", 10.0) == [(0.0, 4.2), (0.25, 4.3)]


def test_a_linux_guest_has_its_initramfs_beside_its_kernel() -> None:
    guest = LinuxGuest(name="l", memory_mib=900, common_mib=80, own_mib=600)

    xml = guest.domain_xml(Path("/somewhere/vmlinuz"), None)

    assert "<initrd>/somewhere/initramfs.cpio</initrd>" in xml
    assert "own=600" in guest.cmdline()


def test_options_default_to_everything_and_quick_to_little() -> None:
    full, quick = parse_options([]), parse_options(["--quick"])

    assert ("stop" in full.works, "ksmtuned" in full.contenders, full.output.name) == (True, True, "race")
    assert (quick.works, quick.contenders) == (("storm", "twin"), QUICK_CONTENDERS)
    assert quick.output != full.output


def test_options_are_kept_in_the_order_given() -> None:
    assert parse_options(["--works", "small, storm,small"]).works == ("small", "storm")


@pytest.mark.parametrize("arguments", [["--works", "storms"], ["--contenders", ""], ["extra"]])
def test_wrong_options_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(arguments)
    assert "script/bench race: error" in capsys.readouterr().err


class FakeGround(Ground):
    """A ground without guests, whose KSM is a folder."""

    def __init__(self, root: Path) -> None:
        self.ksm = Ksm(root)


def begun(contender: Contender, root: Path) -> Contender:
    contender.begin(FakeGround(root), WORK)
    return contender


def read_settings(root: Path) -> tuple[str, str]:
    return (root / "pages_to_scan").read_text().strip(), (root / "sleep_millisecs").read_text().strip()


def test_the_clairvoyant_scans_from_the_last_settling_until_99_percent_is_merged(roots: tuple[Path, Path]) -> None:
    root = roots[0]
    contender = begun(Clairvoyant(), root)
    contender.act(RUNNING)
    assert read_settings(root)[0] == "0"

    contender.act(SETTLED)
    assert read_settings(root) == ("10000", "0")

    write_ksm(root, pages_sharing=2533)  # of 2560
    contender.act(SETTLED)
    assert read_settings(root)[0] == "10000"

    write_ksm(root, pages_sharing=2534)
    contender.act(SETTLED)
    contender.act(SETTLED)
    assert read_settings(root)[0] == "0"


def test_the_clairvoyant_gives_up_when_scans_bring_no_more(roots: tuple[Path, Path]) -> None:
    root = roots[0]
    contender = begun(Clairvoyant(), root)
    contender.act(SETTLED)

    write_ksm(root, pages_sharing=1000, full_scans=5)
    contender.act(SETTLED)
    write_ksm(root, full_scans=5 + FRUITLESS_SCANS)
    contender.act(SETTLED)
    assert read_settings(root)[0] == "10000"

    write_ksm(root, full_scans=6 + FRUITLESS_SCANS)
    contender.act(SETTLED)
    assert read_settings(root)[0] == "0"


@dataclass
class FakeProcess:
    spec: PayloadGuest
    has_ended: bool = False

    def end(self) -> None:
        self.has_ended = True


def test_the_advisor_of_boot_is_ready_once_it_has_left_its_first_scans_behind(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, processes = roots[0], []

    def start(spec: PayloadGuest) -> FakeProcess:
        processes.append(FakeProcess(spec))
        return processes[-1]

    monkeypatch.setattr("bench.race.contenders.MergeableProcess", start)
    contender = begun(AdvisorBoot(), root)
    assert (root / "advisor_mode").read_text() == "scan-time"
    was_ready = contender.is_ready
    write_ksm(root, full_scans=3 + WARM_SCANS)
    assert (was_ready, contender.is_ready) == (False, True)
    assert [process.has_ended for process in processes] == [True]
    contender.end()
    assert len(processes) == 1


def test_the_late_advisor_waits_for_the_last_start_and_is_switched_on_once(roots: tuple[Path, Path]) -> None:
    root = roots[0]
    mode = root / "advisor_mode"
    contender = begun(AdvisorLate(), root)

    contender.act(Moment(all_started=False, all_settled=False))
    assert not mode.exists()

    contender.act(RUNNING)
    assert mode.read_text() == "scan-time"
    mode.unlink()
    contender.act(SETTLED)
    assert not mode.exists()
