"""Spans of time on the command line."""

import argparse
import re

import pytest

from virtksm.cli.main import main
from virtksm.cli.timespan import DAY_S, YEAR_S, in_words, timespan


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 2 * DAY_S)])
def test_a_time_is_a_number_of_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert timespan(0, YEAR_S)(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1e3", "1H", "nan", "9999999999s", "\u0661h", "2\n"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time from 0 s to 365 d"):
        timespan(0, YEAR_S)(text)


@pytest.mark.parametrize("text", ["0.09", "61"])
def test_the_range_is_said(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{text!r} is no time from 0.1 s to 1 m")):
        timespan(0.1, 60)(text)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (0.1, "0.1 s"), (90, "90 s"), (5400, "90 m"), (DAY_S, "1 d")]
)
def test_a_span_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize("arguments", [["trace", "plot", "-o", "x.svg", "--last", "0h"], ["status", "--watch", "2d"]])
def test_a_command_names_its_option_and_its_range(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert re.search(rf"argument {arguments[-2]}.* is no time from [0-9.]+ s to ", capsys.readouterr().err)
