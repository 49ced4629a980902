"""The agent's own zero pages where there is no memory for them: tests/contract has what the kernel makes of them."""

import subprocess
import sys

WITHOUT_MEMORY = """
import mmap, resource
from tests.lab.samples import SCANNING, passed
from virtksm.agent.zero_pages import ZeroPages
from virtksm.values import replace
report = passed(SCANNING)
decision = replace(report.decision, wants_zero_pages=True)
pages = ZeroPages()
most, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (0, hard))
pages.follow(report.snapshot, decision)
failed = pages._held is None
resource.setrlimit(resource.RLIMIT_AS, (most, hard))
pages.follow(report.snapshot, decision)
print(failed, len(pages._held) // mmap.PAGESIZE)
"""


def test_without_memory_for_them_no_pass_fails_and_the_next_one_tries_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True 2\n", "")
