"""Keeps whether virtksm is paused for a host, as one file in the state folder: there while it is.

Administrators must be able to prove that KSM is off, so a file that cannot be read or understood counts as off; only a
file that is certainly not there means on. It survives a power cut from the moment `turn_off` returns. Follows no
symbolic links.
"""

from __future__ import annotations

import json
import os
import time

from virtksm.errors import StateUnusable
from virtksm.model.decision import Pause
from virtksm.store.files import ensure_folder, read_file, replace_file, sync_folder, unusable
from virtksm.values import parse_object

SCHEMA = 1
MAX_SINCE = 64


class SwitchFile:
    """The Switch of one host, in the file `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> Pause | None:
        try:
            text = read_file(self.path)
            return None if text is None else Pause(since=parse_switch(text))
        except StateUnusable as error:
            return Pause(damage=error.message)
        except ValueError as error:
            return Pause(damage=f"{self.path}: {error}")

    def may_turn(self) -> bool:
        """Tell whether this user may turn it: root, or a user who may write in the folder, or make it."""
        folder = os.path.dirname(self.path)
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        return os.geteuid() == 0 or os.access(folder, os.W_OK | os.X_OK)

    def turn_off(self) -> None:
        known = self.read()
        if known is not None and not known.damage:
            return
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ensure_folder(os.path.dirname(self.path), 0o755)
        # For all to read: the agent is another user than root, who may have written it.
        replace_file(self.path, json.dumps({"schema": SCHEMA, "since": since}) + "\n", mode=0o644, durable=True)

    def turn_on(self) -> None:
        try:
            os.unlink(self.path)
            sync_folder(os.path.dirname(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise unusable(self.path, error) from error


def parse_switch(text: str) -> str:
    """Return since when it is off; raises ValueError if that is not what `turn_off` wrote."""
    try:
        values = parse_object(text, "it")
    except ValueError:
        values = {}
    since = values.get("since") if values.get("schema") == SCHEMA else None
    if not isinstance(since, str) or not since.isprintable() or not 0 < len(since) <= MAX_SINCE:
        raise ValueError("is damaged")
    return since
