"""When the agent takes zero pages of its own, and takes new ones: tests/contract has what the kernel makes of them."""

import subprocess
import sys

from tests.lab.samples import SCANNING, passed
from virtksm.agent.zero_pages import ZeroPages
from virtksm.values import replace

WITHOUT_MEMORY = """
import mmap, resource
from tests.lab.samples import SCANNING, passed
from virtksm.agent.zero_pages import ZeroPages
from virtksm.values import replace
report = passed(SCANNING)
report = replace(report, decision=replace(report.decision, wants_zero_pages=True))
pages = ZeroPages()
most, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (0, hard))
pages.follow(report)
failed = pages._held is None
resource.setrlimit(resource.RLIMIT_AS, (most, hard))
pages.follow(report)
print(failed, len(pages._held) // mmap.PAGESIZE)
"""


def test_without_memory_for_them_no_pass_fails_and_the_next_one_tries_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True 2\n", "")


def test_once_they_have_merged_into_the_kernel_s_own_and_are_not_to_any_more_they_are_taken_anew() -> None:
    """KSM passes over the kernel's own zero page, so no guest's zero pages would meet a twin again."""
    report, settings = passed(SCANNING), {"use_zero_pages": 0}
    wanted = replace(report, decision=replace(report.decision, wants_zero_pages=True))
    pages, held = ZeroPages(settings.get), []
    for value in (0, 1, 1, 0, 0):
        settings["use_zero_pages"] = value
        pages.follow(wanted)
        held.append(pages._held)
    assert [one is held[0] for one in held] == [True, True, True, False, False]
    assert held[3] is held[4] is not None
    pages.follow(report)
    assert not pages.are_held
