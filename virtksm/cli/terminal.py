"""A terminal to paint whole frames on, as top does, and to give back as it was found.

Frames go to the alternate screen, each in one write: the cursor goes home, every line is written over its predecessor
and cleared behind its end, so that nothing flickers. Escape codes of our own rather than curses: these few are the same
on every usual terminal, the lines stay the same as in a pipe, and curses would take over
both streams and need a terminal description. A terminal that is "dumb" is treated as a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from virtksm.text import width

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
NORMAL = "\x1b[0m"
TONES = {"good": "\x1b[32m", "warn": "\x1b[33m", "bad": "\x1b[31m", "dim": "\x1b[2m"}

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

Line = tuple[str, str]
"""A tone, "" for none, and a printable text."""


class Ended(BaseException):
    """A signal asks to end; like KeyboardInterrupt no error, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        self.number = number


def is_paintable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether frames can be painted on what the stream leads to."""
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def may_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether colours are wanted there: on a terminal, unless NO_COLOR is set."""
    return is_paintable(stream, environ) and "NO_COLOR" not in environ


def render(lines: Sequence[Line], *, colour: bool, columns: int | None = None) -> list[str]:
    """Return lines as text, cut to so many columns."""
    cut = [(tone, text if columns is None else fit(text, columns)) for tone, text in lines]
    return [f"{TONES[tone]}{text}{NORMAL}" if colour and tone else text for tone, text in cut]


def fit(text: str, columns: int) -> str:
    """Cut printable text to so many columns; some characters take two of them, some none."""
    if text.isascii():
        return text[:columns]
    for end, one in enumerate(text):
        columns -= width(one)
        if columns < 0:
            return text[:end]
    return text


class Screen:
    """The terminal while it is ours. `keys` is the descriptor that keys come from, None where it is no terminal."""

    def __init__(self, output: int, keys: int | None, encoding: str) -> None:
        self._output = output
        self._keys = keys
        self._has_keys = keys is not None
        self._encoding = encoding
        self._mode: list[Any] | None = None
        self._is_to_rest = False
        self._woken, self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def take(self) -> None:
        """Enter the alternate screen, and have keys one by one and unseen."""
        if self._keys is not None:
            self._mode = termios.tcgetattr(self._keys)
            mode = termios.tcgetattr(self._keys)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(self._keys, termios.TCSANOW, mode)
        self._write(ENTER)

    def give_back(self) -> None:
        """Leave everything as it was; a terminal that is gone takes nothing."""
        with suppress(OSError):
            self._write(NORMAL + LEAVE)
        if self._keys is not None and self._mode is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSANOW, self._mode)
            self._mode = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Hear signals while the terminal is ours: those that end raise Ended, the others wake `wait`."""

        def end(number: int, _frame: FrameType | None) -> None:
            raise Ended(number)

        def rest(_number: int, _frame: FrameType | None) -> None:
            self._is_to_rest = True

        heard: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            **dict.fromkeys(ENDING, end),
            signal.SIGTSTP: rest,
            signal.SIGWINCH: lambda _number, _frame: None,
        }
        before = {number: signal.signal(number, handler) for number, handler in heard.items()}
        waked = signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waked)
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        os.close(self._woken)
        os.close(self._waking)

    def size(self) -> tuple[int, int]:
        """Return columns and rows; something small where the terminal does not know."""
        try:
            columns, rows = os.get_terminal_size(self._output)
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def paint(self, lines: Sequence[Line], *, colour: bool) -> None:
        """Paint a frame over the one before, cut to the terminal's size; raises OSError when it is gone."""
        columns, rows = self.size()
        # Not the last column: with the cursor there, clearing would eat a character.
        shown = render(lines[:rows], colour=colour, columns=columns - 1)
        self._write(HOME + f"{CLEAR_LINE}\r\n".join(shown) + CLEAR_LINE + CLEAR_REST)

    def wait(self, due_s: float) -> str:
        """Wait until CLOCK_MONOTONIC `due_s`; returns "due", "quit" for the key that ends, or "repaint"."""
        while (left_s := due_s - time.monotonic()) > 0:
            sources = [self._woken, self._keys] if self._keys is not None and self._has_keys else [self._woken]
            ready, _, _ = select.select(sources, [], [], left_s)
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                if self._is_to_rest:
                    self._rest()
                return "repaint"
            if self._keys in ready and self._keys is not None:
                typed = os.read(self._keys, 4096)
                if b"q" in typed.lower():
                    return "quit"
                self._has_keys = bool(typed)
        return "due"

    def _rest(self) -> None:
        """Stop, as Ctrl-Z asks, with the terminal given back meanwhile."""
        self._is_to_rest = False
        self.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.take()

    def _write(self, text: str) -> None:
        left = text.encode(self._encoding, "backslashreplace")
        while left:
            left = left[os.write(self._output, left) :]


def watch(screen: Screen, frame: Callable[[], Sequence[Line]], every_s: float, *, colour: bool) -> int:
    """Paint what `frame` returns, again and again, until q or a signal; returns the exit code."""
    try:
        with screen.signals():
            try:
                screen.take()
                _keep_painting(screen, frame, every_s, colour=colour)
            finally:
                for number in ENDING:
                    signal.signal(number, signal.SIG_IGN)  # it is ending: nothing may keep it from giving back
                screen.give_back()
    except Ended as end:
        return 0 if end.number == signal.SIGINT else 128 + end.number
    finally:
        screen.close()
    return 0


def _keep_painting(screen: Screen, frame: Callable[[], Sequence[Line]], every_s: float, *, colour: bool) -> None:
    while True:
        lines = frame()
        due_s = time.monotonic() + every_s  # from here, so that keys are heard also where every frame takes long
        while True:
            screen.paint(lines, colour=colour)
            woken = screen.wait(due_s)
            if woken == "quit":
                return
            if woken == "due":
                break
