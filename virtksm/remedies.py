"""One remedy for one fact, wherever it is told: commands to type. Pure."""

from __future__ import annotations

SWITCH_UNIT = "virtksm-ksm.service"
SWITCH_ON = "echo 1 > /sys/kernel/mm/ksm/run"
STOP_KSMD = "echo 0 > /sys/kernel/mm/ksm/run"
UNMERGE = "echo 2 > /sys/kernel/mm/ksm/run"
START_AGENT = "systemctl start virtksm"
RUN_THERE = "run this command on that host"


def switch_ksm_on(*, has_unit: bool) -> str:
    """Return what switches KSM on; `has_unit`: this host has SWITCH_UNIT."""
    return f"systemctl restart {SWITCH_UNIT}" if has_unit else SWITCH_ON
