"""The agent's log events (past tense, one canonical `pass_completed` a pass) and systemd's status line.

Each event is a sentence for people (`message`) and the facts behind it. Repeats are not news: a failure that stays the
same is logged once, and again when it changes or ends.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from virtksm.agent.metrics.counters import Tally
from virtksm.errors import ConfigError, Unforeseen, VirtksmError
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.log_setup import get_logger
from virtksm.model.decision import EVALUATING_ONLY, Trigger, Triggers
from virtksm.model.report import HELD, KEEP_OUT, Outcome, PassReport, RestoreReport
from virtksm.model.snapshot import Settings
from virtksm.text import format_kib

STATUS_S = 10.0
"""A routine pass changes systemd's status line no sooner: each change wakes PID 1 and its listeners."""
MAX_CRASHES = 100
"""So many different ones are remembered as logged."""
MAX_OF_A_TRACEBACK = 8_000
MAX_OF_AN_OP = 60
WELL = (Outcome.APPLIED, Outcome.UNCHANGED)
STAYS = "the old configuration stays in force"
BUG = "this is a fault of virtksm: please report it with these lines; the agent goes on"

Log = Callable[..., object]
"""structlog's way to log at one level."""


class Reporter:
    """Turns what happens into log events and status lines, and counts it in its `tally`."""

    def __init__(self, notifier: Notifier) -> None:
        self._log: Any = get_logger()
        self._notifier = notifier
        self._connect_error: str | None = None
        self._failures: dict[str, str] = {}
        """The error that each event was logged with last, until what failed goes well again."""
        self._warnings: list[str] = []
        self._exposed: set[str] = set()
        self._crashes: set[str] = set()
        self._is_unheard = False
        self._status_s = -STATUS_S
        self._heard: list[str] = []
        """Events since the last pass, of which one alone is named as the pass's cause."""
        self.tally = Tally()

    def ready(self, version: str, uri: str) -> None:
        self._log.info("agent_started", message=f"virtksm {version} started for {uri}", version=version, uri=uri)
        self._notifier.send(READY="1", STATUS=f"connecting to {uri}")

    def event(self, event: DomainEvent) -> None:
        """Log an event; one that a guest causes by itself is logged at level debug, however many it causes."""
        log = self._log.debug if event.trigger in EVALUATING_ONLY else self._log.info
        what = f"{event.guest} {event.trigger.value.replace('_', ' ')}"
        self._heard = [*self._heard[-1:], what]
        message = f"{what} ({event.detail})" if event.detail else what
        log("event_received", message=message, trigger=event.trigger.value, guest=event.guest, detail=event.detail)

    def connected(self, uri: str, unheard: Sequence[str] = (), *, is_local: bool) -> None:
        """Report a connection; `unheard` are the events that this libvirt does not offer."""
        self._connect_error = None
        self._failures.pop("dirty_rates_unknown", None)
        self.tally.connected()
        source = "local" if is_local else "libvirt"
        lacks = f", which does not tell of {', '.join(unheard)}" if unheard else ""
        self._log.info("libvirt_connected", message=f"connected to {uri}{lacks}", uri=uri, source=source)
        self._notifier.send(STATUS=f"connected to {uri}")

    def connect_failed(self, error: VirtksmError, wait_s: float) -> None:
        if error.message != self._connect_error:
            self._connect_error = error.message
            self._complain("libvirt_unreachable", error, "libvirt is unreachable", retry_s=round(wait_s, 2))
            self._notifier.send(STATUS=f"libvirt unreachable: {error.message}")

    def why_unlinked(self) -> str:
        return self._connect_error or "the agent is not connected to libvirt"

    @property
    def trouble(self) -> str | None:
        """Why the last attempt to connect, or else the last pass, failed; None if it did not."""
        return self._connect_error or self._failures.get("pass_failed")

    def disconnected(self, reason: str) -> None:
        self.tally.disconnected()
        text = f"libvirt disconnected ({reason}), reconnecting"
        self._log.warning("libvirt_disconnected", message=text, reason=reason)
        self._notifier.send(STATUS=text)

    def passed(self, report: PassReport, heard_s: float | None, ended_s: float, *, is_news: bool) -> None:
        """Report one completed pass; `heard_s` is when its first trigger came (CLOCK_MONOTONIC)."""
        self._failures.pop("pass_failed", None)
        self.tally.passed(report, None if heard_s is None else ended_s - heard_s, time.time())
        for value in report.foreign:
            what = f"{value.parameter} is {value.found} in place of {value.ours}"
            self._advise("foreign_value_found", what, report.foreign_remedy, **value._asdict())
        if report.yields_now:
            remedy = "virtksm writes nothing until `virtksm retune` or a reload"
            self._advise("conflict_yielded", "yields to another program", remedy)
        if report.resumes_now:
            self._log.info("conflict_ended", message="the other program has stopped, virtksm sets KSM again")
        for error in report.refusals:
            about = {"parameter": error.parameter, "cause": error.cause.value}
            self._complain("settings_refused", error, f"{error.parameter} was refused", self._log.error, **about)
        logged = {*map(str, report.refusals), *report.exposures, HELD}
        before, self._warnings = self._warnings, [note for note in report.warnings if note not in logged]
        for note in self._warnings:
            if note not in before:
                self._log.warning("warning_raised", message=note, warning=note)
        log = self._log.info if is_news else self._log.debug
        heard, self._heard = self._heard, []
        log("pass_completed", message=pass_sentence(report, heard), **_canonical(report, heard_s, ended_s))
        if is_news or ended_s - self._status_s >= STATUS_S:
            self._status_s = ended_s
            self._notifier.send(STATUS=status_text(report))

    def pass_failed(self, error: VirtksmError, triggers: Triggers) -> None:
        self.tally.failed(triggers.names)
        self._log_change("pass_failed", error, "the pass failed", self._log.error, triggers=triggers.names)
        self._notifier.send(STATUS=f"pass failed: {error.message}")

    def pass_crashed(self, error: Exception, triggers: Triggers) -> None:
        self._failures["pass_failed"] = f"internal error: {_text(error)}"
        self.tally.failed(triggers.names)
        self._notifier.send(STATUS=f"pass failed: {self._failures['pass_failed']}")
        self._crashed("pass", "pass_crashed", error, triggers=triggers.names)

    def request_failed(self, op: str, error: Exception) -> None:
        self._crashed("request", "request_failed", error, op=op[:MAX_OF_AN_OP])

    def task_crashed(self, task: str, error: Exception) -> None:
        """Report that one of the agent's tasks met such an exception; it goes on."""
        self._crashed("task", "task_crashed", error, task=task)

    def _log_change(
        self, event: str, error: VirtksmError | None, what: str, log: Log | None = None, **about: object
    ) -> None:
        """Log a failure as `_complain`, at level debug as long as it stays the same; None: it has ended."""
        if error is None:
            self._failures.pop(event, None)
            return
        log = self._log.debug if self._is_same(event, error) else log
        self._complain(event, error, what, log, **about)

    def _is_same(self, event: str, error: VirtksmError) -> bool:
        """Tell whether a failure is the one that this event was logged with last; remember it."""
        before = self._failures.get(event)
        self._failures[event] = error.message
        return before == error.message

    def _complain(self, event: str, error: VirtksmError, what: str, log: Log | None = None, **about: object) -> None:
        """Log an error by `log`, as a warning by default; `what` begins its sentence."""
        log = log or self._log.warning
        log(event, message=f"{what}: {error}", **about, error=error.message, remedy=error.remedy)

    def _advise(self, event: str, what: str, remedy: str, **about: object) -> None:
        self._log.warning(event, message=f"{what}: {remedy}", **about, remedy=remedy)

    def _crashed(self, where: str, event: str, error: Exception, **about: object) -> None:
        """Log an exception with its traceback, once per text, and count it."""
        text = _text(error)
        log = self._log.debug if f"{event} {text}" in self._crashes else self._log.error
        if len(self._crashes) >= MAX_CRASHES:
            self._crashes.clear()
        self._crashes.add(f"{event} {text}")
        self.tally.crashes[where] += 1
        trace = "".join(traceback.format_exception(error))[-MAX_OF_A_TRACEBACK:]
        log(event, message=f"a {where} crashed: {text}: {BUG}", **about, error=text, traceback=trace, remedy=BUG)

    def events_heard(self, *, is_heard: bool) -> None:
        """Report whether libvirt's event loop runs; while it does not, the watchdog is not fed."""
        if not is_heard and not self._is_unheard:
            remedy = "systemd's watchdog starts the agent again; else restart it"
            message = f"libvirt's events are not heard any more: {remedy}"
            self._log.error("event_loop_stopped", message=message, remedy=remedy)
        self._is_unheard = not is_heard

    def switched(self, trigger: Trigger) -> None:
        self.tally.switched(is_off=trigger is Trigger.PAUSE)
        if trigger is Trigger.PAUSE:
            self._advise("paused", "paused", "virtksm scans again after `virtksm resume`")
        else:
            self._log.info("resumed", message="no longer paused")

    def guests_exposed(self, names: tuple[str, ...]) -> None:
        """Name the private guests that can merge, each once for as long as it can."""
        for name in names:
            if name not in self._exposed:
                self._advise("private_guest_exposed", f"private guest {name} can merge", KEEP_OUT, guest=name)
        self._exposed = set(names)
        self.tally.exposed = len(names)

    def groups_mixed(self, count: int) -> None:
        self.tally.mixed_groups = count

    def guest_switched(self, guest: str, *, merge: bool, why: str) -> None:
        event, does = ("guest_merging", "merges again") if merge else ("guest_unmerged", "was unmerged")
        self._log.info(event, message=f"guest {guest} {does}: {why}", guest=guest, why=why)
        self.tally.changed()

    def guests_not_switched(self, what: str, error: VirtksmError, *, is_news: bool) -> None:
        self._complain("guests_not_switched", error, what, self._log.warning if is_news else self._log.debug)

    def choices_unreadable(self, error: VirtksmError | None) -> None:
        self._log_change("guests_not_switched", error, "guests stay as they are")

    def dirty_rates_unknown(self, error: VirtksmError) -> None:
        log = self._log.debug if self._is_same("dirty_rates_unknown", error) else self._log.info
        message = f"how fast guests' memory changes is not measured: {error.message}"
        log("dirty_rates_unknown", message=message, error=error.message)

    def rewriting_unknown(self, error: VirtksmError | None) -> None:
        """Report why it is unknown which guests rewrite what merges; None: it is known."""
        self._log_change("rewriting_unknown", error, "which guests rewrite what merges is unknown")

    def guest_xml_unreadable(self, error: VirtksmError) -> None:
        if isinstance(error, Unforeseen):
            self.task_crashed("guest XML", error)
            return
        self._log_change("guest_xml_unreadable", error, "guests' XML cannot be read")

    def history_written(self, set_aside: str | None) -> None:
        self._failures.pop("history_failed", None)
        if set_aside is not None:
            what = f"the history is unusable and was set aside as {set_aside}"
            self._advise("history_set_aside", what, "a new one was begun; examine it, or remove it", file=set_aside)

    def history_failed(self, error: Exception) -> None:
        self.tally.history_failures += 1
        if not isinstance(error, VirtksmError):
            self.task_crashed("history", error)
            return
        self._log_change("history_failed", error, "the history cannot be kept")

    def metrics_trouble(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, VirtksmError):
            self.task_crashed("metrics", error)
            return
        self._log_change("metrics_unavailable", error, "there are no metrics")

    def config_rejected(self, error: ConfigError) -> None:
        self.tally.config_is_read = False
        for fault in error.faults:
            self._log.error(
                "config_rejected",
                message=f"{fault}; {STAYS}",
                file=fault.file,
                key=fault.key,
                problem=fault.problem,
                remedy=f"{fault.remedy}; {STAYS}",
            )

    def config_reloaded(self) -> None:
        self.tally.config_is_read = True
        self._log.info("config_reloaded", message="the configuration was read again")

    def poke_unavailable(self, error: VirtksmError) -> None:
        self._complain("poke_unavailable", error, "the qemu hook is not heard")

    def stopping(self) -> None:
        self._notifier.send(STOPPING="1", STATUS="stopping")

    def left(self, on_exit: str, report: RestoreReport) -> None:
        for error in report.refusals:
            log = self._log.error if error in report.failures else self._log.warning
            what = f"{error.parameter} was not given back"
            self._complain("restore_refused", error, what, log, parameter=error.parameter)
        for parameter in report.doubted:
            message = f"{parameter} gets the kernel's default, as its saved baseline is implausible"
            self._log.warning("baseline_doubted", message=message, parameter=parameter)
        is_restored = on_exit == "restore" and not report.paused
        done = "KSM's settings were given back" if is_restored else "ksmd is idle"
        self._log.info(
            "settings_restored" if is_restored else "ksmd_idled",
            message=f"{done}: {_rate(report.after)}",
            before=report.before.as_dict(),
            after=report.after.as_dict(),
            left=list(report.left),
        )

    def leaving_failed(self, error: VirtksmError) -> None:
        self._complain("settings_left", error, "KSM's settings stay as they are", self._log.error)


def _text(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def status_text(report: PassReport) -> str:
    """Return one line about a pass: what is saved, for how many guests, why ksmd scans or idles."""
    run, guests = report.snapshot.ksm.run, len(report.snapshot.guests)
    ksm_off = "" if run in (None, 1) else f"KSM is off (run={run}); "
    outcome = "" if report.outcome in WELL else f" ({report.outcome.value})"
    saved = f"{format_kib(report.saved_kib)} saved, {guests} guest{'' if guests == 1 else 's'}"
    return f"{ksm_off}{saved}; {report.decision.reason.text}{outcome}"


def pass_sentence(report: PassReport, heard: Sequence[str] = ()) -> str:
    """Return a sentence about a pass: what it was for, the decision, and what ksmd does now.

    It names the event that was `heard`, where that was one alone.
    """
    asked = "" if report.triggers.kinds == {Trigger.TIMER} else ", ".join(report.triggers.names)
    cause = heard[0] if len(heard) == 1 else asked.replace("_", " ")
    decision = report.decision
    does = "" if decision.is_idle or report.outcome is Outcome.OBSERVED else f", {_rate(decision.target)}"
    outcome = "" if report.outcome in WELL else f" ({report.outcome.value})"
    return f"{cause}: {decision.reason.text}{does}{outcome}".removeprefix(": ")


def _rate(settings: Settings) -> str:
    return f"{settings.pages_to_scan} pages every {settings.sleep_millisecs} ms"


def _canonical(report: PassReport, heard_s: float | None, ended_s: float) -> dict[str, object]:
    fields = report.as_dict()
    for name in ("schema", "refused", "foreign", "warnings"):
        fields.pop(name)
    if heard_s is not None:
        fields["event_to_applied_ms"] = round((ended_s - heard_s) * 1000, 3)
    return fields
