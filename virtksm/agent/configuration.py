"""The configuration in force, and how it is read again: beside the loop, with a limit, and one reading at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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


def config_hangs(message: str) -> ConfigError:
    """Return the error for a configuration that cannot be read in time."""
    remedy = "its disk, or the name service (nsswitch.conf: SSSD, LDAP), does not answer: see its log"
    return ConfigError([ConfigFault(file="the configuration", key="", problem=message, remedy=remedy)])


@dataclass(slots=True)
class Configuration:
    """The configuration in force, which all parts ask for at the moment of use.

    `read` blocks and raises ConfigError; `follow` applies a new configuration to the sockets, the metrics and the log,
    or raises ConfigError and changes nothing.
    """

    in_force: Config
    read: Callable[[], FreshConfig]
    follow: Callable[[FreshConfig], None] = lambda _fresh: None
    calls: BlockingCalls = field(default_factory=partial(BlockingCalls, config_hangs, CONFIG_LIMIT_S))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from the reading until what was read is in force, or rejected."""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """A SIGHUP has come that no reading has answered yet."""
