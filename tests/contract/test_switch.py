"""The port Switch: the fake and the file keep the same thing, and fail in the same way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import FakeSwitch
from tests.lab.full_disk import full_disk, full_fake
from virtksm.errors import StateUnusable
from virtksm.model.decision import Pause
from virtksm.store.switch import SwitchFile
from virtksm.tuning.ports import Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A switch, the same one as another process sees it, how to damage it, and a context in which writing fails."""

    switch: Switch
    reopen: Callable[[], Switch]
    damage: Callable[[], object]
    full: Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["fake", "file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "fake":
        fake = FakeSwitch()
        return Kept(
            switch=fake,
            reopen=lambda: fake,
            damage=lambda: setattr(fake, "off", Pause(damage="is damaged")),
            full=lambda: full_fake(fake),
        )
    path = tmp_path / "local.off"
    return Kept(
        switch=SwitchFile(str(path)),
        reopen=lambda: SwitchFile(str(path)),
        damage=lambda: path.write_text("{", encoding="utf-8"),
        full=full_disk,
    )


def test_off_lasts_for_other_processes_until_on(kept: Kept) -> None:
    kept.switch.turn_on()
    assert kept.switch.read() is None
    kept.switch.turn_off()
    off = kept.reopen().read()
    assert off is not None
    assert (off.since[-1], off.damage) == ("Z", "")
    kept.switch.turn_off()
    assert kept.reopen().read() == off
    kept.reopen().turn_on()
    assert kept.switch.read() is None


def test_a_damaged_one_is_off_until_it_is_written_anew_or_removed(kept: Kept) -> None:
    kept.damage()
    off = kept.switch.read()
    assert off is not None
    assert "is damaged" in off.warning
    kept.switch.turn_off()
    off = kept.switch.read()
    assert off is not None
    assert (bool(off.since), off.warning) == (True, "")
    kept.damage()
    kept.switch.turn_on()
    assert kept.switch.read() is None


def test_what_cannot_be_kept_is_an_error_and_changes_nothing(kept: Kept) -> None:
    with kept.full(), pytest.raises(StateUnusable):
        kept.switch.turn_off()
    assert kept.switch.read() is None
