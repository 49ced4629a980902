"""No room on disks, no descriptor to spare: for this process alone, only within a `with`, as pytest writes, too."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.fakes import FakeStore, FakeSwitch


@contextmanager
def nothing_left(limit: int) -> Iterator[None]:
    """Leave this process, also as root, nothing of what setrlimit limits."""
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))


full_disk = partial(nothing_left, resource.RLIMIT_FSIZE)
"""No byte can be written to any file: OSError, File too large."""
no_more_descriptors = partial(nothing_left, resource.RLIMIT_NOFILE)


@contextmanager
def full_fake(fake: FakeStore | FakeSwitch) -> Iterator[None]:
    """Let a fake keep nothing."""
    fake.is_full = True
    try:
        yield
    finally:
        fake.is_full = False
