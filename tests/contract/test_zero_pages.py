"""The agent's own zero pages on the real kernel: they may merge while they are wanted, and are gone afterwards."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest_memory import mergeable_kib
from tests.lab.samples import SCANNING, passed
from virtksm.agent.zero_pages import ZeroPages
from virtksm.host.proc_files import AGENT
from virtksm.policy.adaptive.changes import OWN_PAGES
from virtksm.values import replace

pytestmark = pytest.mark.real
NAME = Path("/proc/self/comm")
ALONE = passed(SCANNING)


def follow(pages: ZeroPages, *, are_wanted: bool) -> None:
    pages.follow(replace(ALONE, decision=replace(ALONE.decision, wants_zero_pages=are_wanted)))


@pytest.fixture(autouse=True)
def own_name() -> Iterator[None]:
    """This process gets its name back."""
    before = NAME.read_bytes().rstrip()
    yield
    NAME.write_bytes(before)


def test_zero_pages_may_merge_while_they_are_wanted() -> None:
    pages = ZeroPages()
    follow(pages, are_wanted=False)
    assert mergeable_kib(os.getpid()) == []
    for _ in range(2):
        follow(pages, are_wanted=True)
        assert mergeable_kib(os.getpid()) == [OWN_PAGES * mmap.PAGESIZE // 1024]
    for _ in range(2):
        follow(pages, are_wanted=False)
        assert mergeable_kib(os.getpid()) == []


def test_a_process_that_has_zero_pages_is_known_by_its_name() -> None:
    pages = ZeroPages()
    follow(pages, are_wanted=True)
    assert NAME.read_bytes().rstrip() == AGENT
    follow(pages, are_wanted=False)
