"""The agent's own zero pages on the real kernel: they may merge while they are wanted, and are gone afterwards."""

import mmap
import re
from pathlib import Path

import pytest

from virtksm.agent.zero_pages import COUNT, ZeroPages

pytestmark = pytest.mark.real


def mergeable_kib() -> list[int]:
    """Tell the resident memory of each of this process's mappings that may merge."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    mappings = re.findall(r"^Rss: +(\d+) kB$.*?^VmFlags:([^\n]*)$", text, re.MULTILINE | re.DOTALL)
    return [int(kib) for kib, flags in mappings if " mg" in flags]


def test_zero_pages_may_merge_while_they_are_wanted() -> None:
    pages = ZeroPages()
    pages.follow(are_wanted=False)
    assert mergeable_kib() == []
    for _ in range(2):
        pages.follow(are_wanted=True)
        assert mergeable_kib() == [COUNT * mmap.PAGESIZE // 1024]
    for _ in range(2):
        pages.follow(are_wanted=False)
        assert mergeable_kib() == []
