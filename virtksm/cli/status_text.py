"""The answer to `virtksm status` as rows for people, from the same dictionary that --json prints. Pure, but for
the command that switches KSM on here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from virtksm.cli.layout import Row
from virtksm.errors import START_AGENT
from virtksm.text import format_kib, some_of

RECENT_S = 86_400.0
OUTCOMES = {"unchanged": "no change", "applied": "settings changed", "observed": "nothing is ever set"}
"""What a pass has come to where all is well."""
MAX_NAMED = 5
PARTS = ("pages_sharing", "ksm_zero_pages")
MEANS = ("by shared pages", "by zero pages", "given back by split huge pages")
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"
"""The marks of a curve, for terminals that show them and for others."""


def status_rows(status: Mapping[str, Any], *, marks: str = ASCII, verbose: bool = False) -> Iterator[Row]:
    """Yield the rows of a status; `marks` are those of the sparkline, `verbose` adds settings and the last pass."""
    now, agent = status.get("now"), status["agent"]
    if agent:
        version = f", virtksm {status['version']}" if verbose else ""
        doing = "observing, sets nothing" if status["policy"] == "observe" else f"running, policy {status['policy']}"
        yield "", "Agent", f"{doing}, {status['uri']}{version}"
    elif agent is None and now is not None and now["origin"] == "libvirt":
        yield "", "Agent", "libvirt does not tell whether one runs on another machine: ssh HOST virtksm status"
    elif agent is None:
        yield "warn", "Agent", "not for this user to ask: sudo virtksm status, or join the group of `status_group`"
    else:
        yield "warn", "Agent", f"not running for {status['uri']} ({START_AGENT})"
    yield _libvirt_row(status["libvirt"])
    if now is not None:
        yield from _now_rows(status, now, marks, verbose=verbose)
    if agent:
        yield from _pass_rows(status, verbose=verbose)
    if status["history_error"]:
        yield "warn", "History", status["history_error"]
    for number, event in enumerate(status["events"]):
        yield "", "" if number else "Events", _event_text(event)


def _libvirt_row(libvirt: Mapping[str, Any]) -> Row:
    why = f": {libvirt['error']}" if libvirt["error"] else ""
    if libvirt["answers"]:
        return "", "Libvirt", f"connected{why}"
    if libvirt["silent_s"] is None:
        return "bad", "Libvirt", f"not answering{why}"
    silent = f"not answering for {_duration(libvirt['silent_s'])}, waiting for {libvirt['waiting_for']}"
    return "bad", "Libvirt", f"{silent}{why}"


def _now_rows(status: Mapping[str, Any], now: Mapping[str, Any], marks: str, *, verbose: bool) -> Iterator[Row]:
    yield _ksm_row(status, now, marks)
    if now["guests"] is None:
        yield "", "Guests", "unknown"
    else:
        unread = f" ({now['guests_unread']} unread)" if now["guests_unread"] else ""
        yield "", "Guests", f"{now['guests']} running{unread}, {format_kib(now['committed_kib'])} resident"
    share = "" if now["saved_percent"] is None else f" ({now['saved_percent']:.1f} % of guest memory)"
    yield "good" if now["saved_kib"] else "", "Saved", f"{format_kib(now['saved_kib'])}{share}"
    if verbose:
        yield "", "", _saved_text(now)
    levels = [level for level in status["saved_hour"]["saved_kib"] if level is not None]
    if len(levels) > 1:
        curve = sparkline(status["saved_hour"]["saved_kib"][1::2], marks)
        yield "", "Last hour", f"{curve} up to {format_kib(max(levels))}"
    yield "", "ksmd", _ksmd_text(status["ksmd"])
    if verbose:
        settings = [f"{name} {value}" for name, value in now["settings"].items() if value is not None]
        yield "", "Settings", ", ".join(settings) or "unknown"


def _saved_text(now: Mapping[str, Any]) -> str:
    """Say what is saved by which means, as far as this kernel and connection tell."""
    shared, zero = (None if now[name] is None else now[name] * now["page_kib"] for name in PARTS)
    return parts_text(shared, zero, now["freed_kib"]) or "unknown"


def parts_text(*parts_kib: int | None) -> str:
    """Say what is saved by which means: shared pages, zero pages, split huge pages; None is left out."""
    return ", ".join(f"{format_kib(kib)} {how}" for kib, how in zip(parts_kib, MEANS, strict=True) if kib is not None)


def _ksm_row(status: Mapping[str, Any], now: Mapping[str, Any], marks: str) -> Row:
    """Say whether ksmd scans, is idle or paused, or KSM is off."""
    run, pages = now["ksm_run"], now["settings"]["pages_to_scan"]
    if run not in (None, 1):
        from virtksm.host.systemd import switch_on_here

        unmerged = ", everything is unmerged" if run == 2 else ""
        return "warn", "KSM", f"off (run={run}{unmerged}): nothing merges ({switch_on_here()})"
    full_scan, is_scanning = status["full_scan"], bool(pages)
    if now["advisor_mode"] not in (None, "none"):
        state = f"scanning as the kernel's advisor ({now['advisor_mode']}) says"
    elif is_scanning and full_scan is not None:
        state = f"scanning {_progress_text(full_scan, marks)}"
    elif is_scanning:
        state = f"scanning {pages} pages every {now['settings']['sleep_millisecs']} ms"
    else:
        state = "idle" if pages == 0 else "settings unknown"
    on = "on" if run == 1 else "libvirt does not tell whether it is on"
    if now["redhat_only_zero_pages"]:
        on += ", only for zero pages (redhat_only_zero_pages)"
    if status["paused"]:
        return "warn", "KSM", f"{on}, paused until `virtksm resume`{f'; still {state}' if is_scanning else ''}"
    return "", "KSM", f"{on}, {state}"


def _progress_text(full_scan: Mapping[str, Any], marks: str) -> str:
    total_kib, done_kib, left_s = full_scan["total_kib"], full_scan["done_kib"], full_scan["left_s"]
    if done_kib is None or not total_kib:
        return format_kib(total_kib)
    share = min(done_kib / total_kib, 1.0)
    left = "" if left_s is None else f", {_duration(max(left_s, 1))} left"
    return f"{progress_bar(share, marks)} {share * 100:.0f} % of {format_kib(total_kib)}{left}"


def _ksmd_text(ksmd: Mapping[str, Any]) -> str:
    if ksmd["cpu_seconds"] is None:
        return "CPU time unknown"
    total = f"{ksmd['cpu_seconds']:.1f} s CPU since boot"
    if ksmd["core_percent"] is None:
        return total
    return f"{ksmd['core_percent']:.1f} % of a core (last {_duration(ksmd['over_s'])}), {total}"


def _pass_rows(status: Mapping[str, Any], *, verbose: bool) -> Iterator[Row]:
    last, next_pass_s = status["last_pass"], status["next_pass_s"]
    if last is None:
        yield "", "Reason", "no pass yet"
    else:
        rule = f" (rule {last['decision']['rule']})" if verbose else ""
        yield "", "Reason", f"{last['decision']['reason']}{rule}"
        went_well = last["outcome"] in OUTCOMES
        if verbose or not went_well:
            ago = f"{_duration(status['last_pass_ago_s'] or 0.0)} ago ({', '.join(last['triggers'])})"
            outcome = OUTCOMES.get(last["outcome"], last["outcome"])
            yield "" if went_well else "warn", "Last pass", f"{ago}: {outcome}"
    yield "", "Next", "no pass is planned" if next_pass_s is None else f"pass in {_duration(next_pass_s)}"
    if status["stranded"]["possible"] is not False:
        yield "bad", "Warning", _stranded_text(status["stranded"])
    yield from (("warn", "Warning", note) for note in (last or {}).get("warnings", ()))
    switched = status["switched"] or {"unmerged": (), "failed": (), "rewriters_unknown": None}
    yield from (("warn", "Warning", one["message"]) for one in switched["failed"][:MAX_NAMED])
    if switched["rewriters_unknown"]:
        yield "warn", "Warning", f"which guests rewrite what merges is unknown: {switched['rewriters_unknown']}"
    if unmerged := [f"{one['name']}{_WHY.get(one['why'], '')}" for one in switched["unmerged"]]:
        yield "", "Unmerged", some_of(unmerged)


_WHY = {"command": " (by a command)", "rewrites": " (rewrites what merges, for a day)"}
"""Why a guest that is not private was unmerged."""


def _stranded_text(stranded: Mapping[str, Any]) -> str:
    most = stranded["worst_core_percent"]
    up_to = "" if most is None else f" (up to {most:.0f} % of a core)"
    return f"ksmd may keep scanning{up_to} until libvirt answers"


def _event_text(event: Mapping[str, Any]) -> str:
    form = "%H:%M:%S" if time.time() - event["at_s"] < RECENT_S else "%Y-%m-%d %H:%M"
    detail = f" ({event['detail']})" if event["detail"] else ""
    return f"{time.strftime(form, time.localtime(event['at_s']))} {event['domain']} {event['kind']}{detail}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def choose_marks(encoding: str | None, environ: Mapping[str, str]) -> str:
    """Return marks that a terminal can show: blocks if the stream's encoding and the locale know them, else ASCII."""
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environ.get(name))), "C")
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return ASCII if locale in ("C", "POSIX") else BLOCKS


def sparkline(values: Sequence[float | None], marks: str) -> str:
    """Return a mark for each value, its height between 0 and the greatest of all; a blank for None."""
    top = max((value for value in values if value is not None), default=0)
    steps = len(marks) - 1
    return "".join(
        " " if value is None else marks[round(steps * value / top) if top > 0 and value > 0 else 0] for value in values
    )


def progress_bar(share: float, marks: str, cells: int = 20) -> str:
    """Return a bar of which a share from 0 to 1 is filled."""
    filled, rest = ("█", "░") if marks == BLOCKS else ("#", "-")
    done = int(cells * share)
    return filled * done + rest * (cells - done)
