"""The laboratory itself: payload guests are exact to the page, and the private libvirtd is what it says."""

import os
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadFailed, PayloadGuest, wait_settled
from tests.lab.fixtures import REPO, GuestFactory, RunningGuest
from tests.lab.guest_memory import COMMON, DRIFTED, OWN, page_identity, payload_pages
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, KsmState, wait_until
from virtksm.values import replace

pytestmark = pytest.mark.real

# An image of this module's own: its common pages never merge with those of guests that others run meanwhile.
IMAGE = 20_260_002


def pages_of(running: RunningGuest, mib: int) -> list[bytes]:
    return list(payload_pages(running.pid, memory_mib=running.spec.memory_mib, pages=mib * PAGES_PER_MIB))


def test_a_guest_holds_the_pages_that_its_command_line_says_rewrites_them_and_grows(guest: GuestFactory) -> None:
    spec = PayloadGuest(name="content", memory_mib=24, common_mib=4, zero_mib=3, own_mib=5, seed=17, image=IMAGE)
    pages = pages_of(guest(spec), 12)
    kinds = Counter(page_identity(page)[2:] if any(page) else "zero" for page in pages)
    assert kinds == {(IMAGE, COMMON): 4 * PAGES_PER_MIB, "zero": 3 * PAGES_PER_MIB, (17, OWN): 5 * PAGES_PER_MIB}
    assert len(set(pages)) == 9 * PAGES_PER_MIB + 1

    own = guest(PayloadGuest(name="rewrite", memory_mib=16, common_mib=1, own_mib=2, seed=3, rewrite_per_s=400))
    wait_until(lambda: sum(page_identity(page)[1] for page in pages_of(own, 3)) >= 800, HANG_S, "800 rewritten pages")
    assert {page_identity(page)[1] for page in pages_of(own, 1)} == {0}, "common pages are left alone"

    in_step = PayloadGuest(name="", memory_mib=16, common_mib=2, image=IMAGE, rewrite_common_per_s=256)
    one, other = (guest(replace(in_step, name=name)) for name in ("thrash1", "thrash2"))

    def equal_and_new() -> bool:
        pairs = zip(pages_of(one, 2), pages_of(other, 2), strict=True)
        return sum(page == twin and page_identity(page)[1] > 0 for page, twin in pairs) >= PAGES_PER_MIB

    wait_until(equal_and_new, HANG_S, "256 pages rewritten to the same content in both")

    grows = guest(PayloadGuest(name="grow", memory_mib=16, own_mib=1, seed=4, grow_mib_per_min=240))
    wait_until(lambda: all(any(page) for page in pages_of(grows, 13)), HANG_S, "13 MiB to fill")
    assert grows.domain.isActive() == 1
    later = PayloadGuest(
        name="later", memory_mib=16, own_mib=1, seed=4, grow_mib_per_min=240, grow_after_s=1, grow_zero_mib=5
    )
    grown = guest(later)
    wait_until(lambda: any(pages_of(grown, 13)[-1]), HANG_S, "the last of 13 MiB")
    kinds = Counter(page_identity(page)[2:] if any(page) else "zero" for page in pages_of(grown, 13))
    assert kinds == {(4, OWN): 8 * PAGES_PER_MIB, "zero": 5 * PAGES_PER_MIB}


def test_what_drifts_is_equal_in_all_guests_and_goes_on_in_turn(guest: GuestFactory) -> None:
    spec = PayloadGuest(
        name="", memory_mib=16, own_mib=5, drift_mib=3, drift_s=1, drift_after_s=1, drift_again_s=3, seed=1
    )
    one, other = guest.together(*(replace(spec, name=f"drift{seed}", seed=seed) for seed in (1, 2)))

    def both_generations() -> bool:
        pages = pages_of(one, 5)
        generations = Counter(page_identity(page)[1:] for page in pages)
        return pages == pages_of(other, 5) and generations == {
            (2, 0, DRIFTED): PAGES_PER_MIB,
            (1, 0, DRIFTED): 4 * PAGES_PER_MIB,
        }

    wait_until(both_generations, HANG_S, "6 MiB in turn over 5")


def test_a_guest_can_reboot_and_refuses_what_it_does_not_understand(guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="reboots", memory_mib=16, own_mib=1, reboot_after_s=1))
    wait_settled(running.console, HANG_S, times=3)
    assert running.domain.isActive() == 1
    with pytest.raises(PayloadFailed, match="bad or too large number: slow=100001"):
        guest(PayloadGuest(name="fast", memory_mib=16, slow_mib_per_s=100_001))


USES_LIBVIRTD = """
import sys, time
from pathlib import Path
from demo.guests import PayloadGuest
from tests.lab.fixtures import QEMU_CACHE, GuestFactory
from tests.lab.libvirtd import PrivateLibvirtd

daemon = PrivateLibvirtd(cache=QEMU_CACHE)
daemon.start()
GuestFactory(daemon, Path(sys.argv[1]))(PayloadGuest(name="left", memory_mib=16), paused=True)
daemon.pause()
print(*daemon.processes(), flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_has_started_ends_with_it(payload: Path) -> None:
    command = [sys.executable, "-c", USES_LIBVIRTD, str(payload)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        handles = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(handles) >= 2, "the daemon and a guest"
    for handle in handles:
        assert select.select([handle], [], [], HANG_S)[0], "it runs on"
        os.close(handle)


def test_ksm_is_restored_to_the_last_value(ksm: Ksm) -> None:
    ksm.write(run=0, pages_to_scan=123, sleep_millisecs=45)
    state = KsmState.save()
    ksm.write(run=1, pages_to_scan=7, sleep_millisecs=8, merge_across_nodes=1, use_zero_pages=1)
    for name, value in {"smart_scan": "0", "advisor_mode": "scan-time"}.items():
        if (ksm.root / name).exists():
            ksm.write(**{name: value})
    state.restore()
    assert KsmState.save() == state
    assert (ksm.read("run"), ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (0, 123, 45)


@pytest.mark.needs("smart_scan", "pages_scanned")
def test_ksmd_is_at_rest_once_all_is_merged(ksm: Ksm) -> None:
    ksm.write(smart_scan=0)
    with MergeableProcess(PayloadGuest(name="", memory_mib=80, image=IMAGE, own_mib=64)):
        for _ in range(8):  # without waiting for it, ksmd is in a batch most of the times
            ksm.merge_all()
            scanned = ksm.read("pages_scanned")
            time.sleep(0.1)
            assert ksm.read("pages_scanned") == scanned
