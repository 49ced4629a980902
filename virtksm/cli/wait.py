"""`virtksm wait`: returns once the backlog is scanned and ksmd is idle, for scripts and test laboratories.

It asks the agent for its status, twice a second, and libvirt for nothing:

1. The memory is settled when a pass says so that has begun after this command has: it has seen all guests that run.
   ksmd is idle then, and nothing is left that the policy would scan as things are. Where the policy only observes, it
   waits for the program that lets ksmd scan. An agent at rest is asked for a dry run once, or its timer would be waited
   for; who may only read its status waits.
2. While virtksm is paused or KSM is off nothing is scanned, so the waiting ends.
3. An agent that goes away is waited for. Without one at the beginning nobody knows the backlog: KSM's own files tell
   only whether it is off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from virtksm.cli.answers import DECISION, PASS, STATUS
from virtksm.cli.ask_agent import ask_serving, take_answer
from virtksm.cli.layout import print_result
from virtksm.cli.timespan import YEAR_S, timespan
from virtksm.errors import START_AGENT, ExitCode, VirtksmError
from virtksm.uri import is_local, named_uri

ASK_EVERY_S = 0.5
PASS_ASKED_FOR = {**PASS, "decision": {**DECISION, "numbers": {"memory_kib": int | None, "settling_kib": int | None}}}
ASKED_FOR = {**STATUS, "last_pass": (PASS_ASKED_FOR, None)}
SETTLED_RULES = {"adaptive": ("idle", "disengaged", "empty"), "ksmtuned": ("stop",), "observe": ("idle", "disengaged")}
"""By policy, the rules by which nothing is left to scan as things are."""
RESULTS = {
    "settled": (ExitCode.DONE, "Settled"),
    "timed_out": (ExitCode.TIMED_OUT, "Timed out"),
    "paused": (ExitCode.PAUSED, "Paused"),
    "ksm_off": (ExitCode.KSM_OFF, "KSM off"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settled", action="store_true", help="until the backlog is scanned and ksmd is idle (the default)"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", type=timespan(0, YEAR_S), help="give up after so long: 90s, 30m (default: never)"
    )


def run(options: argparse.Namespace) -> int:
    """Wait, and print how it ended; returns its exit code.

    Raises VirtksmError if no agent runs, or if it may not be asked.
    """
    from virtksm.cli.progress import Progress

    began_s = time.monotonic()

    def ask() -> dict[str, Any] | None:
        answer = ask_serving(options, {"op": "status"})
        return None if answer is None else take_answer(answer, "status", ASKED_FOR)

    def dry_run() -> dict[str, Any] | None:
        answer = ask_serving(options, {"op": "retune", "dry_run": True})
        return None if answer is None else take_answer(answer, "pass", PASS_ASKED_FOR)

    with Progress(is_wanted=not options.json) as progress:
        waiter = Waiter(ask, dry_run, lambda: _ksm_is_off(options.connect))
        while (result := waiter.look(time.monotonic() - began_s)) is None:
            waited_s = time.monotonic() - began_s
            if options.timeout is not None and waited_s >= options.timeout:
                result = "timed_out"
                break
            progress.show(f"waiting for {waited_s:.0f} s: {waiter.reason}")
            time.sleep(ASK_EVERY_S)
    code, label = RESULTS[result]
    values = {"result": result, "reason": waiter.reason, "waited_s": round(time.monotonic() - began_s, 3)}
    print_result(options, values, [("", label, waiter.reason)])
    return code


class Waiter:
    """What the agent has said so far. `ksm_is_off` asks the kernel.

    `ask` gives the agent's status, `dry_run` a pass that it would run now; None where none runs.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, Any] | None],
        dry_run: Callable[[], Mapping[str, Any] | None],
        ksm_is_off: Callable[[], bool],
    ) -> None:
        self._ask, self._dry_run, self._ksm_is_off = ask, dry_run, ksm_is_off
        self._has_agent = self._has_asked = False
        self.reason = ""

    def look(self, waited_s: float) -> str | None:
        """Ask once, `waited_s` after the beginning, and return how the waiting ends, None while it goes on.

        Raises VirtksmError while there has been no agent.
        """
        try:
            status = self._ask()
        except VirtksmError as error:
            if not self._has_agent:
                raise
            self.reason = f"the agent does not answer: {error.message}"
            return None
        if status is None and not self._has_agent:
            if self._ksm_is_off():
                self.reason = "KSM's switch (run) is not 1, and no agent runs"
                return "ksm_off"
            raise VirtksmError("no agent runs, and only an agent knows the backlog", remedy=START_AGENT)
        self._has_agent = True
        if status is None:
            self.reason = "the agent has ended"
            return None
        result, self.reason = judge(status, waited_s)
        if result is None and not self._has_asked and _is_settled(status["last_pass"]):
            self._has_asked = True
            with suppress(VirtksmError):  # this user may only read, or libvirt does not answer
                would = self._dry_run()
                if _is_settled(would):
                    result, self.reason = "settled", would["decision"]["reason"]
        return result


def judge(status: Mapping[str, Any], waited_s: float) -> tuple[str | None, str]:
    """Return how the waiting ends by a status, None while it goes on, and why. Pure."""
    now, last = status["now"], status["last_pass"]
    if now is not None and now["ksm_run"] not in (None, 1):
        return "ksm_off", f"KSM's switch (run) is {now['ksm_run']}"
    if last is None:
        return None, status["libvirt"]["error"] or "the agent has made no pass yet"
    decision = last["decision"]
    if status["paused"]:
        return "paused", decision["reason"]
    began_ago_s = (status["last_pass_ago_s"] or 0.0) + last["duration_ms"] / 1000
    if not _is_settled(last):
        return None, decision["reason"]
    if began_ago_s > waited_s:
        return None, f"no pass since this command began; by the last one {decision['reason']}"
    return "settled", decision["reason"]


def _is_settled(last: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a pass has left nothing to scan as things are."""
    return (
        last is not None
        and last["decision"]["idle"]
        and last["decision"]["rule"] in SETTLED_RULES.get(last["policy"], ())
        and last["outcome"] in ("applied", "unchanged", "observed", "dry_run")
        and _is_negligible(last["decision"]["numbers"])
    )


def _is_negligible(numbers: Mapping[str, int | None]) -> bool:
    """Return whether next to nothing has appeared that still settles."""
    from virtksm.policy.adaptive.worth import NEGLIGIBLE

    return (numbers["settling_kib"] or 0) * NEGLIGIBLE <= (numbers["memory_kib"] or 0)


def _ksm_is_off(connect: str | None) -> bool:
    from virtksm.host.local_facts import ProcFacts

    uri = named_uri(connect)
    return (uri is None or is_local(uri)) and ProcFacts().ksm_counter("run") not in (None, 1)
