"""Keeps a module out that others import wherever it is installed, and that this program has no use for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Have imports of a module fail meanwhile, unless it is there already: their modules do without it."""
    is_new = name not in sys.modules
    if is_new:
        sys.modules[name] = None  # type: ignore[assignment]  # which makes its import an ImportError
    try:
        yield
    finally:
        if is_new:
            del sys.modules[name]
