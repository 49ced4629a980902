"""The status of a host without an agent: sensed here, read-only, with no state and no decision.

libvirt is asked over a read-only connection in a thread of its own, for a few seconds: while it hangs, this machine's
kernel is still read.
"""

from __future__ import annotations

from virtksm import __version__
from virtksm.cli.connection import Libvirt
from virtksm.config.schema import Config
from virtksm.errors import VirtksmError
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.local_facts import ProcFacts, boottime_s
from virtksm.model.current import CurrentKsm, Origin
from virtksm.model.snapshot import Snapshot
from virtksm.paths import RuntimePaths
from virtksm.store.state import read_freed
from virtksm.tuning.freed import count_freed
from virtksm.tuning.sense import sense, sense_current, with_estimates
from virtksm.uri import is_alias
from virtksm.wiring import is_this_machine, key_of, make_switch

LIMIT_S = 5.0
AN_AGENTS = ("last_pass", "full_scan", "last_pass_ago_s", "next_pass_s", "switched", "room_kib")
"""What an agent alone knows."""


class Alone:
    """Reads one host as often as asked; keeps its connection in between."""

    def __init__(self, uri: str, config: Config, paths: RuntimePaths) -> None:
        self.uri = uri
        self._config = config
        self._paths = paths
        self._facts, self._in_thread = ProcFacts(), ProcFacts()
        self._libvirt = Libvirt(uri, LIMIT_S)

    def read(self) -> dict[str, object]:
        """Return what `virtksm status --json` prints; raises VirtksmError for another machine that cannot be asked."""
        try:
            snapshot, error = self._libvirt.ask(self.uri, self._sense), None
        except VirtksmError as failed:
            snapshot, error = None, failed
        is_here = not is_alias(self.uri) and is_this_machine(self.uri, self._config)
        if error is not None and not is_here:
            raise error
        current = self._current(snapshot, is_here=is_here)
        is_paused: bool | None = False if is_here else None
        if not is_alias(self.uri) and make_switch(self.uri, self._config, self._paths).read() is not None:
            is_paused = True
        return {
            "agent": False if is_here else None,
            "version": __version__,
            "uri": self.uri,
            "policy": self._config.policy,
            "libvirt": {
                "connected": error is None,
                "answers": error is None,
                "silent_since": None,
                "silent_s": None,
                "waiting_for": None,
                "error": None if error is None else str(error),
            },
            "stranded": dict.fromkeys(("possible", "settings", "worst_core_percent")),
            "paused": is_paused,
            "now": None if current is None else current.as_dict(),
            **dict.fromkeys(AN_AGENTS),
        }

    def _current(self, snapshot: Snapshot | None, *, is_here: bool) -> CurrentKsm | None:
        if is_here:
            return sense_current(self._facts, snapshot)
        if snapshot is None:
            return None
        return CurrentKsm(origin=Origin.LIBVIRT, ksm=snapshot.ksm, host=snapshot.host).counting(snapshot)

    def _sense(self, host: LibvirtHost) -> Snapshot:
        self.uri = host.uri
        snapshot = sense(host, self._in_thread if is_this_machine(self.uri, self._config) else None, boottime_s())
        freed = read_freed(self._paths, key_of(self.uri, self._config))
        return snapshot if freed is None else with_estimates(snapshot, count_freed(snapshot, freed))
