"""`virtksm trace replay`: what another policy, or another configuration, would have decided on a recorded host."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import chain

from virtksm.cli.layout import Row, print_result, show
from virtksm.cli.progress import Progress
from virtksm.config.policy_keys import change_law, law_of, read_law, table_of
from virtksm.config.schema import Config, all_keys
from virtksm.model.decision import Decision
from virtksm.policy import make_policy
from virtksm.store.trace import read_trace, trace_size
from virtksm.text import printable
from virtksm.trace import Header, Law
from virtksm.trace.replay import ReplayStep, Sums, replay
from virtksm.trace.text import parse_lines

FED = ("full_scan", "check_scan")
"""Rules by which ksmd is fed batch by batch: each pass sets the next batch, and decides nothing new."""
ROW = "{:>7}  {:<12} {:<24} {:<24} {}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what `virtksm trace record` has written")
    policies = all_keys()["policy"].choices
    help_text = f"{', '.join(policies[:-1])} or {policies[-1]} (default: the recorded one)"
    parser.add_argument("--policy", metavar="P", choices=policies, help=help_text)
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a key of that policy, as in adaptive.engage=always; may be repeated",
    )
    parser.add_argument("--all", action="store_true", help="show every pass, not only those where an answer changes")


def run(options: argparse.Namespace) -> None:
    """Replay a trace and print both answers.

    The configuration is the recorded one, or that of --config, if that is given. Raises TraceUnusable, and
    ConfigError for what cannot be set.
    """
    base = None
    if options.config is not None:
        from virtksm.config.load import load

        base = load(options.config).config
    name = printable(options.file)

    def recorded_of(law: Law) -> Config:
        return read_law(law.policy, law.config, name)

    def replayed_of(law: Law) -> Config:
        return change_law(base or recorded_of(law), options.policy, options.changes)

    with Progress(is_wanted=not options.json) as progress:
        lines = parse_lines(progress.over(read_trace(options.file), trace_size(options.file), "replaying"), name)
        header = next(lines)
        assert isinstance(header, Header), "parse_lines sees to it"
        recorded, replayed = recorded_of(header.law), replayed_of(header.law)
        sums = Sums()
        steps = replay(chain([header], lines), lambda law: make_policy(replayed_of(law)), sums)
        chosen = steps if options.all else changing(steps)
        if options.json:
            values = {
                "file": options.file,
                "uri": header.uri,
                "version": header.version,
                "began_at": header.began,
                "recorded": law_values(recorded),
                "replayed": law_values(replayed),
                "steps": [step_values(step, recorded_of) for step in chosen],
            }
            print_result(options, {**values, "sums": sums.as_dict()}, ())
            return
        steps_shown = step_rows(chosen, recorded_of, header.law)
        for row in chain(head_rows(name, header, recorded, replayed), steps_shown, sums_rows(sums)):
            progress.clear()
            show([row])


def changing(steps: Iterator[ReplayStep]) -> Iterator[ReplayStep]:
    """Yield the first step, and those with another answer of either side than the step before, or another law."""
    before = None
    for step in steps:
        answers = [
            (one.reason.rule, None if one.reason.rule in FED else one.target)
            for one in (step.line.decision, step.replayed)
        ]
        if answers != before or step.line.law is not None:
            yield step
        before = answers


def step_values(step: ReplayStep, recorded_of: Callable[[Law], Config]) -> dict[str, object]:
    law = step.line.law
    return {
        "law": None if law is None else law_values(recorded_of(law)),
        "seq": step.line.seq,
        "at_s": step.line.at_s,
        "taken_s": step.line.snapshot.taken_s,
        "triggers": step.line.triggers.names,
        "recorded": _answer_values(step.line.decision),
        "replayed": _answer_values(step.replayed),
        "differs": step.differs,
    }


def _answer_values(decision: Decision) -> dict[str, object]:
    return {
        "idle": decision.is_idle,
        "rule": decision.reason.rule,
        "reason": decision.reason.text,
        "target": decision.target.as_dict(),
        "next_pass_s": decision.next_pass_s,
    }


def law_values(config: Config) -> dict[str, object]:
    table = table_of(config.policy)
    own = {name: value for name, value in law_of(config).items() if name.startswith(f"{table}.")}
    return {"policy": config.policy, "config": own}


def head_rows(name: str, header: Header, recorded: Config, replayed: Config) -> Iterator[Row]:
    """Yield what the trace is and which two laws are compared."""
    yield "", "Trace", f"{name}: {header.uri}, from {header.began} on, by virtksm {header.version}"
    yield "", "Recorded", _law_text(recorded)
    yield "", "Replayed", _law_text(replayed)
    yield "", "Note", "the recording is replayed as it is; another policy would have changed it"
    asked, asks = make_policy(recorded), make_policy(replayed)
    if asks.wants_maxima and not asked.wants_maxima:
        yield "", "Unknown", "what guests may grow to: the recorded policy did not ask for it"
    if asks.wants_other_processes and not asked.wants_other_processes:
        yield "", "Unknown", "mergeable memory that is no guest's: the recorded policy did not ask for it"


def _law_text(config: Config) -> str:
    keys = all_keys()
    other = [f"{name} = {value}" for name, value in law_of(config).items() if value != keys[name].default]
    own = [text for text in other if text.startswith(f"{config.policy}.")]
    return f"policy {config.policy}, {', '.join(own) if own else 'with its defaults'}"


def step_rows(steps: Iterator[ReplayStep], recorded_of: Callable[[Law], Config], law: Law) -> Iterator[Row]:
    """Yield a row for each step: when, why, and both answers, marked where they differ; and one for each new law."""
    began_s = None
    for step in steps:
        if began_s is None:
            began_s = step.line.at_s
            yield "", ROW.format("seconds", "triggers", "recorded", "replayed", "").rstrip(), ""
        at = f"{step.line.at_s - began_s:.1f}"
        if step.line.law not in (None, law):
            law = step.line.law
            yield "", f"{at:>7}  recorded from here on: {_law_text(recorded_of(law))}", ""
        text = ROW.format(
            at,
            ",".join(step.line.triggers.names),
            _answer_text(step.line.decision),
            _answer_text(step.replayed),
            "differs" if step.differs else "",
        )
        yield "", text.rstrip(), ""


def _answer_text(decision: Decision) -> str:
    target = decision.target
    if decision.is_idle:
        return f"{decision.reason.rule}: idle"
    every = "" if decision.reason.rule in FED else f", {target.sleep_millisecs} ms"
    return f"{decision.reason.rule}: {target.pages_to_scan} pages{every}"


def sums_rows(sums: Sums) -> Iterator[Row]:
    """Yield what both came to, and what the trace lacks; read them when it has been read."""
    yield "", "Passes", f"{sums.passes} in {sums.lasted_s:.1f} s; the answers differ in {sums.differing}"
    for side, share in (("Recorded", sums.recorded), ("Replayed", sums.replayed)):
        if sums.lasted_s:
            idle, pages_per_s = 100 * share.idle_s / sums.lasted_s, share.pages / sums.lasted_s
            yield "", side, f"idle {idle:.1f} % of the time, granted {pages_per_s:.1f} pages/s at most"
    if sums.gaps:
        yield "", "Missing", f"{sums.missed} passes or more, in {sums.gaps} gaps"
    if sums.is_torn:
        yield "", "Torn", "the last line is not whole, as after a kill: left out"
    if sums.began_anew:
        yield "", "Reset", f"{sums.began_anew} times, as the policy's state is another version's"
