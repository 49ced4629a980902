"""ksmtuned's law beside the real script: its own functions, from Debian's package, on thousands of generated hosts.

After every step the two must agree on what the kernel would hold, on npages and on the threshold. What is the script's
own and what is fed to it, ksmtuned_bash.py says. The real KSM is not touched.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from tests.lab.ksmtuned_bash import FIRST, State, run_script
from tests.lab.ksmtuned_package import read_ksmtuned_file
from tests.lab.ksmtuned_sequences import Sequence, Step, generate
from virtksm.config.schema import KsmtunedParams
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest, HostMemory, KsmState, Settings, Snapshot, Source
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState

SEED = 20150326
SEQUENCES = 500
STEPS_BY = [frozenset({trigger}) for trigger in (Trigger.TIMER, Trigger.STARTED, Trigger.STOPPED, Trigger.POKE)]
BALLOON = Triggers(kinds=frozenset({Trigger.BALLOON}))


@dataclass(frozen=True, slots=True)
class Batch:
    sequences: list[Sequence]
    theirs: list[list[State]]


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = Random(SEED)
    sequences = [generate(random) for _ in range(SEQUENCES)]
    return Batch(sequences, run_script(sequences))


def test_every_step_agrees_with_the_real_script(batch: Batch) -> None:
    for index, (sequence, theirs) in enumerate(zip(batch.sequences, batch.theirs, strict=True)):
        ours = run_ours(sequence, sequence.params)
        if ours != theirs:
            pytest.fail(f"seed {SEED}, sequence {index}:\n{disagreement(sequence, ours, theirs)}")


def test_the_sequences_reach_what_matters(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    reached: Counter[str] = Counter()
    for sequence, theirs in zip(batch.sequences, batch.theirs, strict=True):
        assert len(sequence.steps) >= 20
        reached.update(hosts_of(sequence))
        for step, before, after in zip(sequence.steps, [FIRST, *theirs[:-1]], theirs, strict=True):
            reached.update(places_of(sequence, step, before, after))
    with capsys.disabled():
        counts = ", ".join(f"{count} {name}" for name, count in reached.most_common())
        sys.stdout.write(f"\nksmtuned's script, seed {SEED}: {counts}\n")
    assert reached["sequences"] >= 500
    assert reached["steps"] >= 10_000
    for outcome in ("stop", "boost", "decay"):
        assert reached[outcome] >= 1_000, outcome
    for place in PLACES_REACHED:
        assert reached[place] >= 10, place


def test_without_the_script_it_fails_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="run script/setup"):
        read_ksmtuned_file("usr/sbin/ksmtuned", [tmp_path])


@pytest.mark.parametrize(
    "wrong",
    [
        {"npages_boost": 1},
        {"npages_decay": -1},
        {"npages_min": 1},
        {"npages_max": 1},
        {"thres_const": 1},
        {"thres_coef": 1},
        {"sleep_msec": 1},
    ],
    ids=str,
)
def test_a_law_that_is_off_by_one_would_be_found(batch: Batch, wrong: dict[str, int]) -> None:
    ((name, by),) = wrong.items()
    found = 0
    for sequence, theirs in zip(batch.sequences[:300], batch.theirs, strict=False):
        params = replace(sequence.params, **{name: getattr(sequence.params, name) + by})
        found += run_ours(sequence, params) != theirs
    assert found >= 10


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


PLACES_REACHED = (
    "stop between two runs",
    "boost that reached the maximum",
    "decay that reached the minimum",
    "boost at the maximum",
    "decay at the minimum",
    *(f"free at the threshold {off:+d}" for off in (-1, 0, 1)),
    *(f"committed at the limit {off:+d}" for off in (-1, 0, 1)),
    "tiny total",
    "huge total",
    "default settings",
    "minimum that is the maximum",
    "no boost",
    "no decay",
    "coefficient 0",
    "coefficient 100",
    "constant that dominates",
    "sleep_msec 0",
    "sleep above 10 ms",
)


def hosts_of(sequence: Sequence) -> Iterator[str]:
    """Yield what is special about a sequence's host and settings."""
    params, total_kib = sequence.params, sequence.total_kib
    special = {
        "sequences": True,
        "tiny total": total_kib < 5_000,
        "huge total": total_kib > 2**32,
        "default settings": params == KsmtunedParams(),
        "minimum that is the maximum": params.npages_min == params.npages_max,
        "no boost": params.npages_boost == 0,
        "no decay": params.npages_decay == 0,
        "coefficient 0": params.thres_coef == 0,
        "coefficient 100": params.thres_coef == 100,
        "constant that dominates": params.thres_const > total_kib * params.thres_coef // 100,
        "sleep_msec 0": params.sleep_msec == 0,
    }
    yield from (name for name, holds in special.items() if holds)


def places_of(sequence: Sequence, step: Step, before: State, after: State) -> Iterator[str]:
    """Yield what is special about a step, by its inputs and the script's states around it."""
    params, thres_kib = sequence.params, sequence.thres_kib
    stopped = after.run == 0
    boosted = not stopped and step.available_kib < thres_kib
    decayed = not stopped and not boosted
    moved = after.npages != before.npages
    special = {
        "steps": True,
        "stop": stopped,
        "boost": boosted,
        "decay": decayed,
        "stop between two runs": stopped and before.run == 1,
        "boost that reached the maximum": boosted and moved and after.npages == params.npages_max,
        "decay that reached the minimum": decayed and moved and after.npages == params.npages_min < before.npages,
        "boost at the maximum": boosted and not moved and after.npages == params.npages_max,
        "decay at the minimum": decayed and not moved and after.npages == params.npages_min,
        f"free at the threshold {step.available_kib - thres_kib:+d}": abs(step.available_kib - thres_kib) <= 1,
        "sleep above 10 ms": after.sleep_millisecs > 10 and not stopped,
    }
    limit = step.committed_kib + thres_kib - sequence.total_kib
    special[f"committed at the limit {limit:+d}"] = abs(limit) <= 1
    yield from (name for name, holds in special.items() if holds)


def disagreement(sequence: Sequence, ours: list[State], theirs: list[State]) -> str:
    """Tell the sequence up to the first step on which the two differ."""
    lines = [f"total {sequence.total_kib} KiB, threshold {sequence.thres_kib} KiB, {sequence.params}"]
    for number, (step, our, their) in enumerate(zip(sequence.steps, ours, theirs, strict=True)):
        lines.append(f"step {number}: {step}\n  script {their}")
        if our != their:
            lines.append(f"  ours   {our}")
            break
    return "\n".join(lines)
