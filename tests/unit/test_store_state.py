"""The state file: what is damaged is an error, never taken for "no state"; locks and symbolic links."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.full_disk import full_disk
from tests.lab.hang import HANG_S
from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.model.snapshot import MAXIMA
from virtksm.paths import RuntimePaths
from virtksm.store import files
from virtksm.store.files import PIECE_BYTES, ensure_folder, locked, open_lock, read_all, read_file, replace_file
from virtksm.store.state import MAX_CHARACTERS, StateFile, dump_host_state, parse_host_state
from virtksm.tuning.freed import Freed
from virtksm.tuning.ownership import HostState, Ownership

OWNERSHIPS = {
    name: st.builds(
        Ownership,
        baseline=st.integers(0, most),
        intended=st.none() | st.integers(0, most),
        applied=st.none() | st.integers(0, most),
    )
    for name, most in MAXIMA.items()
}
COUNTS = st.integers(0, 2**64)
POLICY_STATES = st.dictionaries(
    st.text(), st.none() | st.integers(-(2**64), 2**64) | st.floats(-1e18, 1e18) | st.text()
)
STATES = st.builds(
    HostState,
    ownership=st.fixed_dictionaries({}, optional=OWNERSHIPS),
    policy_name=st.none() | st.text(),
    policy_state=st.none() | POLICY_STATES,
    freed=st.none()
    | st.builds(
        Freed,
        pages_scanned=COUNTS,
        huge_pages_split=COUNTS,
        zero_kib=COUNTS,
        swap_free_kib=st.none() | COUNTS,
        rss_kib=st.dictionaries(st.text(), COUNTS),
        kib=st.dictionaries(st.text(), COUNTS),
        huge_faults=st.none() | COUNTS,
        max_kib=st.dictionaries(st.text(), COUNTS),
        swapped_kib=st.none() | COUNTS,
    ),
)
GOOD = json.loads(dump_host_state(HostState(ownership={"pages_to_scan": Ownership(baseline=100, intended=7)})))


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    paths = RuntimePaths(str(tmp_path / "run"))
    with StateFile(paths, "local").locked():
        return paths


@given(STATES)
def test_every_state_comes_back_as_it_was(state: HostState) -> None:
    assert parse_host_state(dump_host_state(state)) == state


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 2},
        {"ownership": None},
        {"ownership": {"run": {"baseline": 1, "intended": None, "applied": None}}},
        {"ownership": {"pages_to_scan": {"baseline": "100", "intended": None, "applied": None}}},
        {"ownership": {"pages_to_scan": {"baseline": -1, "intended": None, "applied": None}}},
        {"ownership": {"merge_across_nodes": {"baseline": 2, "intended": None, "applied": None}}},
        {"policy_name": 3},
        {"policy_state": {"nested": [[[[[[[[]]]]]]]]}},
        {"policy_state": {"long": "x" * MAX_CHARACTERS}},
    ],
)
def test_a_damaged_state_says_which_file_and_what_to_do(paths: RuntimePaths, damage: dict[str, object]) -> None:
    file = Path(paths.host_state("local"))
    file.write_text(json.dumps({**GOOD, **damage}), encoding="utf-8")
    with pytest.raises(StateUnusable, match="rm ") as unusable:
        StateFile(paths, "local").load()
    assert str(file) in unusable.value.message
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StateUnusable):
        StateFile(paths, "local").load()


@pytest.mark.parametrize("freed", [{"pages_scanned": 1}, {"a newer version's": 1}, 7])
def test_another_version_s_estimate_is_forgotten_and_what_is_ours_in_the_kernel_is_not(freed: object) -> None:
    """Or no pass would be made after an update, until somebody removed the file."""
    state = parse_host_state(json.dumps({**GOOD, "freed": freed}))
    assert (state.freed, state.ownership["pages_to_scan"].intended) == (None, 7)


def test_each_host_has_a_state_of_its_own_that_nobody_else_may_read_or_write_and_nothing_beside(
    paths: RuntimePaths,
) -> None:
    StateFile(paths, "local").save(HostState(policy_name="here"))
    assert StateFile(paths, "elsewhere").load() == HostState()
    assert Path(paths.host_state("local")).stat().st_mode & 0o777 == 0o600
    assert Path(paths.agent_dir).stat().st_mode & 0o027 == 0
    assert sorted(path.name for path in Path(paths.agent_dir).iterdir()) == ["local.json", "local.lock"]


def test_many_who_write_at_once_all_succeed_and_leave_nothing(paths: RuntimePaths) -> None:
    together = Barrier(8)

    def write(number: int) -> None:
        together.wait(HANG_S)
        for _ in range(50):
            replace_file(paths.host_state("local"), f"{number}" * 1000)

    with ThreadPoolExecutor(8) as writers:
        assert list(writers.map(write, range(8))) == [None] * 8
    text = read_file(paths.host_state("local"))
    assert text is not None
    assert (len(text), len(set(text))) == (1000, 1)
    assert sorted(path.name for path in Path(paths.agent_dir).iterdir()) == ["local.json", "local.lock"]


def test_a_disk_that_is_full_is_told_as_such_and_nothing_is_left(paths: RuntimePaths) -> None:
    with full_disk(), pytest.raises(StateUnusable, match=r"local.json: File too large: .*df "):
        replace_file(paths.host_state("local"), "new")
    assert [path.name for path in Path(paths.agent_dir).iterdir()] == ["local.lock"]


def test_no_planted_link_is_followed_and_one_in_the_states_place_is_replaced(
    paths: RuntimePaths, tmp_path: Path
) -> None:
    victim, elsewhere = tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("precious", encoding="utf-8")
    state, lock = paths.host_state("local"), Path(paths.host_lock("local"))
    Path(state).symlink_to(victim)
    with pytest.raises(StateUnusable):
        read_file(state)
    replace_file(state, "new")
    assert (victim.read_text(encoding="utf-8"), read_file(state)) == ("precious", "new")
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(StateUnusable), StateFile(paths, "local").locked():
        raise AssertionError("locked")
    for path in (paths.agent_lock, paths.coalesce_lock):
        Path(path).symlink_to(elsewhere)
        with pytest.raises(StateUnusable):
            open_lock(path)
    assert not elsewhere.exists()


def test_a_lock_that_is_held_is_reported_as_asked(paths: RuntimePaths) -> None:
    held = AlreadyRunning("another pass holds it")
    for _ in range(2):
        with (
            locked(paths.agent_lock, held),
            pytest.raises(AlreadyRunning, match="another pass holds it"),
            locked(paths.agent_lock, held),
        ):
            raise AssertionError("both hold it")
    assert StateFile(paths, "local").is_own
    Path(paths.agent_dir).rename(f"{paths.agent_dir}.gone")
    assert not StateFile(paths, "local").is_own


def test_a_fifo_in_a_states_place_and_a_state_without_end_are_refused(paths: RuntimePaths) -> None:
    path = Path(paths.host_state("local"))
    os.mkfifo(path)
    with pytest.raises(StateUnusable, match="is not a regular file"):
        StateFile(paths, "local").load()
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(StateUnusable, match="is longer than"):
        StateFile(paths, "local").load()


def test_a_limit_counts_bytes_and_cuts_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_text("ü" * 50)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert read_file(str(path)) == "ü" * 50
    path.write_text("ü" * 51)
    with pytest.raises(StateUnusable, match="is longer than 100 bytes"):
        read_file(str(path))


@pytest.mark.parametrize("size", [PIECE_BYTES, 2 * PIECE_BYTES + 5])
def test_a_file_is_read_whole_piece_by_piece_or_not_at_all(size: int) -> None:
    content = os.urandom(size)
    assert read_all(io.BytesIO(content), size) == content
    with pytest.raises(ValueError, match=f"is longer than {size - 1} bytes"):
        read_all(io.BytesIO(content), size - 1)


@pytest.mark.real  # as root: it gives a folder away
def test_what_root_makes_belongs_to_the_folders_owner_and_what_is_there_stays_its_owners(tmp_path: Path) -> None:
    paths = RuntimePaths(str(tmp_path / "run"))
    (tmp_path / "run" / "agent").mkdir(parents=True)
    os.chown(paths.agent_dir, 65534, 65533)
    mine = Path(paths.host_lock("mine"))
    mine.touch()
    for host in ("mine", "local"):
        with StateFile(paths, host).locked():
            StateFile(paths, host).save(HostState())
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in Path(paths.agent_dir).iterdir()}
    agents = (65534, 65533)
    assert owners == {"local.lock": agents, "local.json": agents, "mine.lock": (0, 0), "mine.json": agents}


def test_what_is_no_folder_or_has_no_parent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.symlink_to(tmp_path)
    for _ in range(2):
        with pytest.raises(StateUnusable, match="is not a folder"):
            ensure_folder(str(path), 0o755)
        path.unlink()
        path.touch()
    with pytest.raises(StateUnusable):
        ensure_folder(str(tmp_path / "none" / "run"), 0o755)
