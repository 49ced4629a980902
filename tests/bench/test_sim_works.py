"""script/bench sim: each part's table names the commit, and a missed goal is told by the exit code."""

import pytest

from bench.figures import Goal
from bench.sim import __main__ as sim
from bench.sim.part import Part

ROWS = "\n| contender | min |\n| --- | --- |\n| adaptive | 2.7 |\n\n- slowest: 2.70 min, goal at most 12.00 min: met\n"


def test_a_part_makes_a_table_and_a_missed_goal_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    goals = [Goal(what="slowest", measured=measured, limit=12.0, unit="min") for measured in (2.7, None)]
    rows = [["contender", "min"], ["adaptive", "2.7"]]

    def play() -> Part:
        return Part(title="A day", rows=rows, goals=goals)

    def play_large() -> Part:
        pytest.fail("only when asked for")

    for code in (1, 0):
        assert sim.main([], {"drift": play, "large": play_large}) == code
        said = capsys.readouterr().out
        assert said.startswith("## drift\n\nA day.\n\ncpu ")
        assert ", commit " in said
        assert ROWS in said
        assert ("- slowest: never, goal at most 12.00 min: MISSED\n" in said) is (code == 1)
        del goals[1:]
    with pytest.raises(SystemExit):
        sim.main(["--works", "none"])


def test_little_guests_meet_their_goals() -> None:
    assert sim.main(["--works", "little"]) == 0
