"""The port StateStore: the fake and the file keep the same things, and fail in the same way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import FakeStore
from tests.lab.full_disk import full_disk, full_fake
from virtksm.errors import StateUnusable
from virtksm.paths import RuntimePaths
from virtksm.store.state import StateFile
from virtksm.tuning.ownership import HostState, Ownership
from virtksm.tuning.ports import StateStore
from virtksm.values import replace

STATE = HostState(
    ownership={
        "pages_to_scan": Ownership(baseline=100, intended=400, applied=300),
        "sleep_millisecs": Ownership(baseline=20, intended=10),
        "merge_across_nodes": Ownership(baseline=1),
    },
    policy_name="ksmtuned",
    policy_state={"npages": 364, "stepped_at_s": 12345.678},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A store, the same one as another process sees it, and a context in which writing fails."""

    store: StateStore
    reopen: Callable[[], StateStore]
    full: Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["fake", "file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "fake":
        fake = FakeStore()
        return Kept(store=fake, reopen=lambda: fake, full=lambda: full_fake(fake))
    paths = RuntimePaths(str(tmp_path / "run"))
    return Kept(store=StateFile(paths, "local"), reopen=lambda: StateFile(paths, "local"), full=full_disk)


def test_the_last_save_is_loaded_also_by_another_process_and_one_that_fails_changes_nothing(kept: Kept) -> None:
    with kept.store.locked():
        assert kept.store.load() == HostState()
        kept.store.save(replace(STATE, ownership={}))
        kept.store.save(STATE)
        assert kept.store.load() == STATE
    with kept.reopen().locked():
        with kept.full(), pytest.raises(StateUnusable):
            kept.store.save(HostState())
        assert kept.reopen().load() == STATE


def test_what_another_process_has_saved_since_is_loaded_and_what_nobody_has_is_the_same_value(kept: Kept) -> None:
    other = replace(STATE, policy_state={"npages": 365, "stepped_at_s": 12345.678})
    with kept.store.locked():
        kept.store.save(STATE)
        assert kept.store.load() is STATE
        kept.reopen().save(other)
        assert kept.store.load() == other


def test_a_file_that_is_damaged_or_removed_after_a_save_is_seen(tmp_path: Path) -> None:
    paths = RuntimePaths(str(tmp_path / "run"))
    store, file = StateFile(paths, "local"), Path(paths.host_state("local"))
    with store.locked():
        store.save(STATE)
    file.unlink()
    assert store.load() == HostState()
    store.save(STATE)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(StateUnusable):
        store.load()


def test_the_lock_is_let_go_by_a_failure(kept: Kept) -> None:
    with pytest.raises(KeyError), kept.store.locked():
        raise KeyError
    with kept.store.locked():
        assert kept.store.load() == HostState()
