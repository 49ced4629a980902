"""`virtksm wait`: by which status it ends and how, also while the agent is away, and what it shows meanwhile."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from tests.lab.samples import NOW, agent_facts, passed
from tests.real.agent_process import VIRTKSM
from tests.unit.test_watch import StatusAgent
from virtksm.cli.main import main
from virtksm.cli.progress import Progress
from virtksm.cli.wait import SETTLED_RULES, Waiter, judge
from virtksm.errors import VirtksmError
from virtksm.model.current import after_pass
from virtksm.model.snapshot import IDLE
from virtksm.paths import RuntimePaths
from virtksm.policy.rules import MEANINGS

TWINS = Path(__file__).parents[1] / "traces" / "twins.jsonl"
Status = dict[str, Any]


def status(rule: str = "idle", *, policy: str = "adaptive", settling_kib: int = 0, **last: object) -> Status:
    """Return the status after a pass a second ago, which took 2 s."""
    told: Status = agent_facts(last=passed(IDLE), current=after_pass(passed(IDLE))).as_dict(NOW)
    numbers = {"memory_kib": 256_000, "settling_kib": settling_kib}
    decision = {**told["last_pass"]["decision"], "rule": rule, "reason": "as told", "numbers": numbers}
    pass_ = {**told["last_pass"], "policy": policy, "decision": decision, "duration_ms": 2000.0, **last}
    return {**told, "last_pass": pass_, "last_pass_ago_s": 1.0}


def scanning(rule: str) -> Status:
    told = status(rule)
    told["last_pass"]["decision"]["idle"] = False
    return told


@pytest.mark.parametrize(
    ("told", "waited_s", "result"),
    [
        (status(), 3.0, "settled"),
        (status(), 2.9, None),
        (status(settling_kib=1000), 3.0, "settled"),
        (status(settling_kib=1001), 3.0, None),
        (status("wait"), 9.0, None),
        (scanning("full_scan"), 9.0, None),
        (scanning("idle"), 9.0, None),
        (status(outcome="held"), 9.0, None),
        (status("disengaged"), 9.0, "settled"),
        (status("stop", policy="ksmtuned"), 9.0, "settled"),
        (status("stop", policy="another"), 9.0, None),
        ({**status(), "paused": True}, 0.0, "paused"),
        ({**status(), "now": {**status()["now"], "ksm_run": 2}}, 0.0, "ksm_off"),
        ({**status(), "now": None}, 9.0, "settled"),
        ({**status(), "last_pass": None, "paused": None}, 9.0, None),
    ],
)
def test_it_ends_by_a_pass_that_has_begun_after_it_and_left_nothing_to_scan(
    told: Status, waited_s: float, result: str | None
) -> None:
    assert judge(told, waited_s)[0] == result


def test_the_rules_by_which_it_ends_are_the_policies_own() -> None:
    assert all(set(rules) <= MEANINGS[policy].keys() for policy, rules in SETTLED_RULES.items())


def asking(*answers: Status | VirtksmError | None) -> Callable[[], Status | None]:
    left = iter(answers)

    def ask() -> Status | None:
        answer = next(left)
        if isinstance(answer, VirtksmError):
            raise answer
        return answer

    return ask


def nobody() -> None:
    """Answer as where no agent runs."""


def test_an_agent_that_is_started_anew_meanwhile_is_waited_for() -> None:
    told = {**status(), "last_pass": None}
    waiting = Waiter(asking(told, None, VirtksmError("timed out"), told, status()), nobody, lambda: False)
    reasons = []
    for waited_s in range(4):
        assert waiting.look(waited_s) is None
        reasons.append(waiting.reason)
    assert reasons == [
        "the agent has made no pass yet",
        "the agent has ended",
        "the agent does not answer: timed out",
        "the agent has made no pass yet",
    ]
    assert (waiting.look(9.0), waiting.reason) == ("settled", "as told")


def test_without_an_agent_only_ksm_that_is_off_is_known() -> None:
    with pytest.raises(VirtksmError, match="no agent runs, and only an agent knows the backlog"):
        Waiter(asking(None), nobody, lambda: False).look(0.0)
    assert Waiter(asking(None), nobody, lambda: True).look(0.0) == "ksm_off"
    with pytest.raises(VirtksmError, match="may not"):
        Waiter(asking(VirtksmError("you may not ask")), nobody, lambda: False).look(0.0)


@pytest.mark.parametrize(
    ("would", "result"),
    [
        (status(outcome="dry_run")["last_pass"], "settled"),
        (status("wait", outcome="dry_run")["last_pass"], None),
        (status(settling_kib=1001, outcome="dry_run")["last_pass"], None),
        (VirtksmError("you may not ask"), None),
        (None, None),
    ],
)
def test_an_agent_at_rest_is_asked_once_what_it_would_do_now_and_its_timer_is_not_waited_for(
    would: Status | VirtksmError | None, result: str | None
) -> None:
    waiting = Waiter(asking(status("wait"), status(), status(), status()), asking(would), lambda: False)
    assert [waiting.look(waited_s) for waited_s in (0.0, 0.5)] == [None, result]
    if result is None:
        assert [waiting.look(waited_s) for waited_s in (1.0, 9.0)] == [None, "settled"]


@pytest.fixture
def home(paths: RuntimePaths) -> Iterator[tuple[StatusAgent, list[str]]]:
    """Lend an agent's stand-in, and the options that lead to it."""
    with StatusAgent(paths) as agent:
        yield agent, ["--runtime-dir", paths.root]


@pytest.mark.parametrize(
    ("changes", "code", "result"),
    [({}, 5, "timed_out"), ({"paused": True}, 6, "paused"), ({"now": {**status()["now"], "ksm_run": 0}}, 7, "ksm_off")],
)
def test_the_exit_code_says_how_it_ended(
    home: tuple[StatusAgent, list[str]], capsys: pytest.CaptureFixture[str], changes: Status, code: int, result: str
) -> None:
    agent, options = home
    agent.status = {**status("wait"), **changes}
    assert main([*options, "wait", "--settled", "--timeout", "0", "--json"]) == code
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert (printed["result"], said.err) == (result, "")
    assert main([*options, "wait", "--timeout", "0"]) == code
    assert capsys.readouterr().out.lower().startswith(result.replace("_", " "))


def test_a_terminal_sees_the_waiting_and_a_pipe_the_end_alone(home: tuple[StatusAgent, list[str]]) -> None:
    agent, options = home
    agent.status = status("wait")
    terminal = PseudoTerminal([VIRTKSM, *options, "wait", "--settled"])
    try:
        wait_until(lambda: "waiting for " in terminal.said, HANG_S, "the line of progress")
        agent.status = {**status(), "last_pass_ago_s": 0.0, "last_pass": {**status()["last_pass"], "duration_ms": 0.0}}
        assert terminal.wait_ended() == 0
        assert ": as told\x1b[K\r" in terminal.said
        assert "\r\x1b[K\rSettled    as told" in terminal.said, "the line of progress has gone"
    finally:
        terminal.close()


def test_a_replay_shows_how_far_it_is_and_nothing_of_that_with_json() -> None:
    for options, is_shown in (((), True), (("--json",), False)):
        terminal = PseudoTerminal([VIRTKSM, "trace", "replay", str(TWINS), *options])
        try:
            assert terminal.wait_ended() == 0
            assert ("\rreplaying: " in terminal.said) == is_shown
            assert terminal.said.rpartition("replaying: ")[2].count("\x1b[K\r") == (2 if is_shown else 0), "and is gone"
        finally:
            terminal.close()


def test_progress_is_a_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    pipe = io.StringIO()
    with Progress(stream=pipe) as progress:
        assert list(progress.over(["a", "b"], 2, "reading")) == ["a", "b"]
        progress.show("text")
    assert pipe.getvalue() == ""
