"""The benchmark of a full scan's passes: it runs a full scan over real processes, and counts."""

from __future__ import annotations

from pathlib import Path

from bench.ticks import measure


def test_it_times_passes_of_a_full_scan_and_leaves_no_process(tmp_path: Path) -> None:
    in_pass_s, heard_s = measure(3, 10, tmp_path)
    assert in_pass_s > 0
    assert heard_s > 0
