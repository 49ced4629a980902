"""The demonstration's live view: turns the agent's own log events into lines for people, and counts them.

It is structlog's last processor, so the demonstration sees exactly the log of production. Prints to one stream.
"""

import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from virtksm.log_setup import DropEvent
from virtksm.text import printable

MIB = 1024 * 1024
UNITS = {"pages_to_scan": "pages", "sleep_millisecs": "ms", "merge_across_nodes": ""}


@dataclass(slots=True)
class LiveView:
    """Prints and counts. `began_s` and `now` are CLOCK_MONOTONIC seconds; `page_bytes` is the host's page size.

    `expected_bytes` are to be saved at least.
    """

    stream: TextIO
    page_bytes: int
    expected_bytes: int = 1
    now: Callable[[], float] = time.monotonic
    began_s: float = field(init=False)
    pages_sharing_before: int | None = None
    events: int = 0
    passes: int = 0
    applied: int = 0
    saved_bytes: int = 0
    max_saved_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began_s = self.now()

    def say(self, kind: str, text: str) -> None:
        """Print one line: seconds since the start, what it is, and the text."""
        print(f"{self.now() - self.began_s:6.1f} s  {kind:<8} {printable(text)}", file=self.stream, flush=True)

    def saw(self, pages_sharing: int | None) -> None:
        """Take a reading of pages_sharing.

        What was shared before does not count, until ksmd forgets it: pages of guests that ended count till then.
        """
        if pages_sharing is None:
            return
        before = pages_sharing if self.pages_sharing_before is None else self.pages_sharing_before
        self.pages_sharing_before = min(pages_sharing, before)
        self.saved_bytes = (pages_sharing - self.pages_sharing_before) * self.page_bytes
        self.max_saved_bytes = max(self.max_saved_bytes, self.saved_bytes)

    def render(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        """Be structlog's last processor: print this event for people, and drop it."""
        match event["event"]:
            case "event_received":
                self.events += 1
                self.say("event", f"{event['guest']} {event['trigger']} ({event['detail']})")
            case "pass_completed":
                self._pass(event)
            case "libvirt_connected":
                self.say("agent", f"connected to {event['uri']}, sensing from {event['source']} facts")
            case "settings_restored":
                self.say("agent", f"gave back {describe_changes(event['before'], event['after'])}")
            case "agent_started":
                self.say("agent", f"virtksm {event['version']} started")
            case name:
                text = " ".join(str(event[key]) for key in ("warning", "error", "remedy", "reason") if key in event)
                if event["level"] in {"warning", "error"}:
                    self.problems.append(f"{name}: {text}")
                self.say(event["level"], f"{name}: {text}")
        raise DropEvent

    def has_merged(self) -> bool:
        """Tell whether as much was saved as is expected."""
        return self.max_saved_bytes >= self.expected_bytes

    def verdict(self) -> list[str]:
        """Return what the demonstration failed to show; empty if nothing."""
        missing = []
        if self.events == 0:
            missing.append("no libvirt event was heard")
        if self.applied == 0:
            missing.append("no setting was applied")
        if not self.has_merged():
            missing.append(
                f"{self.max_saved_bytes / MIB:.0f} MiB were saved, not {self.expected_bytes / MIB:.0f} or more"
            )
        return missing

    def summary(self) -> str:
        """Return the last line."""
        return (
            f"{self.events} events heard, {self.passes} passes, settings applied {self.applied} times, "
            f"saved {self.max_saved_bytes / MIB:.0f} MiB"
        )

    def _pass(self, event: Mapping[str, Any]) -> None:
        self.passes += 1
        self.applied += bool(event["changed"])
        self.saw(event["sensed"]["pages_sharing"])
        self.say("pass", f"for {', '.join(event['triggers'])}: {event['decision']['reason']}")
        self.say("", f"{describe_changes(event['before'], event['after'])}; saved {self.saved_bytes / MIB:.1f} MiB")


def describe_changes(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> str:
    """Return "name old -> new unit" for what changed, or what the settings stay at."""
    changed = [
        f"{name} {before[name]} -> {after[name]} {unit}".rstrip()
        for name, unit in UNITS.items()
        if after[name] != before[name]
    ]
    stays = f"settings stay at {after['pages_to_scan']} pages, {after['sleep_millisecs']} ms"
    return ", ".join(changed) or stays
