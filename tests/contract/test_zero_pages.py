"""The agent's own zero pages on the real kernel: they may merge while they are wanted, and are gone afterwards."""

import mmap
import os

import pytest

from tests.lab.guest_memory import mergeable_kib
from virtksm.agent.zero_pages import COUNT, ZeroPages

pytestmark = pytest.mark.real


def test_zero_pages_may_merge_while_they_are_wanted() -> None:
    pages = ZeroPages()
    pages.follow(are_wanted=False)
    assert mergeable_kib(os.getpid()) == []
    for _ in range(2):
        pages.follow(are_wanted=True)
        assert mergeable_kib(os.getpid()) == [COUNT * mmap.PAGESIZE // 1024]
    for _ in range(2):
        pages.follow(are_wanted=False)
        assert mergeable_kib(os.getpid()) == []
