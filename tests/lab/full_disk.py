"""A disk without room, for this process alone and only within a `with`: pytest's own output may be a file, too."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes import FakeStore, FakeSwitch


@contextmanager
def full_disk() -> Iterator[None]:
    """Let this process, also as root, write no byte to any file (RLIMIT_FSIZE): OSError, File too large."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_fake(fake: FakeStore | FakeSwitch) -> Iterator[None]:
    """Let a fake keep nothing."""
    fake.is_full = True
    try:
        yield
    finally:
        fake.is_full = False
