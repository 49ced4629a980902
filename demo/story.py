"""The demonstration's story: guests start one by one, fill their memory, merge, and stop again, beside a real agent.

In: a libvirt URI, the payload kernel and how many guests for how long. The guests are driven from a thread of their own
over a connection of their own; the agent in the main thread is the one of production, and only hears of them through
libvirt. Everything ends with the agent: guests are destroyed, its settings given back.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from demo.guests import PayloadGuest, start_guest
from demo.view import LiveView
from virtksm.agent.agent import Agent
from virtksm.agent.main import serve
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.errors import ExitCode, VirtksmError
from virtksm.host.libvirt_connection import LibvirtHost, open_host
from virtksm.paths import RuntimePaths
from virtksm.values import replace

CONFIG = Config(adaptive=AdaptiveParams(engage="always"))
SAMPLE_S = 0.1
GUEST_S = 2.5
"""What libvirt itself takes to start a guest (0.5 s) and to end it (2 s), measured on libvirt 9.0."""
COMMON = PayloadGuest(name="virtksm-demo", memory_mib=128, common_mib=64, zero_mib=8, own_mib=24)
BUSY_S = 60.0
"""How much longer than it was told to, on a busy machine, the story waits for what guests have in common to merge."""


@dataclass(slots=True)
class Story:
    """One demonstration."""

    uri: str
    folder: Path
    kernel: Path
    guests: int
    duration_s: float
    view: LiveView
    over: threading.Event = field(default_factory=threading.Event)
    running: list[libvirt.virDomain] = field(default_factory=list)
    failure: VirtksmError | None = None
    is_finished: bool = False
    """Whether the story came to its own end; a signal ends the agent and the story."""

    def run(self) -> ExitCode:
        """Run the agent with the story beside it; returns the agent's exit code.

        Raises what the agent raises, or the VirtksmError that ended the story.
        """
        thread: list[threading.Thread] = []

        def started(agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
            host = open_host(self.uri)
            memory = host.host_memory()
            free_kib = memory.free_kib + memory.buffers_kib + memory.cached_kib
            self.view.say(
                "demo",
                f'{free_kib // 1024} MiB are free here, so the configuration says engage = "always": the policy acts '
                "although memory is not short",
            )
            self.view.saw(host.ksm_state().pages_sharing)
            thread.append(threading.Thread(target=self._drive, args=(host, agent, loop), name="demo", daemon=True))
            thread[0].start()

        own = RuntimePaths(str(self.folder / "run"), str(self.folder / "state"))
        code = asyncio.run(serve(self.uri, CONFIG, own, lambda: CONFIG, started=started))
        self.over.set()
        if thread:
            thread[0].join(timeout=10)
        if self.failure is not None:
            raise self.failure
        return code

    def _drive(self, host: LibvirtHost, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._act(host)
        except libvirt.libvirtError as error:
            self.failure = VirtksmError(f"the demonstration's guests: {error.get_error_message()}")
        except VirtksmError as error:
            self.failure = error
        finally:
            self._stop_guests(len(self.running), pause_s=0)
            self.is_finished = not self.over.is_set()
            if self.is_finished:
                loop.call_soon_threadsafe(agent.passes.stop)

    def _act(self, host: LibvirtHost) -> None:
        step_s = max(0.0, self.duration_s - self.guests * GUEST_S) / (self.guests * 3 + 9)
        for number in range(1, self.guests + 1):
            guest = replace(COMMON, name=f"virtksm-demo-{number}", seed=number)
            self.view.say("guest", f"starting {guest.name}: 64 MiB in common, 8 MiB of zeroes, 24 MiB of its own")
            console = self.folder / f"{guest.name}.log"
            self.running.append(start_guest(host.connection, guest, kernel=self.kernel, console=console))
            if self._sample(host, 2 * step_s):
                return
        if self._sample(host, 8 * step_s) or self._sample(host, BUSY_S, until=self.view.has_merged):
            return
        self._stop_guests(self.guests, pause_s=step_s)
        self._sample(host, step_s)

    def _stop_guests(self, count: int, *, pause_s: float) -> None:
        for _ in range(count):
            domain = self.running.pop()
            try:
                self.view.say("guest", f"stopping {domain.name()}")
                domain.destroy()
            except libvirt.libvirtError as error:
                self.view.say("guest", f"already gone: {error.get_error_message()}")
            self.over.wait(pause_s)

    def _sample(self, host: LibvirtHost, duration_s: float, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Watch for `duration_s` seconds, or until something holds; return whether the story is over early."""
        for _ in range(max(1, round(duration_s / SAMPLE_S))):
            self.view.saw(host.ksm_state().pages_sharing)
            if until():
                return False
            if self.over.wait(SAMPLE_S):
                return True
        return False
