"""What answers in an agent's place: the real control socket before a handler of the test's, in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from tests.lab.hang import HANG_S
from virtksm.agent.sockets import ControlServer, Handler, bind_socket
from virtksm.paths import RuntimePaths

Result = TypeVar("Result")


class StandIn:
    """Serves as long as it is entered, or until it dies."""

    def __init__(self, paths: RuntimePaths, handle: Handler) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def serve() -> ControlServer:
            return ControlServer(bind_socket(paths.control_socket), handle)

        self._server = self._run(serve())

    def die(self) -> None:
        """End as a killed agent does: the socket's name stays, and nobody listens."""

        async def close() -> None:
            self._server.clients.close()
            await let_all_end()

        if self._thread.is_alive():
            self._run(close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(HANG_S)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def _run(self, step: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(HANG_S)


async def let_all_end() -> None:
    """Wait for a server's tasks, and for the sockets that they closed: asyncio closes those a turn later."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        await asyncio.wait(tasks, timeout=HANG_S)
    for _ in range(3):
        await asyncio.sleep(0)
