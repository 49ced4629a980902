"""Which guests are to be switched while they run, whether that fits into memory, and the file that keeps it."""

from pathlib import Path

import pytest

from virtksm.errors import StateUnusable
from virtksm.guests.choices import PRIVATE, REWRITES, Choice, Seen, find_steps, find_unmerged
from virtksm.guests.obstacles import exposed, is_private
from virtksm.guests.xml import UNKNOWN, GuestXml
from virtksm.model.snapshot import Guest
from virtksm.paths import RuntimePaths
from virtksm.store.choices import ChoiceFile
from virtksm.values import replace

VAULT = Guest(uuid="u", name="vault", domain_id=1)
PLAIN, DECLARED, APART = GuestXml(memory_kib=1), GuestXml(is_private=True, memory_kib=1), GuestXml(is_kept_out=True)
OURS = Choice(name="vault", process="1/1", merge=False, why="private", at_s=1.0, is_done=True, memory_kib=1)
BEGUN = replace(OURS, is_done=False)
MERGING = replace(BEGUN, merge=True)
THEIRS = replace(OURS, why="command")
OPENED = replace(THEIRS, merge=True)
OF_BEFORE = replace(OURS, process="1/0")


OUT = replace(OURS, why=REWRITES)


@pytest.mark.parametrize(
    ("xml", "patterns", "choice", "merge", "why"),
    [
        (PLAIN, [], None, False, REWRITES),
        (PLAIN, [], OUT, None, None),
        (PLAIN, [], replace(OUT, is_done=False), False, REWRITES),
        (PLAIN, [], replace(OUT, process="1/0"), False, REWRITES),
        (GuestXml(memory_kib=2), [], OUT, False, REWRITES),
        # It is private, too, or was: why it is out is told anew.
        (PLAIN, ["vault"], None, False, PRIVATE),
        (PLAIN, ["vault"], OUT, False, PRIVATE),
        (PLAIN, ["vault"], OURS, None, None),
        (PLAIN, [], OURS, False, REWRITES),
        # It cannot merge, it is not known whether it can, or a command has chosen.
        (APART, [], None, None, None),
        (UNKNOWN, [], None, None, None),
        (UNKNOWN, [], OUT, None, None),
        (PLAIN, [], OPENED, None, None),
        (PLAIN, [], THEIRS, None, None),
    ],
)
def test_a_guest_that_rewrites_is_out_as_a_private_one_is(
    xml: GuestXml, patterns: list[str], choice: Choice | None, merge: bool | None, why: str | None
) -> None:
    choices = {} if choice is None else {VAULT.uuid: choice}
    seen = [Seen(VAULT, xml, "1/1")]
    steps = find_steps(seen, choices, patterns, is_enforced=True, rewriters=[VAULT.key])
    assert [(step.merge, step.why) for step in steps] == ([] if merge is None else [(merge, why)])


def test_a_guest_that_rewrites_no_more_merges_again_unless_it_is_private() -> None:
    seen = [Seen(VAULT, PLAIN, "1/1")]
    (step,) = find_steps(seen, {VAULT.uuid: OUT}, [], is_enforced=True)
    assert (step.merge, step.why) == (True, REWRITES)
    (step,) = find_steps(seen, {VAULT.uuid: OUT}, ["vault"], is_enforced=True)
    assert (step.merge, step.why) == (False, PRIVATE)
    assert find_steps(seen, {VAULT.uuid: THEIRS}, [], is_enforced=True) == ()


def test_while_no_policy_says_who_rewrites_none_is_taken_out_or_let_in_for_it() -> None:
    seen = [Seen(VAULT, PLAIN, "1/1")]
    for choice in (None, OUT, replace(OUT, is_done=False), replace(OUT, merge=True)):
        choices = {} if choice is None else {VAULT.uuid: choice}
        assert find_steps(seen, choices, [], is_enforced=True, rewriters=None) == ()
        (step,) = find_steps(seen, choices, ["vault"], is_enforced=True, rewriters=None)
        assert (step.merge, step.why) == (False, PRIVATE), "private_enforce is the administrator's word"
    (step,) = find_steps(seen, {VAULT.uuid: OURS}, [], is_enforced=True, rewriters=None)
    assert (step.merge, step.why) == (True, PRIVATE)


@pytest.mark.parametrize(
    ("xml", "patterns", "choice", "merge"),
    [
        # Private, by its name or its XML.
        (PLAIN, ["vault"], None, False),
        (DECLARED, [], None, False),
        (PLAIN, ["vault"], OURS, None),
        (PLAIN, ["vault"], BEGUN, False),
        (PLAIN, ["vault"], MERGING, False),
        (GuestXml(memory_kib=2), ["vault"], OURS, False),
        (PLAIN, ["vault"], OF_BEFORE, False),
        (UNKNOWN, ["vault"], None, False),
        (UNKNOWN, ["vault"], OURS, None),
        (APART, ["vault"], None, None),
        (GuestXml(is_private=True, has_hugepages=True), [], None, None),
        (GuestXml(is_private=True, pins_memory=True), [], None, False),
        # Not private, or no longer.
        (PLAIN, [], None, None),
        (PLAIN, ["*", "!vault"], OURS, True),
        (PLAIN, [], OURS, True),
        (PLAIN, [], BEGUN, True),
        (PLAIN, [], MERGING, True),
        (PLAIN, [], OF_BEFORE, None),
        (UNKNOWN, [], OURS, None),
        # What a command has chosen.
        (PLAIN, ["vault"], OPENED, None),
        (PLAIN, [], THEIRS, None),
        (PLAIN, [], replace(THEIRS, is_done=False), None),
        (PLAIN, ["vault"], replace(OPENED, is_done=False), None),
        (PLAIN, ["vault"], THEIRS, None),
        # A command has kept it out, or has begun to, and so does the agent.
        (PLAIN, ["vault"], replace(THEIRS, is_done=False), False),
        (GuestXml(memory_kib=2), ["vault"], THEIRS, False),
        (PLAIN, ["vault"], replace(OPENED, process="1/0"), False),
    ],
)
def test_what_a_run_is_and_what_was_done_with_it_says_what_to_do(
    xml: GuestXml, patterns: list[str], choice: Choice | None, merge: bool | None
) -> None:
    choices = {} if choice is None else {VAULT.uuid: choice}
    steps = find_steps([Seen(VAULT, xml, "1/1")], choices, patterns, is_enforced=True)
    assert [step.merge for step in steps] == ([] if merge is None else [merge])
    assert all(step.process == "1/1" for step in steps)
    lost = find_steps([Seen(VAULT, xml, None)], choices, patterns, is_enforced=True)
    assert lost == find_steps([Seen(VAULT, xml, None)], {}, patterns, is_enforced=True), "whose run it is nobody knows"
    assert all((step.process, step.merge) == (None, False) for step in lost)


def test_where_nothing_is_enforced_what_was_done_is_undone_and_private_guests_come_first() -> None:
    assert find_steps([Seen(VAULT, DECLARED, "1/1")], {}, ["vault"], is_enforced=False) == ()
    (step,) = find_steps([Seen(VAULT, DECLARED, "1/1")], {"u": OURS}, ["vault"], is_enforced=False)
    assert step.merge
    other = replace(VAULT, uuid="v", name="other")
    seen = [Seen(VAULT, PLAIN, "1/1"), Seen(other, PLAIN, "2/2")]
    steps = find_steps(seen, {"u": OURS}, ["other"], is_enforced=True)
    assert [(step.guest.name, step.merge) for step in steps] == [("other", False), ("vault", True)]


@pytest.mark.parametrize(
    ("patterns", "is_so"),
    [
        ([], False),
        (["*"], True),
        (["*", "!build-*"], False),
        (["!build-*", "*"], True),
        (["*", "!build-*", "build-7"], True),
        (["build-[!8]"], True),
        (["!"], False),
    ],
)
def test_of_the_patterns_that_match_the_last_one_decides(patterns: list[str], is_so: bool) -> None:
    build = replace(VAULT, name="build-7")
    assert is_private(build, PLAIN, patterns) is is_so
    assert is_private(build, DECLARED, patterns), "its XML says so"


@pytest.mark.parametrize(
    ("choice", "is_so"),
    [(OURS, True), (THEIRS, True), (BEGUN, False), (OPENED, False), (OF_BEFORE, False), (None, False)],
)
def test_unmerged_is_what_was_done_with_this_run(choice: Choice | None, is_so: bool) -> None:
    choices = {} if choice is None else {VAULT.uuid: choice}
    assert (VAULT.key in find_unmerged(choices, [VAULT], ["1/1"])) is is_so
    assert find_unmerged(choices, [VAULT], [None]) == frozenset()


def test_a_guest_that_was_unmerged_is_exposed_no_longer() -> None:
    other = replace(VAULT, uuid="v", name="other")
    known = {VAULT.key: PLAIN, other.key: PLAIN}
    assert exposed([VAULT, other], known, ["*"], {VAULT.key}) == ("other",)


def test_the_file_keeps_what_was_chosen_and_gives_it_up_only_to_who_knows_it(paths: RuntimePaths) -> None:
    file, other = ChoiceFile(paths), ChoiceFile(paths)
    assert file.read() == {}
    file.note("u", BEGUN)
    other.note("v", OPENED)
    file.note("u", OURS)
    assert file.read() == {"u": OURS, "v": OPENED}
    assert not other.exchange("v", None, OURS), "another is there by now"
    assert not other.exchange("gone", OURS, None)
    assert (other.exchange("v", OPENED, THEIRS), file.read()["v"]) == (True, THEIRS)
    assert (file.exchange("v", THEIRS, None), file.exchange("u", OURS, None)) == (True, True)
    assert other.read() == {}


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2, "guests": {}}', '{"schema": 1, "guests": {"u": {}}}'])
def test_a_file_that_is_not_understood_is_an_error_with_a_remedy(paths: RuntimePaths, text: str) -> None:
    file = ChoiceFile(paths)
    file.note("u", OURS)
    path = Path(paths.host_choices("local"))
    path.write_text(text, encoding="utf-8")
    for act in (file.read, lambda: file.note("u", OURS), lambda: file.exchange("u", OURS, None)):
        with pytest.raises(StateUnusable) as failed:
            act()
        assert failed.value.remedy.startswith(f"rm {path}")
    assert path.read_text(encoding="utf-8") == text
