"""The configuration in force, and how it is read again: beside the loop, with a limit, and one reading at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from virtksm.agent.calls import BlockingCalls
from virtksm.config.schema import Config
from virtksm.errors import ConfigError, ConfigFault

CONFIG_LIMIT_S = 10.0
"""For reading the configuration, and asking the name service for its group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshConfig:
    """A configuration as it was just read, with the number of its `status_group`, None without one."""

    config: Config
    status_gid: int | None = None


class Configuration:
    """The configuration in force, which all parts ask for at the moment of use.

    `read` blocks and raises ConfigError; `follow` applies a new configuration to the sockets, the metrics and the log,
    or raises ConfigError and changes nothing.
    """

    def __init__(
        self,
        in_force: Config,
        read: Callable[[], FreshConfig],
        follow: Callable[[FreshConfig], None] = lambda _fresh: None,
    ) -> None:
        self.in_force = in_force
        self.read = read
        self.follow = follow
        self.calls = BlockingCalls(config_hangs, CONFIG_LIMIT_S)
        self.lock = asyncio.Lock()
        """Held from the reading until what was read is in force, or rejected."""
        self.hung_up = asyncio.Event()
        """A SIGHUP has come that no reading has answered yet."""

    async def read_again(self) -> FreshConfig:
        """Return what the files say now; raises ConfigError, also if they cannot be read in time."""
        return await self.calls.run("reading it", self.read)


def config_hangs(message: str) -> ConfigError:
    """Return the error for a configuration that cannot be read in time."""
    remedy = "its disk, or the name service (nsswitch.conf: SSSD, LDAP), does not answer: see its log"
    return ConfigError([ConfigFault(file="the configuration", key="", problem=message, remedy=remedy)])
