"""What the package promises in a machine with swap and systemd-oomd, whose guests rewrite what merges."""

from __future__ import annotations

import json
import re
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
SHORT = """\
[Slice]
MemoryHigh=120M
"""
KILLED = """\
[Slice]
MemoryHigh=60M
ManagedOOMMemoryPressure=kill
ManagedOOMMemoryPressureLimit=1%
"""
SOON = """\
[OOM]
DefaultMemoryPressureDurationSec=1s
"""


def limit_guests(slice_conf: str) -> None:
    path = Path("/etc/systemd/system/machine.slice.d/limit.conf")
    path.parent.mkdir(exist_ok=True)
    path.write_text(slice_conf, encoding="ascii")
    run("systemctl", "daemon-reload")


def swapped_bytes() -> int:
    told = json.loads(run("virtksm", "guests", "--json"))
    return sum(guest["swapped_bytes"] or 0 for guest in told["guests"])


def swaps() -> str:
    """guests that rewrite what merges, and are swapped out: it is told, passes go on, pages merge"""
    run("fallocate", "--length", "512M", str(SWAP))
    SWAP.chmod(0o600)
    run("mkswap", str(SWAP))
    run("swapon", str(SWAP))
    claim_verdict("swap", "PASS")
    for number in (1, 2, 3):
        start_guest(f"boot{number}", rewrite=50)
    wait(lambda: ksm("pages_sharing") > 0, "merged pages")
    limit_guests(SHORT)
    wait(swapped_bytes, "guests' memory to be swapped out")
    claim(retune()["sensed"]["guests"] == 3, "a guest was lost")
    claim("pass_failed" not in log(), "a pass has failed")
    return f"{swapped_bytes() >> 20} MiB are in swap"


def outlives_oomd() -> None:
    """systemd-oomd ends a guest: the agent hears of it, goes on with the others, and is not ended itself"""
    pid, seen = main_pid(), log()
    conf = Path("/etc/systemd/oomd.conf.d/soon.conf")
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(SOON, encoding="ascii")
    run("systemctl", "start", "systemd-oomd.service")
    limit_guests(KILLED)
    wait_logged(heard("stopped", r"boot\d"), seen)
    said = run("journalctl", "--boot", "--no-pager", "--unit=systemd-oomd.service")
    claim(re.search("Killed.*machine", said), said)
    limit_guests("[Slice]\n")
    claim(main_pid() == pid, "the agent was restarted")
    claim(retune()["sensed"]["guests"] == len(run("virsh", "list", "--name").split()), "a guest was lost")


CLAIMS: Claims = (installed, swaps, outlives_oomd)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
