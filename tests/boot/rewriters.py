"""What `exclude_rewriters` promises, with what users have: the packaged user, huge pages and smart_scan.

smart_scan parts twins that rewrite, so that this may take several pairs of them: it is no run of CI's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.guests import PayloadGuest, wait_settled
from tests.boot.inside import (
    COMMON_MIB,
    LIMIT_S,
    Claims,
    NotSo,
    claim,
    doctor,
    guest_pid,
    is_idle,
    log,
    report,
    retune,
    run,
    start_guest,
    wait,
    wait_logged,
)
from tests.boot.units import (
    FINE_GRAINED,
    INSTALLED,
    MONITOR,
    installed,
    tunes,
    with_the_fine_rules,
    with_too_little,
    write_rules,
)

SEEKING = Path("/etc/virtksm/conf.d/60-rewriters.toml")
CALM, LOUD = ("boot1", "boot2"), ("loud1", "loud2")
LOUD_MIB = 24
REWRITES = PayloadGuest(name="", memory_mib=64, common_mib=LOUD_MIB, image=7, rewrite_common_per_s=1024)
BRIEF = PayloadGuest(name="", memory_mib=16, own_mib=1)
BESIDE_KIB = 4096
"""More than what of a guest merges beside its RAM."""
MOST_PAIRS, MOST_RESTS, MOST_SCANS, MOST_PASSES = 9, 6, 4, 30


def without_a_right_rewriters_stay() -> None:
    """exclude_rewriters without its drop-in: doctor, status and log name the right that lacks, and all else works"""
    polkit = INSTALLED / "conf" / "polkit"
    monitor, fine = ((polkit / name).read_text(encoding="utf-8") for name in (MONITOR, FINE_GRAINED))
    write_rules(monitor.replace("private-1", LOUD[0]).replace("private-2", LOUD[1]) + fine)
    SEEKING.write_text("adaptive.exclude_rewriters = true\n", encoding="utf-8")
    seen = log()
    run("systemctl", "reload", "virtksm.service")
    wait_logged("pass_completed.*reload", seen)
    rewrite_until(lambda _: "rewriting_unknown" in log()[len(seen) :], "the log to say what lacks")
    claim("CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in str(switched()["rewriters_unknown"]), switched())
    claim(doctor("virtksm")["rewriters"] == "WARN", "doctor knows")
    claim(retune()["outcome"] in ("unchanged", "applied"), retune())
    claim(judged() == {}, judged())
    end_loud()


def with_it_they_are_out() -> None:
    """with the drop-in and 40-virtksm-monitor.rules: they are unmerged for a day, and their neighbours stay merged"""
    text = (INSTALLED / "docs" / "security.md").read_text(encoding="utf-8")
    lines = text.partition("## Reading what is merged")[2].split("```")[1]
    [path] = re.findall(r"^# (/\S+)$", lines, re.MULTILINE)
    drop_in = Path(path)
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(lines, encoding="utf-8")
    run("systemctl", "daemon-reload")
    seen = log()
    run("systemctl", "restart", "virtksm.service")
    wait_logged("pass_completed.*connected", seen)
    out = rewrite_until(lambda report: report["decision"]["rewriters"], "them to be named")["decision"]["rewriters"]
    claim({*out} <= {*LOUD}, out)
    for name in out:
        wait_logged(f"guest_unmerged .*guest={name} .*rewrites what merges", seen)
    stir()
    merged = {name: merged_kib(guest_pid(name)) for name in (*CALM, *out)}
    claim(all(merged[name] < BESIDE_KIB for name in out), merged)
    claim(all(merged[name] > COMMON_MIB * 1024 * 9 // 10 for name in CALM), merged)
    shown = [json.loads(run("virtksm", "guest", "show", name, "--json")) for name in out]
    claim(all(one["mergeable_bytes"] < REWRITES.memory_mib << 20 for one in shown), shown)
    claim(
        [(one["name"], one["why"]) for one in switched()["unmerged"]] == [(name, "rewrites") for name in out],
        switched(),
    )
    claim(doctor("virtksm")["rewriters"] == "PASS", "doctor says otherwise")
    end_loud()


def rewrite_until(is_told: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
    """Have two guests rewrite what has merged, rest after rest of ksmd, until a pass's report tells.

    smart_scan skips what was rewritten. Old twins may be skipped in different full scans, and merge no more: then two
    others begin.
    """
    for _ in range(MOST_PAIRS):
        start_loud()
        for _ in range(MOST_RESTS):
            if not rewrite_once():
                break
            before = judged()
            for _ in range(MOST_PASSES):
                report = retune()
                if is_told(report):
                    return report
                if judged() != before:
                    break
        end_loud()
    raise NotSo(f"waited for {MOST_PAIRS} pairs of guests in vain for {what}")


def start_loud() -> None:
    """Start the guests that rewrite, and have them stand still."""
    for name in LOUD:
        console = Path(f"/run/{name}.console")
        console.unlink(missing_ok=True)
        start_guest(name, REWRITES, console)
    for name in LOUD:
        wait_settled(Path(f"/run/{name}.console"), LIMIT_S)
        run("virsh", "suspend", name)


def end_loud() -> None:
    for name in LOUD:
        run("virsh", "destroy", name)


def rewrite_once() -> bool:
    """Have them rewrite what has merged, and stand still before and after that; False where it does not merge."""
    pids = list(map(guest_pid, LOUD))
    for _ in range(MOST_SCANS):
        stir()
        if all(merged_kib(pid) * 2 > LOUD_MIB * 1024 for pid in pids):
            break
    else:
        return False
    for name in LOUD:
        run("virsh", "resume", name)
    wait(lambda: all(merged_kib(pid) * 3 < LOUD_MIB * 1024 for pid in pids), "them to rewrite what has merged")
    for name in LOUD:
        run("virsh", "suspend", name)
    return True


def stir() -> None:
    """Have all memory scanned: a guest comes and goes."""
    start_guest("brief", BRIEF)
    retune()
    run("virsh", "destroy", "brief")
    retune()
    wait(is_idle, "being idle")


def switched() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run("virtksm", "status", "--json"))["switched"]
    return told


def judged() -> dict[str, object]:
    """Return how often in a row each guest has rewritten what had merged, or when it is to be in again."""
    state = json.loads(Path("/run/virtksm/agent/local.json").read_text(encoding="utf-8"))["policy_state"]
    return {**{key: one["times"] for key, one in state["watched"].items()}, **state["rewriters"]}


def merged_kib(pid: int) -> int:
    [kib] = re.findall(r"^KSM: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"), re.MULTILINE)
    return int(kib)


CLAIMS: Claims = (
    installed,
    tunes,
    with_too_little,
    with_the_fine_rules,
    without_a_right_rewriters_stay,
    with_it_they_are_out,
)

if __name__ == "__main__":
    raise SystemExit(report(CLAIMS))
