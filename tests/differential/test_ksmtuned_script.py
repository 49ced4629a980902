"""ksmtuned's law beside the real script: its own functions, from Debian's package, on thousands of generated hosts.

The script's text is taken up to its main loop and run by bash with its own awk and subshells; its paths in /proc, /sys
and /etc lead to a folder in memory, and the counting of guests is fed to it and to us alike. After every step the two
must agree on what the kernel would hold, on npages and on the threshold. Nothing of the real KSM is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from tests.differential.ksmtuned_sequences import Sequence, Step, generate
from virtksm.config.schema import KsmtunedParams
from virtksm.model import Guest, HostMemory, KsmState, Occasion, Settings, Snapshot, Source, Trigger
from virtksm.policy.ksmtuned import KsmtunedPast, KsmtunedPolicy

# It takes as long as 100,000 steps of a shell script take; the suite's guard against a hang is meant for less.
pytestmark = pytest.mark.timeout(600)

SEED = 20150326
SEQUENCES = 5_000
HERE = Path(__file__).parent
PLACES = (Path("/usr/sbin/ksmtuned"), HERE.parents[1] / "build/ksmtuned/usr/sbin/ksmtuned")
STEPS_BY = [frozenset({trigger}) for trigger in (Trigger.TIMER, Trigger.STARTED, Trigger.STOPPED, Trigger.POKE)]
BALLOON = Occasion(triggers=frozenset({Trigger.BALLOON}))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What stands after a step: the kernel's three files, and the law's npages and threshold (KiB)."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    npages: int
    thres_kib: int


FIRST = State(run=0, pages_to_scan=100, sleep_millisecs=20, npages=0, thres_kib=0)
"""The kernel's defaults, which the driver also puts in place at the beginning of a sequence."""


@dataclass(frozen=True, slots=True)
class Batch:
    sequences: list[Sequence]
    theirs: list[list[State]]


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = Random(SEED)
    sequences = [generate(random) for _ in range(SEQUENCES)]
    workers = len(os.sched_getaffinity(0))
    shares = [sequences[worker::workers] for worker in range(workers)]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        answers = run_script(shares, Path(folder))
    theirs = [answers[index % workers][index // workers] for index in range(SEQUENCES)]
    return Batch(sequences, theirs)


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
    assert reached["sequences"] >= 5_000
    assert reached["steps"] >= 100_000
    for outcome in ("stop", "boost", "decay"):
        assert reached[outcome] >= 10_000, outcome
    for place in PLACES_REACHED:
        assert reached[place] >= 100, place


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
    for sequence, theirs in zip(batch.sequences[:1_000], batch.theirs, strict=False):
        params = replace(sequence.params, **{name: getattr(sequence.params, name) + by})
        found += run_ours(sequence, params) != theirs
    assert found >= 50


def run_ours(sequence: Sequence, params: KsmtunedParams) -> list[State]:
    """Run our law over a sequence as the cycle would, keeping its past as JSON between the passes."""
    policy = KsmtunedPolicy(params=params)
    past = policy.first_past(snapshot_of(sequence, sequence.steps[0], 0))
    state, states = FIRST, []
    for index, step in enumerate(sequence.steps):
        snapshot = snapshot_of(sequence, step, index)
        if index % 4 == 1:  # a balloon pass comes between, and must make no difference to the steps
            past = policy.decide(snapshot, past, BALLOON)[1]
        decision, past = policy.decide(snapshot, past, Occasion(triggers=STEPS_BY[index % len(STEPS_BY)]))
        past = kept(policy, past)
        thres_kib = decision.reason.numbers["thres_kib"]
        assert isinstance(thres_kib, int)
        pages, sleep_ms = decision.target.pages_to_scan, decision.target.sleep_millisecs
        assert pages is not None
        assert sleep_ms is not None
        if decision.is_parked:  # the script switches KSM off instead and leaves the other files as they are
            state = replace(state, run=0, npages=past.npages, thres_kib=thres_kib)
        else:
            state = State(run=1, pages_to_scan=pages, sleep_millisecs=sleep_ms, npages=past.npages, thres_kib=thres_kib)
        states.append(state)
    return states


def kept(policy: KsmtunedPolicy, past: KsmtunedPast) -> KsmtunedPast:
    return policy.load_past(json.loads(json.dumps(policy.dump_past(past))))


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


def run_script(shares: list[list[Sequence]], folder: Path) -> list[list[list[State]]]:
    """Run each share of the sequences through the real script in a bash of its own, all at once."""
    text = next((place.read_text() for place in PLACES if place.is_file()), None)
    if text is None:
        pytest.fail(f"ksmtuned's script is in none of {', '.join(map(str, PLACES))}: run script/setup")
    started = []
    try:
        for number, share in enumerate(shares):
            place = folder / str(number)
            (place / "ksm").mkdir(parents=True)
            (place / "script").write_text(redirected(text, place))
            (place / "sequences").write_text("".join(f"{line}\n" for sequence in share for line in sequence.lines()))
            driver = [HERE / "ksmtuned_driver.bash", place / "script", place, place / "sequences", place / "states"]
            with (place / "errors").open("w") as errors:
                command = ["bash", "--norc", "--noprofile", *map(str, driver)]
                environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
                started.append(subprocess.Popen(command, env=environment, stdout=errors, stderr=errors))
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for number, code in enumerate(codes):
        said = (folder / str(number) / "errors").read_text()
        assert (code, said) == (0, ""), f"the script complained: {said[:2000]}"
    return [list(parse_states(share, folder / str(number) / "states")) for number, share in enumerate(shares)]


def redirected(text: str, place: Path) -> str:
    """Return the script's text without its main loop, with its paths under `place` and the guests' memory fed."""
    functions, loop, _ = text.partition("\nPIDFILE=")
    assert loop, "the script's end has changed"
    for old, new in [
        ("/etc/ksmtuned.conf", f"{place}/ksmtuned.conf"),
        ("/proc/meminfo", f"{place}/meminfo"),
        ("/sys/kernel/mm/ksm/", f"{place}/ksm/"),
        ("committed=`committed_memory`", "committed=$fed_committed"),
    ]:
        assert old in functions, f"the script no longer has {old}"
        functions = functions.replace(old, new)
    for real in ("/proc/", "/sys/", "/etc/"):
        assert real not in functions, f"the script would touch the real {real}"
    return functions + "\n"


def parse_states(share: list[Sequence], path: Path) -> Iterator[list[State]]:
    lines = iter(path.read_text().splitlines())
    for sequence in share:
        states = []
        for _ in sequence.steps:
            status, run, pages, sleep_ms, npages, thres_kib = map(int, next(lines).split())
            assert status == 1 - run  # adjust's own answer
            states.append(
                State(run=run, pages_to_scan=pages, sleep_millisecs=sleep_ms, npages=npages, thres_kib=thres_kib)
            )
        yield states
    assert next(lines, None) is None


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
