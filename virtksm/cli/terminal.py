"""A terminal to paint whole frames on, as top does, and to give back as it was found.

Frames go to the alternate screen, each in one write: the cursor goes home, every line is written over its predecessor
and cleared behind its end, so that nothing flickers. Escape codes of our own rather than curses: these few are the same
on every usual terminal, the lines stay the same as in a pipe, and curses would take over both streams and need a
terminal description. A terminal that is "dumb" is treated as a pipe.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from types import FrameType
from typing import Any

from virtksm.cli.layout import MIN_COLUMNS, NORMAL, Item, fit, is_paintable, lay_out, may_colour, print_result, render
from virtksm.cli.main import complain, error_lines
from virtksm.errors import ExitCode, VirtksmError
from virtksm.text import width

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

Read = Callable[[], tuple[Mapping[str, object], Iterable[Item]]]


class Ended(BaseException):
    """A signal asks to end; like KeyboardInterrupt no error, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Screen:
    """The terminal on standard output while it is ours; keys come from standard input, where that is a terminal."""

    def __init__(self) -> None:
        self._output, self._encoding = sys.stdout.fileno(), sys.stdout.encoding
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._sources: list[int] = [] if self._keys is None else [self._keys]
        self._mode: list[Any] = []
        self._is_to_rest = False

    def _take(self) -> None:
        """Enter the alternate screen, and have keys one by one and unseen."""
        if self._keys is not None:
            self._mode, mode = termios.tcgetattr(self._keys), termios.tcgetattr(self._keys)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(self._keys, termios.TCSANOW, mode)
        self._write(ENTER)

    def _give_back(self) -> None:
        """Leave everything as it was; a terminal that is gone takes nothing."""
        with suppress(OSError):
            self._write(NORMAL + LEAVE)
        if self._keys is not None and self._mode:
            with suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSANOW, self._mode)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Have the terminal, and hear signals meanwhile: those that end raise Ended, the others wake `wait`."""

        def end(number: int, _frame: FrameType | None) -> None:
            raise Ended(number)

        def rest(_number: int, _frame: FrameType | None) -> None:
            self._is_to_rest = True

        self._woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, end)
        signal.signal(signal.SIGTSTP, rest)
        signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
        try:
            self._take()
            yield
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)  # it is ending: nothing may keep it from giving back
            self._give_back()

    def paint(self, items: Sequence[Item], *, colour: bool) -> None:
        """Paint a frame over the one before, in the terminal's size; raises OSError when it is gone."""
        columns, rows = 0, 0
        with suppress(OSError):  # the terminal does not know
            columns, rows = os.get_terminal_size(self._output)
        columns = (columns or 80) - 1  # with the cursor in the last one, clearing would eat a character
        shown = []
        for tone, label, text in islice(lay_out(items, max(columns, MIN_COLUMNS)), rows or 24):
            label = fit(label, columns)  # noqa: PLW2901
            shown.append(render((tone, label, fit(text, columns - width(label))), colour=colour))
        self._write(HOME + f"{CLEAR_LINE}\r\n".join(shown) + CLEAR_LINE + CLEAR_REST)

    def wait(self, due_s: float) -> str:
        """Wait until CLOCK_MONOTONIC `due_s`; returns "due", "quit" for the key that ends, or "repaint"."""
        while (left_s := due_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._woken, *self._sources], [], [], left_s)
            if self._woken in ready:
                os.read(self._woken, 4096)
                if self._is_to_rest:
                    self._rest()
                return "repaint"
            for keys in ready:
                typed = os.read(keys, 4096)
                if b"q" in typed.lower():
                    return "quit"
                self._sources = [keys] if typed else []
        return "due"

    def _rest(self) -> None:
        """Stop, as Ctrl-Z asks, with the terminal given back meanwhile."""
        self._is_to_rest = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _write(self, text: str) -> None:
        left = text.encode(self._encoding, "backslashreplace")
        while left:
            left = left[os.write(self._output, left) :]


def watch(options: argparse.Namespace, title: str, read: Read) -> int:
    """Paint what `read` returns for people, again and again, until q or a signal; returns the exit code.

    With --json, or without a terminal to repaint, one is printed after the other. Errors are shown, and it goes on.
    """
    if options.json or not is_paintable(sys.stdout, os.environ):
        return _keep_printing(options, read)
    screen, colour = Screen(), may_colour(sys.stdout, os.environ)
    try:
        with screen.ours():
            while True:
                items = _frame(f"{title}, every {options.watch:g} s, q ends", read)
                due_s = time.monotonic() + options.watch  # from here: keys are heard also where every frame takes long
                woken = "repaint"
                while woken == "repaint":
                    screen.paint(items, colour=colour)
                    woken = screen.wait(due_s)
                if woken == "quit":
                    return ExitCode.DONE
    except Ended as end:
        return ExitCode.DONE if end.number == signal.SIGINT else 128 + end.number


def _frame(title: str, read: Read) -> list[Item]:
    head = ("dim", f"{title} {time.strftime('%H:%M:%S'):>12}", "")
    try:
        return [head, *read()[1]]
    except VirtksmError as error:
        return [head, ("bad", "Error", error.message), ("", "", error.remedy)]


def _keep_printing(options: argparse.Namespace, read: Read) -> int:
    try:
        while True:
            began_s = time.monotonic()
            try:
                print_result(options, *read())
                if not options.json:
                    print(flush=True)
            except VirtksmError as error:
                complain(error_lines(error, "virtksm", ()))
            time.sleep(max(0.0, began_s + options.watch - time.monotonic()))
    except KeyboardInterrupt:
        return ExitCode.DONE
