"""One real pass that is killed in its middle, as a program: SIGKILL after a given step, which is no child's play.

Steps are the cycle's calls to libvirt and to the kept state, and each parameter of a write by itself, as libvirt writes
them one by one. Prints each step's name as it is done. Usage: python killed_pass.py URI CONFIG RUNTIME_DIR LAST_STEP,
with LAST_STEP 0 to run to the end.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virtksm.values import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from virtksm.config.load import load
from virtksm.host.libvirt_connection import open_host
from virtksm.model.decision import Trigger, Triggers
from virtksm.paths import RuntimePaths
from virtksm.wiring import make_cycle


class Steps:
    """Counts the steps, and ends the process without a word after the last one."""

    def __init__(self, last: int) -> None:
        self._left = last

    def done(self, name: str) -> None:
        print(name, flush=True)  # noqa: T201 - its result
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A port whose every call is a step."""

    def __init__(self, port: Any, steps: Steps) -> None:  # noqa: ANN401 - any of the ports
        self._port = port
        self._steps = steps

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the port's
        found = getattr(self._port, name)
        if not callable(found) or name == "locked":
            return found

        def call(*arguments: object, **named: object) -> object:
            result = found(*arguments, **named)
            self._steps.done(name)
            return result

        return call

    def set_parameters(self, values: Mapping[str, int]) -> None:
        write: Callable[[Mapping[str, int]], None] = self._port.set_parameters
        for name, value in values.items():
            write({name: value})
            self._steps.done(f"set {name}")


def main() -> None:
    uri, config, runtime_dir, last = sys.argv[1:]
    steps = Steps(int(last))
    cycle = make_cycle(open_host(uri), load(config).config, RuntimePaths(runtime_dir))
    watched = replace(cycle, hypervisor=Watched(cycle.hypervisor, steps), store=Watched(cycle.store, steps))
    watched.run(Triggers(kinds=frozenset({Trigger.RETUNE})))


if __name__ == "__main__":
    main()
