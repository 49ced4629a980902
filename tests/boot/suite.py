"""README's two commands in a fresh clone, on Debian 12's own kernel: the demonstration and the whole suite."""

import os
import re
import subprocess

from tests.boot.inside import CHECKOUT, REPORT, Claims, NotSo, report, run

CLONE = "/root/virtksm"
SLOWER = "20"
"""The two parts of the suite share the machine, and its guests are emulated twice."""


def told(command: str) -> list[str]:
    """Run a command in the clone and tell what it says as it comes; raises NotSo unless it succeeds."""
    environment = {**os.environ, "HOME": "/root", "SLOWER": SLOWER}
    with (
        REPORT.open("a", encoding="utf-8", buffering=1) as out,
        subprocess.Popen(
            [command], cwd=CLONE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running,
    ):
        lines = [line for line in running.stdout or () if out.write(f"    {line}")]
    if running.returncode != 0:
        raise NotSo(f"ended with {running.returncode}")
    return lines


def demonstrates() -> str:
    """script/demo shows real guests' pages merged"""
    return told("script/demo")[-1].strip()


def passes() -> str:
    """script/test passes"""
    [fuse] = CHECKOUT.glob("build/vm/*/fuse.ko")  # of the kernel's modules the machine has none
    run("insmod", str(fuse))
    return ", ".join(re.findall(r"\d+ passed", "".join(told("script/test"))))


CLAIMS: Claims = (demonstrates, passes)


if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
