"""Isolated events: from libvirt's delivery of one start or stop of a guest to the changed value in the kernel.

Starts and stops of one extra guest take turns, a second or more apart, and each must change pages_to_scan by exactly
one page (STEPPING_LAW): a pass that does not, or that comes twice, is a failure. Between two events
`virsh node-memory-tune` sets the same parameter, timed from the process's start to the changed value; the agent's value
is put back right afterwards, before its next pass could see another writer in it.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.observe import Delivery, Events, KernelValue
from bench.stage import Agent, Guests

APART_S = 1.0
GIVE_UP_S = 5.0
VIRSH_ADDS = 500_000
"""More than the agent's steps ever come to, so that a value tells who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolated:
    """Samples in ms, in order; `agents_own_ms` is what its log says of the same passes (event_to_applied_ms)."""

    events: int
    delivery_to_kernel_ms: list[float] = field(default_factory=list)
    agents_own_ms: list[float] = field(default_factory=list)
    pass_ms: list[float] = field(default_factory=list)
    virsh_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def measure_isolated(
    *, uri: str, agent: Agent, guests: Guests, events: Events, kernel: KernelValue, count: int
) -> Isolated:
    """Make `count` events, one after the other, and time each; raises OSError when virsh cannot be started."""
    result = Isolated(events=count)
    applied: list[int] = []
    events.take_all()
    last_s = 0.0
    with ThreadPoolExecutor(1) as pool:
        for number in range(count):
            # The jitter keeps events from falling into step with anything periodic.
            time.sleep(max(last_s + APART_S + random.uniform(0, 0.1) - time.monotonic(), 0))
            known = kernel.read()
            acting = pool.submit(guests.stop if number % 2 else guests.start, "extra")
            try:
                delivery = _await(events, "stopped" if number % 2 else "started")
                last_s = delivery.at_ns / 1e9
                change = kernel.wait_changed(known, GIVE_UP_S)
            except TimeoutError as error:
                result.failures.append(f"event {number}: {error}")
                acting.result()
                last_s = time.monotonic()
                continue
            result.delivery_to_kernel_ms.append((change.at_ns - delivery.at_ns) / 1e6)
            acting.result()
            if change.value != known + 1:
                result.failures.append(f"event {number}: pages_to_scan went from {known} to {change.value}")
            applied.append(change.value)
            time.sleep(max(last_s + APART_S / 2 - time.monotonic(), 0))
            if (value := kernel.read()) != change.value:
                result.failures.append(f"event {number}: a second pass set {value} after {change.value}")
            result.virsh_ms.append(time_virsh(uri, kernel))
    _ask_the_log(agent, applied, result)
    return result


def time_virsh(uri: str, kernel: KernelValue, *, to_exit: bool = False) -> float:
    """Time `virsh node-memory-tune` in ms, to the changed value or to its exit, and put the value back.

    Raises RuntimeError when it fails.
    """
    known = kernel.read()
    command = ["virsh", "-q", "-c", uri, "node-memory-tune", "--shm-pages-to-scan", str(known + VIRSH_ADDS)]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawnp(command[0], command, os.environ)
    change = None if to_exit else kernel.wait_changed(known, GIVE_UP_S)
    _, status = os.waitpid(pid, 0)
    ended_ns = time.monotonic_ns() if change is None else change.at_ns
    if status != 0 or kernel.read() != known + VIRSH_ADDS:
        raise RuntimeError(f"{command} ended with {status:#x}, pages_to_scan is {kernel.read()}")
    kernel.put_back(known)
    return (ended_ns - began_ns) / 1e6


def _await(events: Events, kind: str) -> Delivery:
    delivery = events.next(GIVE_UP_S)
    if (delivery.kind, delivery.guest) != (kind, "extra"):
        raise TimeoutError(f"not {kind} but {delivery}")
    return delivery


def _ask_the_log(agent: Agent, applied: list[int], result: Isolated) -> None:
    told = {line["after"]["pages_to_scan"]: line for line in agent.passes()}
    for value in applied:
        if value not in told:
            result.failures.append(f"the agent's log has no pass that set {value}")
            continue
        result.agents_own_ms.append(told[value]["event_to_applied_ms"])
        result.pass_ms.append(told[value]["duration_ms"])
