"""ksmtuned's law beside the real script: its own functions, from Debian's package, on thousands of generated hosts.

After every step the two must agree on what the kernel would hold, on npages and on the threshold. What is the script's
own and what is fed to it, tests/lab/ksmtuned_script.py says. The real KSM is not touched.
"""

from __future__ import annotations

import json
from collections import Counter
from random import Random

from tests.lab.ksmtuned_script import FIRST, Sequence, State, Step, generate, run_script
from virtksm.config.schema import KsmtunedParams
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest, HostMemory, KsmState, Settings, Snapshot, Source
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState
from virtksm.values import replace

SEED = 20150326
SEQUENCES = 100
"""A law that is off by one in any of its parameters differs in every eighth of them or more often."""
STEPS_BY = [frozenset({trigger}) for trigger in (Trigger.TIMER, Trigger.STARTED, Trigger.STOPPED, Trigger.POKE)]
BALLOON = Triggers(kinds=frozenset({Trigger.BALLOON}))


def test_every_step_agrees_with_the_real_script() -> None:
    random = Random(SEED)
    sequences = [generate(random) for _ in range(SEQUENCES)]
    outcomes: Counter[str] = Counter()
    for index, (sequence, theirs) in enumerate(zip(sequences, run_script(sequences), strict=True)):
        ours = run_ours(sequence, sequence.params)
        for step, our, their in zip(sequence.steps, ours, theirs, strict=True):
            assert our == their, f"seed {SEED}, sequence {index}: {sequence}, at {step}"
            outcomes["stop" if their.run == 0 else "boost" if step.available_kib < sequence.thres_kib else "decay"] += 1
    assert min(outcomes.values()) >= 400, outcomes
    assert len(outcomes) == 3


def run_ours(sequence: Sequence, params: KsmtunedParams) -> list[State]:
    """Run our law over a sequence as the cycle would, keeping its state as JSON between the passes."""
    policy = KsmtunedPolicy(params=params)
    state = policy.first_state(snapshot_of(sequence, sequence.steps[0], 0))
    theirs, states = FIRST, []
    for index, step in enumerate(sequence.steps):
        snapshot = snapshot_of(sequence, step, index)
        if index % 4 == 1:  # a balloon pass comes between, and must make no difference to the steps
            state = policy.decide(snapshot, state, BALLOON)[1]
        decision, state = policy.decide(snapshot, state, Triggers(kinds=STEPS_BY[index % len(STEPS_BY)]))
        state = kept(policy, state)
        thres_kib = decision.reason.numbers["thres_kib"]
        assert isinstance(thres_kib, int)
        pages, sleep_ms = decision.target.pages_to_scan, decision.target.sleep_millisecs
        assert pages is not None
        assert sleep_ms is not None
        if decision.is_idle:  # the script switches KSM off instead and leaves the other files as they are
            theirs = replace(theirs, run=0, npages=state.npages, thres_kib=thres_kib)
        else:
            theirs = State(
                run=1, pages_to_scan=pages, sleep_millisecs=sleep_ms, npages=state.npages, thres_kib=thres_kib
            )
        states.append(theirs)
    return states


def kept(policy: KsmtunedPolicy, state: KsmtunedState) -> KsmtunedState:
    return policy.load_state(json.loads(json.dumps(policy.dump_state(state))))


def snapshot_of(sequence: Sequence, step: Step, index: int) -> Snapshot:
    half = step.committed_kib // 2
    memory = (half, None, step.committed_kib - half)  # of one guest the memory could not be read
    return Snapshot(
        taken_s=60.0 * index,
        source=Source.LOCAL,
        host=HostMemory(
            total_kib=sequence.total_kib,
            free_kib=step.free_kib,
            buffers_kib=step.buffers_kib,
            cached_kib=step.cached_kib,
        ),
        ksm=KsmState(settings=Settings(pages_to_scan=100, sleep_millisecs=20)),
        guests=tuple(Guest(uuid=str(n), name=str(n), rss_kib=rss_kib) for n, rss_kib in enumerate(memory)),
    )
