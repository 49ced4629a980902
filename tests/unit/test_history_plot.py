"""Pictures are drawn for real, as SVG that can be read: what is on them, from whom, and what is refused."""

import itertools
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.fakes import SAMPLE
from virtksm.errors import VirtksmError
from virtksm.history.plot import MAX_NAMES, draw, make_figure
from virtksm.history.samples import GuestEvent, Sample
from virtksm.values import replace

BEGIN_S = 1_790_000_000.0
PNG = b"\x89PNG\r\n\x1a\n"


def hour() -> list[Sample]:
    """Make an hour in which 300 MiB are saved after ten minutes."""
    before, after = (2, 0, 0.0), (3, 300 * 1024, 3.0)
    return [
        replace(SAMPLE, at_s=BEGIN_S + step * 10, guests=guests, saved_kib=saved_kib, ksmd_cpu_seconds=cpu_s)
        for step in range(360)
        for guests, saved_kib, cpu_s in [before if step < 60 else after]
    ]


def event(domain: str, after_s: float, kind: str = "started") -> GuestEvent:
    return GuestEvent(at_s=BEGIN_S + after_s, kind=kind, domain=domain, uuid="u")


def start_of(domain: str) -> GuestEvent:
    return event(domain, 600)


def comments(path: Path) -> str:
    """Return the texts of a picture: matplotlib draws glyphs, and writes each text before them as a comment."""
    return "\n".join(line.strip() for line in path.read_text().splitlines() if line.strip().startswith("<!--"))


def test_it_shows_savings_cpu_settings_and_guests_over_time_in_the_same_file_each_time(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg", "hour.png"):
        draw(hour(), [start_of("web1")], "qemu:///system, last 60m", tmp_path / name)
    shown = comments(tmp_path / "one.svg")
    for text in ("saved memory, MiB", "ksmd, % of one core", "pages_to_scan", "sleep_millisecs", "guests", "started"):
        assert f"<!-- {text} -->" in shown
    assert "<!-- web1 -->" in shown
    assert "<!-- qemu:///system, last 60m -->" in shown
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "hour.png").read_bytes().startswith(PNG)


def test_parts_of_what_is_saved_that_are_no_shared_pages_are_shown_where_there_are_any(tmp_path: Path) -> None:
    path, zero, freed = tmp_path / "hour.svg", "<!-- zero pages -->", "<!-- given back by split huge pages -->"
    without, some = hour(), hour()
    draw([replace(one, zero_kib=0, freed_kib=0) for one in without], [], "title", path)
    none = path.read_bytes()
    assert zero not in comments(path)
    assert freed not in comments(path)
    draw(without, [], "title", path)
    assert path.read_bytes() == none, "0 is as if it were not told"
    some[100:] = [replace(one, zero_kib=1024, freed_kib=2048) for one in some[100:]]
    del some[200:250]
    draw(some, [], "title", path)
    assert comments(path).count(zero) == comments(path).count(freed) == 1
    saved = make_figure(some, [], "title").axes[0]
    tops = [one.get_paths()[0].get_extents().y1 for one in saved.collections]
    assert tops == [300.0, 300.0, 1.0, 1.0, 3.0, 3.0], "in MiB, above one another, in two pieces each"
    draw([replace(one, freed_kib=0) for one in some], [], "title", path)
    assert zero in comments(path)
    assert freed not in comments(path)


def test_a_guests_name_is_no_formula_no_markup_and_no_control_character(tmp_path: Path) -> None:
    path, names = tmp_path / "hour.svg", ("$x^{2$", "\x1b[31mred\u202egnp", "--></svg><script>")
    draw(hour(), [event(name, 600 * at) for at, name in enumerate(names)], "".join(names), path)
    ET.parse(path)  # noqa: S314  # our own file, and it must be well-formed
    assert not set(path.read_text()) & {"\x1b", "\u202e"}
    assert "<script" not in path.read_text()


def test_names_at_the_same_time_stand_beside_each_other_and_too_many_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "hour.svg"
    draw(hour(), [start_of("web1"), event("web3", 1800), start_of("web2")], "title", path)
    assert "<!-- web1, web2 -->" in comments(path)
    assert "<!-- web3 -->" in comments(path)
    set_back = [*hour()[180:], *hour()[:180]]
    draw(set_back, [start_of("web1"), event("web3", 1800), start_of("web2")], "title", path)
    assert "<!-- web1, web2 -->" in comments(path), "also where the clock was set back"
    draw(hour(), [start_of(f"web{number}") for number in range(MAX_NAMES + 1)], "title", path)
    assert "<!-- started -->" in comments(path)
    assert "web1" not in comments(path)


@pytest.mark.parametrize(
    "events",
    [
        [event(f"guest-{number}", 3560 + number) for number in range(4)],
        [event(f"guest-with-a-long-name-{number}", number * 390) for number in range(MAX_NAMES)],
        [event("W" * 120, 1800), event("x" * 59, 3500)],
        [event(f"guest-{number}", number * 35, kind) for number, kind in enumerate(["started", "crashed"] * 50)],
    ],
    ids=["close together", "many", "very long", "a hundred"],
)
def test_names_stay_in_their_axes_and_apart_and_all_texts_in_the_picture(events: list[GuestEvent]) -> None:
    figure = make_figure(hour(), events, "/a/long/path" * 50)
    figure.draw_without_rendering()
    axes = figure.axes[-1]
    names = [(text, text.get_window_extent()) for text in axes.texts]
    assert bool(names) == (len(events) <= MAX_NAMES)
    for text, box in names:
        assert text.get_clip_on(), "what a font makes too long is cut off"
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert "W" in text.get_text() or axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1, text
    for (_, one), (_, other) in itertools.combinations(names, 2):
        assert not one.overlaps(other)
    whole = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert figure.bbox.x0 <= whole.x0 < whole.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= whole.y0 < whole.y1 <= figure.bbox.y1


def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "hour.svg"
    samples = [
        replace(SAMPLE, at_s=BEGIN_S + step, saved_kib=None, ksmd_cpu_seconds=None, pages_to_scan=None)
        for step in (0, 9)
    ]
    draw(samples, [], "title", path)
    assert "<!-- ksmd, % of one core -->" in comments(path)


def test_without_two_samples_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(VirtksmError, match="nothing to draw: 1 samples"):
        draw(hour()[:1], [], "title", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from tests.unit.test_history_plot import draw, hour\n"
        f"draw(hour(), [], 'title', Path({str(tmp_path / 'none.svg')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "VirtksmError: drawing needs matplotlib" in done.stderr
    assert "python3-matplotlib" in done.stderr
