"""What the package promises in a machine with swap, whose guests rewrite what merges."""

import json
from pathlib import Path

from tests.boot.inside import (
    Claims,
    claim,
    claim_verdict,
    heard,
    ksm,
    log,
    main_pid,
    report,
    retune,
    run,
    start_guest,
    wait,
    wait_logged,
)
from tests.boot.machine import installed

SWAP = Path("/swap")
LIMIT = Path("/etc/systemd/system/machine.slice.d/limit.conf")
"""Of the guests' control group."""
OOMD = Path("/etc/systemd/oomd.conf.d/limit.conf")
GUESTS = ("boot1", "boot2", "boot3")


def swapped_bytes() -> int:
    told = json.loads(run("virtksm", "guests", "--json"))
    return sum(guest["swapped_bytes"] or 0 for guest in told["guests"])


def swaps() -> str:
    """guests that rewrite what merges, and are swapped out: it is told, passes go on, pages merge"""
    run("fallocate", "--length", "128M", str(SWAP))
    SWAP.chmod(0o600)
    run("mkswap", str(SWAP))
    run("swapon", str(SWAP))
    claim_verdict("swap", "PASS")
    for name in GUESTS:
        start_guest(name, rewrite=50)
    wait(lambda: ksm("pages_sharing") > 0, "merged pages")
    LIMIT.parent.mkdir()
    LIMIT.write_text("[Slice]\nMemoryHigh=120M\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    wait(swapped_bytes, "guests' memory to be swapped out")
    claim(retune()["sensed"]["guests"] == 3, "a guest was lost")
    claim("pass_failed" not in log(), "a pass has failed")
    return f"{swapped_bytes() >> 20} MiB are in swap"


def running() -> set[str]:
    return set(run("virsh", "list", "--name").split())


def loses_a_guest() -> str:
    """systemd-oomd, which watches machine.slice, ends guests and not the agent; that makes a pass without them"""
    seen, pid = log(), main_pid()
    OOMD.parent.mkdir()
    OOMD.write_text("[OOM]\nSwapUsedLimit=1%\n", encoding="ascii")
    LIMIT.write_text("[Slice]\nMemoryHigh=80M\nManagedOOMSwap=kill\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    # It kills a group without children, or one that is to be killed as one: of a guest's, which has threaded children
    # without a memory controller, it considers none. systemd 252 has no setting for it, and a reload takes it back.
    for group in Path("/sys/fs/cgroup/machine.slice").glob("*.scope/memory.oom.group"):
        group.write_text("1", encoding="ascii")
    run("systemctl", "restart", "systemd-oomd.service")
    wait(lambda: running() != {*GUESTS}, "systemd-oomd to end a guest")
    told = run("oomctl")
    run("systemctl", "stop", "systemd-oomd.service")
    claim("/machine.slice" in told, told)
    lost = sorted({*GUESTS} - running())
    wait_logged(heard("stopped", lost[0]), seen)
    wait(lambda: retune()["sensed"]["guests"] == len(running()), "a pass without them")
    claim(main_pid() == pid, "the agent was ended, too")
    claim("pass_failed" not in log()[len(seen) :], "a pass has failed")
    return f"{', '.join(lost)} ended"


CLAIMS: Claims = (installed, swaps, loses_a_guest)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
