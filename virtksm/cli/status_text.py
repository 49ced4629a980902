"""The answer to `virtksm status` as lines for people, from the same dictionary that --json prints. Pure.

Every line has a tone for terminals: "good", "warn", "bad", "dim" or none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from virtksm.cli.sparkline import ASCII, sparkline
from virtksm.text import format_kib, printable

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

    from virtksm.cli.terminal import Line

RECENT_S = 86_400.0


def status_lines(status: Mapping[str, Any], *, marks: str = ASCII) -> list[Line]:
    """Render a status; `marks` are those of the sparkline."""
    return [(tone, printable(f"{label:<9} {text}")) for label, tone, text in _lines(status, marks)]


def _lines(status: Mapping[str, Any], marks: str) -> Iterator[tuple[str, str, str]]:
    now, libvirt = status.get("now"), status["libvirt"]
    has_agent = status.get("agent", True)
    if has_agent:
        yield "agent", "", f"{status['uri']}, policy {status['policy']}, virtksm {status['version']}"
    else:
        yield (
            "agent",
            "warn",
            f"not running for {status['uri']} (systemctl start virtksm)",
        )
    yield "libvirt", "" if libvirt["answers"] else "bad", _libvirt_text(libvirt)
    if now is not None:
        yield from _now_lines(status, now, marks)
    if has_agent:
        yield from _pass_lines(status)
    if status.get("history_error"):
        yield "history", "warn", status["history_error"]
    yield from (("event", "", _event_text(event)) for event in status.get("events", ()))


def _now_lines(status: Mapping[str, Any], now: Mapping[str, Any], marks: str) -> Iterator[tuple[str, str, str]]:
    yield "ksm", *_ksm_text(now["ksm_run"], now["advisor_mode"], off=status.get("off") is True)
    if now["guests"] is None:
        yield "guests", "", "unknown"
    else:
        unread = f" ({now['guests_unread']} unread)" if now["guests_unread"] else ""
        yield "guests", "", f"{now['guests']}{unread}, {format_kib(now['committed_kib'])} resident"
    share = "" if now["saved_percent"] is None else f", {now['saved_percent']:.1f} % of guest memory"
    yield "saved", "good" if now["saved_kib"] else "", f"{format_kib(now['saved_kib'])}{share}"
    hour = status.get("saved_hour")
    if hour is not None and sum(level is not None for level in hour["saved_kib"]) > 1:
        top = format_kib(max(level for level in hour["saved_kib"] if level is not None))
        yield "last hour", "good", f"{sparkline(hour['saved_kib'][1::2], marks)} up to {top}"
    yield "ksmd", "", _ksmd_text(status.get("ksmd", {}), now["ksmd_cpu_seconds"])
    yield "settings", "", _settings_text(now["settings"])


def _ksm_text(run: int | None, advisor_mode: str | None, *, off: bool) -> tuple[str, str]:
    words = {None: "unknown, as libvirt does not report it", 0: "off (run=0)", 1: "on", 2: "off, unmerged (run=2)"}
    text = words.get(run, f"run={run}")
    if advisor_mode not in (None, "none"):
        text += f", and the kernel's advisor ({advisor_mode}) sets pages_to_scan"
    if off:
        return "warn", f"{text}; virtksm is paused, until `virtksm resume`"
    if run in (0, 2):
        return "warn", f"{text}: nothing merges; echo 1 > /sys/kernel/mm/ksm/run switches it on"
    return "", text


def _ksmd_text(ksmd: Mapping[str, Any], cpu_seconds: float | None) -> str:
    if cpu_seconds is None:
        return "CPU time unknown"
    total = f"{cpu_seconds:.1f} CPU-seconds since boot"
    if ksmd.get("core_percent") is None:
        return total
    return f"{ksmd['core_percent']:.1f} % of a core in the last {_duration(ksmd['over_s'])}; {total}"


def _settings_text(settings: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None) or "unknown"


def _pass_lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    last = status["last_pass"]
    if last is None:
        yield "last pass", "", "none yet"
    else:
        ago = f"{status['last_pass_ago_s'] or 0.0:.1f} s ago ({', '.join(last['triggers'])})"
        went_well = last["outcome"] in ("applied", "unchanged")
        yield "last pass", "" if went_well else "warn", f"{ago}: {last['outcome']}"
        yield "why", "", f"{last['decision']['reason']} (rule {last['decision']['rule']})"
    next_pass_s = status["next_pass_s"]
    yield "next pass", "", "none planned" if next_pass_s is None else f"in {next_pass_s:.1f} s"
    if status["stranded"]["possible"] is not False:
        yield "stranded", "bad", _stranded_text(status["stranded"])
    yield from (("warning", "warn", note) for note in (last or {}).get("warnings", ()))


def _event_text(event: Mapping[str, Any]) -> str:
    form = "%H:%M:%S" if time.time() - event["at_s"] < RECENT_S else "%Y-%m-%d %H:%M"
    detail = f" ({event['detail']})" if event["detail"] else ""
    return f"{time.strftime(form, time.localtime(event['at_s']))} {event['domain']} {event['kind']}{detail}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _libvirt_text(libvirt: Mapping[str, Any]) -> str:
    why = f" ({libvirt['error']})" if libvirt["error"] else ""
    if libvirt["answers"]:
        return f"answers{why}"
    if libvirt["silent_since"] is None or libvirt["silent_s"] is None:
        return f"not answering{why}"
    return (
        f"not answering since {libvirt['silent_since']} ({libvirt['silent_s']:.0f} s), "
        f"waiting for: {libvirt['waiting_for']}{why}"
    )


def _stranded_text(stranded: Mapping[str, Any]) -> str:
    if stranded["possible"] is None:
        return "unknown: no pass yet, and libvirt does not answer"
    if stranded["settings"] is None or stranded["worst_core_percent"] is None:
        return "possibly: the first pass has not returned; only libvirt can slow ksmd down"
    return (
        f"possibly: ksmd may scan {stranded['settings']['pages_to_scan']} pages every "
        f"{stranded['settings']['sleep_millisecs']} ms (up to {stranded['worst_core_percent']:.1f} % of a core) until "
        "libvirt answers"
    )
