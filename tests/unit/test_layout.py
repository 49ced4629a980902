"""Text in the width of its terminal: hanging indents, tables with wide characters, COLUMNS, colours."""

import io
import os
from pathlib import Path

import pytest

from virtksm.cli.layout import Table, find_columns, fit, may_colour, show, to_lines, wrap
from virtksm.text import width

ROWS = [("bad", "Reason", "memory is not short: 21.9 of 23.5 GiB available, guests can grow to 801.9 MiB")]
TABLE = Table([("GUEST", "RSS", "CAN MERGE"), ("仮想マシン", "9 MiB", "yes"), ("a", "10 GiB", "no: its XML")], (0, 2))


class Terminal(io.StringIO):
    """A stream that says that it is a terminal, as `--watch` and colours ask; the kernel knows of no size."""

    def isatty(self) -> bool:
        return True


def test_a_row_is_one_line_in_a_pipe_and_hangs_below_its_text_in_a_narrow_terminal() -> None:
    assert to_lines(ROWS) == [f"Reason     {ROWS[0][2]}"]
    assert to_lines(ROWS, 50) == [
        "Reason     memory is not short: 21.9 of 23.5 GiB",
        "           available, guests can grow to 801.9 MiB",
    ]
    assert to_lines([("", "", ""), ("dim", "a title", "")], 50) == ["", "a title"]


def test_nothing_to_show_is_no_line_for_a_script_to_count_and_a_blank_row_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show([])
    assert capsys.readouterr().out == ""
    show([("", "", "")])
    assert capsys.readouterr().out == "\n"


def test_only_the_label_has_a_colour() -> None:
    first, second = to_lines(ROWS, 50, colour=True)
    assert first.startswith("\x1b[31mReason     \x1b[0mmemory")
    assert "\x1b" not in second


def test_text_from_outside_is_made_printable_and_cannot_forge_a_line() -> None:
    (line,) = to_lines([("", "No\x1b", "x\nSaved      9 GiB\x1b[2J")])
    assert line.isprintable()
    lines = to_lines([Table([("a\nb", "\x1b[2J")], (0,))])
    assert [line.isprintable() for line in lines] == [True]


def test_a_tables_columns_stay_in_place_whatever_the_names_and_amounts_stand_right() -> None:
    assert to_lines([TABLE]) == [
        "GUEST          RSS  CAN MERGE",
        "仮想マシン   9 MiB  yes",
        "a           10 GiB  no: its XML",
    ]


def test_where_a_table_is_too_wide_its_texts_wrap() -> None:
    assert to_lines([TABLE], 28) == [
        "GUEST         RSS  CAN MERGE",
        "仮想マシ    9 MiB  yes",
        "ン",
        "a          10 GiB  no: its",
        "                   XML",
    ]
    assert to_lines([TABLE], 24)[:4] == ["GUEST      仮想マシン", "RSS        9 MiB", "CAN MERGE  yes", ""]
    assert to_lines([Table(TABLE.rows[1:], (0, 2), has_headings=False)], 12)[:2] == ["仮   9 MiB  y", "想          e"]


def test_words_are_kept_whole_where_they_fit() -> None:
    for text, columns, lines in (
        ("one two", None, ["one two"]), ("one two", 7, ["one two"]), ("one two", 6, ["one", "two"]),
        ("日本 語", 4, ["日本", "語"]), ("abcdef g", 4, ["abcd", "ef g"]), ("日本", 1, ["日", "本"]),
    ):  # fmt: skip
        assert wrap(text, columns) == lines


def test_no_line_begins_with_the_comma_behind_a_long_word() -> None:
    assert wrap("a qemu+unix:///system, b", 19) == ["a", "qemu+unix:///syste", "m, b"]
    assert wrap("a qemu+unix:///system b", 18) == ["a", "qemu+unix:///syste", "m b"]
    assert wrap("仮想マシン、", 10) == ["仮想マシ", "ン、"]
    assert wrap("ab", 1) == ["a", "b"]


def test_text_is_cut_to_columns_not_characters() -> None:
    for text, columns, shown in (
        ("abc", 2, "ab"), ("abc", 9, "abc"), ("日本語", 5, "日本"), ("e\u0301e\u0301", 1, "e\u0301"), ("x", 0, ""),
    ):  # fmt: skip
        assert fit(text, columns) == shown
        assert width(fit(text, columns)) <= columns


@pytest.mark.parametrize(("given", "columns"), [("100", 100), ("1", 40), ("0", None), ("", None), ("x", None)])
def test_columns_says_how_wide_it_is_and_nothing_wraps_in_a_pipe_without(given: str, columns: int | None) -> None:
    assert find_columns(io.StringIO(), {"COLUMNS": given}) == columns


def test_a_terminal_that_does_not_know_its_width_has_80_columns() -> None:
    with Path(os.devnull).open("r+", encoding="ascii") as nothing:

        class Sizeless(Terminal):
            def fileno(self) -> int:
                return nothing.fileno()

        assert find_columns(Sizeless(), {}) == 80


def test_colours_are_for_terminals_and_never_with_no_color() -> None:
    assert may_colour(Terminal(), {"TERM": "xterm"})
    assert not may_colour(Terminal(), {"TERM": "xterm", "NO_COLOR": ""})
    assert not may_colour(Terminal(), {"TERM": "dumb"})
    assert not may_colour(io.StringIO(), {"TERM": "xterm"})
