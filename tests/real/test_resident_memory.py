"""What "a share of resident memory" rests on: the kernel counts merged pages as resident, and merged zero pages not."""

import psutil
import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PayloadGuest
from tests.lab.ksm import Ksm

pytestmark = pytest.mark.real

MIB = 1 << 20
COMMON_MIB, ZERO_MIB = 48, 32
SLACK_MIB = 4
"""What the interpreter may take or give back meanwhile."""


def resident_mib(process: MergeableProcess) -> float:
    return psutil.Process(process.pid).memory_info().rss / MIB


@pytest.mark.needs("ksm_zero_pages")
@pytest.mark.parametrize(("use_zero_pages", "leaves_mib"), [(0, 0), (1, ZERO_MIB)])
def test_of_all_that_is_merged_zero_pages_alone_are_no_longer_resident(
    ksm: Ksm, use_zero_pages: int, leaves_mib: int
) -> None:
    ksm.write(use_zero_pages=use_zero_pages)
    spec = PayloadGuest(name="", memory_mib=256, common_mib=COMMON_MIB, zero_mib=ZERO_MIB)
    with MergeableProcess(spec) as one, MergeableProcess(spec) as two:
        before = [resident_mib(process) for process in (one, two)]
        ksm.merge_all()
        merged_mib = ksm.read("pages_sharing") * 4 / 1024
        assert merged_mib >= COMMON_MIB - SLACK_MIB
        assert abs(ksm.read("ksm_zero_pages") * 4 / 1024 - 2 * leaves_mib) <= SLACK_MIB
        for process, was_mib in zip((one, two), before, strict=True):
            assert abs(was_mib - resident_mib(process) - leaves_mib) <= SLACK_MIB
