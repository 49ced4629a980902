"""ksmtuned's law beside the real script: what Debian's own made of a hundred generated hosts, step by step.

tests/traces/ksmtuned.jsonl holds its answers, as the functions of /usr/sbin/ksmtuned gave them in bash. A line is one
host's life: the parameters that were not the default, the host's memory (KiB), at each step the free, buffers, cached
and guests' memory (KiB), and what the script then held: run, pages_to_scan and sleep_millisecs of the kernel, its
npages and its threshold (KiB). A law that is off by one in any parameter differs in every eighth life or more often.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from virtksm.config.schema import KsmtunedParams
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest, HostMemory, KsmState, Settings, Snapshot, Source
from virtksm.policy.ksmtuned import KsmtunedPolicy

LIVES = Path(__file__).parents[1] / "traces" / "ksmtuned.jsonl"
STEPS_BY = [frozenset({trigger}) for trigger in (Trigger.TIMER, Trigger.STARTED, Trigger.STOPPED, Trigger.POKE)]
BALLOON = Triggers(kinds=frozenset({Trigger.BALLOON}))


def test_every_step_agrees_with_the_real_script() -> None:
    outcomes: Counter[str] = Counter()
    for number, line in enumerate(LIVES.read_text().splitlines(), 1):
        life = json.loads(line)
        for step, our, their in zip(life["steps"], run_ours(life), life["held"], strict=True):
            assert our == their, f"line {number}, at {step}"
            run, *_, thres_kib = their
            outcomes["stop" if run == 0 else "boost" if sum(step[:3]) < thres_kib else "decay"] += 1
    assert min(outcomes.values()) >= 400, outcomes
    assert len(outcomes) == 3


def run_ours(life: dict[str, Any]) -> list[list[int | None]]:
    """Run our law over a life as the cycle would, keeping its state as JSON between the passes."""
    policy = KsmtunedPolicy(params=KsmtunedParams(**life["params"]))
    snapshots = [snapshot_of(life["total_kib"], step, index) for index, step in enumerate(life["steps"])]
    state = policy.first_state(snapshots[0])
    kernel: list[int | None] = [0, 100, 20]  # its defaults
    answers = []
    for index, snapshot in enumerate(snapshots):
        if index % 4 == 1:  # a balloon pass comes between, and must make no difference to the steps
            state = policy.decide(snapshot, state, BALLOON)[1]
        decision, state = policy.decide(snapshot, state, Triggers(kinds=STEPS_BY[index % len(STEPS_BY)]))
        state = policy.load_state(json.loads(json.dumps(policy.dump_state(state))))
        if decision.is_idle:  # the script switches KSM off instead and leaves the other files as they are
            kernel = [0, *kernel[1:]]
        else:
            kernel = [1, decision.target.pages_to_scan, decision.target.sleep_millisecs]
        thres_kib = decision.reason.numbers["thres_kib"]
        assert isinstance(thres_kib, int)
        answers.append([*kernel, state.npages, thres_kib])
    return answers


def snapshot_of(total_kib: int, step: list[int], index: int) -> Snapshot:
    free_kib, buffers_kib, cached_kib, committed_kib = step
    half = committed_kib // 2
    memory = (half, None, committed_kib - half)  # of one guest the memory could not be read
    return Snapshot(
        taken_s=60.0 * index,
        source=Source.LOCAL,
        host=HostMemory(total_kib=total_kib, free_kib=free_kib, buffers_kib=buffers_kib, cached_kib=cached_kib),
        ksm=KsmState(settings=Settings(pages_to_scan=100, sleep_millisecs=20)),
        guests=tuple(Guest(uuid=str(n), name=str(n), rss_kib=rss_kib) for n, rss_kib in enumerate(memory)),
    )
