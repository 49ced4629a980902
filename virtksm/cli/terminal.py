"""A terminal to paint whole frames on, as top does, and to give back as it was found.

Frames go to the alternate screen, each in one write: the cursor goes home, every line is written over its predecessor
and cleared behind its end, so that nothing flickers. Escape codes of our own rather than curses: these few are the same
on every usual terminal, the lines stay the same as in a pipe, and curses would take over both streams and need a
terminal description. A terminal that is "dumb" is treated as a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from types import FrameType
from typing import Any

from virtksm.cli.layout import MIN_COLUMNS, NORMAL, Item, fit, is_paintable, lay_out, may_colour, render
from virtksm.cli.main import error_lines
from virtksm.errors import ExitCode, VirtksmError
from virtksm.text import printable, width

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Ended(BaseException):
    """A signal asks to end; like KeyboardInterrupt no error, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        self.number = number


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

    def paint(self, items: Sequence[Item], *, colour: bool) -> None:
        """Paint a frame over the one before, in the terminal's size; raises OSError when it is gone."""
        columns, rows = self.size()
        columns -= 1  # with the cursor in the last one, clearing would eat a character
        shown = []
        for tone, label, text in islice(lay_out(items, max(columns, MIN_COLUMNS)), rows):
            label = fit(label, columns)  # noqa: PLW2901
            shown.append(render((tone, label, fit(text, columns - width(label))), colour=colour))
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


def watch(every_s: float, title: str, frame: Callable[[], Sequence[Item]] | None, print_one: Callable[[], None]) -> int:
    """Paint what `frame` returns, again and again, until q or a signal; returns the exit code.

    Without a frame, or a terminal to repaint, `print_one` prints one after the other. Errors are shown, and it goes on.
    """
    if frame is None or not is_paintable(sys.stdout, os.environ):
        return _keep_printing(every_s, print_one)

    def titled() -> list[Item]:
        head = f"{title}, every {every_s:g} s, q ends {time.strftime('%H:%M:%S'):>12}"
        try:
            return [("dim", head, ""), *frame()]
        except VirtksmError as error:
            return [("dim", head, ""), ("bad", "Error", error.message), ("", "", error.remedy)]

    screen = Screen(
        sys.stdout.fileno(),
        sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None,
        sys.stdout.encoding,
    )
    try:
        with screen.signals():
            try:
                screen.take()
                _keep_painting(screen, titled, every_s, colour=may_colour(sys.stdout, os.environ))
            finally:
                for number in ENDING:
                    signal.signal(number, signal.SIG_IGN)  # it is ending: nothing may keep it from giving back
                screen.give_back()
    except Ended as end:
        return 0 if end.number == signal.SIGINT else 128 + end.number
    finally:
        screen.close()
    return 0


def _keep_painting(screen: Screen, frame: Callable[[], Sequence[Item]], every_s: float, *, colour: bool) -> None:
    while True:
        items = frame()
        due_s = time.monotonic() + every_s  # from here, so that keys are heard also where every frame takes long
        while True:
            screen.paint(items, colour=colour)
            woken = screen.wait(due_s)
            if woken == "quit":
                return
            if woken == "due":
                break


def _keep_printing(every_s: float, print_one: Callable[[], None]) -> int:
    try:
        while True:
            began_s = time.monotonic()
            try:
                print_one()
            except VirtksmError as error:
                print("\n".join(map(printable, error_lines(error, "virtksm", ()))), file=sys.stderr, flush=True)
            time.sleep(max(0.0, began_s + every_s - time.monotonic()))
    except KeyboardInterrupt:
        return ExitCode.DONE
