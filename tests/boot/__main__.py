"""Boots a root that `script/test boot` or `install` has built, has claims tried in it, and prints what they print.

It holds the KSM lock meanwhile and gives every setting of KSM back, whatever happened inside. The root itself stays as
it was: the container writes into memory.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.boot import container
from tests.lab.ksm import KSM_ROOT, lent_ksm
from tests.lab.signals import end_in_order
from tests.tried import keep_claims

REPO = Path(__file__).resolve().parents[2]
INSIDE = "/run/checkout"
LIMIT_S = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Boot ROOT and try CLAIMS, a module; what they and the journal say is left in ROOT.out. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.boot", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="of script/test: its row in docs/tried.md")
    parser.add_argument("claims", metavar="CLAIMS")
    parser.add_argument("root", type=Path, metavar="ROOT")
    options = parser.parse_args(arguments)
    end_in_order()
    out = options.root.with_name(f"{options.root.name}.out").resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out / "report"
    report.write_text("", encoding="utf-8")
    with lent_ksm(), (out / "console").open("wb") as console:
        booting = command(options.claims, options.root, out)
        booted = subprocess.Popen(booting, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            return follow(booted, report)
        finally:
            container.end(booted)
            keep_claims(options.run, report)


def command(claims: str, root: Path, out: Path) -> list[str]:
    """Tell how the container is booted: with KSM's real files, the checkout and OUT in it."""
    return [
        *container.command("virtksm-boot", root),
        *("--bind", str(KSM_ROOT), "--bind", f"{out}:/run/out", "--bind-ro", f"{REPO}:{INSIDE}"),
        *("--bind-ro", f"{REPO}/tests/boot/claims@.service:/etc/systemd/system/claims@.service"),
        f"systemd.wants=claims@{claims}.service",
    ]


def follow(booted: subprocess.Popen[bytes], report: Path) -> int:
    """Print the report as it grows, until the container has ended; 1 where it does not end or has made no claim."""
    deadline = time.monotonic() + LIMIT_S
    with report.open(encoding="utf-8") as lines:
        claimed = 0
        while True:
            ended = booted.poll()  # before the last look: nothing is written after it
            for line in lines:
                claimed += 1
                sys.stdout.write(line)
                sys.stdout.flush()
            if ended is not None:
                return ended if claimed else 1
            if time.monotonic() > deadline:
                sys.stderr.write(f"the container has not ended within {LIMIT_S:g} s\n")
                return 1
            time.sleep(0.2)


if __name__ == "__main__":
    raise SystemExit(main())
