"""What the package promises in a machine with swap, whose guests rewrite what merges."""

from __future__ import annotations

import json
from pathlib import Path

from tests.boot.inside import Claims, claim, claim_verdict, ksm, log, report, retune, run, start_guest, wait
from tests.boot.machine import installed

SWAP = Path("/swap")
LIMIT = Path("/etc/systemd/system/machine.slice.d/limit.conf")
"""Of the guests' control group. No systemd-oomd: under pressure that of Debian 12 considered 0 groups for killing."""


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
    LIMIT.parent.mkdir()
    LIMIT.write_text("[Slice]\nMemoryHigh=120M\n", encoding="ascii")
    run("systemctl", "daemon-reload")
    wait(swapped_bytes, "guests' memory to be swapped out")
    claim(retune()["sensed"]["guests"] == 3, "a guest was lost")
    claim("pass_failed" not in log(), "a pass has failed")
    return f"{swapped_bytes() >> 20} MiB are in swap"


CLAIMS: Claims = (installed, swaps)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
