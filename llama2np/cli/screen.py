"""Standard output and standard input for `run`."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from llama2np.cli.flags import INTERRUPTED, LONGEST_TEXT, check_length, on_interrupt, reported
from llama2np.cli.text import plain_line

# All control characters but white space: a model must not control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


class Screen:
    """Standard output in UTF-8, flushed after each write, and without control characters."""

    def __init__(self) -> None:
        self._mid_line = False
        self._interrupted = False
        for stream in (sys.stdin, sys.stdout):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="strict")

    def interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C. While numba runs, the exception is raised by the next `write` instead,
        since llvmlite's callbacks would lose it. A second Ctrl-C there ends the process at once.
        """
        while frame:
            if frame.f_globals["__name__"].partition(".")[0] in ("numba", "llvmlite"):
                if self._interrupted:
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    signal.raise_signal(signal.SIGINT)
                self._interrupted = True
                return
            frame = frame.f_back
        self._interrupted = False  # one exception is enough
        raise KeyboardInterrupt

    def write(self, text: str) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        text = _CONTROL.sub("", text)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._mid_line = not text.endswith("\n")

    def end_line(self) -> None:
        if self._mid_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """Print a line to standard error; on a terminal it begins a new line."""
        if sys.stdout.isatty():
            self.end_line()
        print(text, file=sys.stderr, flush=True)

    def ask(self, question: str) -> str:
        """Return a line of standard input. A terminal has line editing and a history.

        Raises EOFError.
        """
        terminal = sys.stdin.isatty()
        if terminal and sys.stdout.isatty():
            try:
                import readline  # noqa: F401  (input() uses it from then on)
            except ImportError:
                pass
            self._mid_line = True
            line = input(question)
        else:
            # input() would ignore a Ctrl-C while it writes the question.
            self.write(question)
            line = sys.stdin.readline(LONGEST_TEXT + 1)
            if not line:
                raise EOFError
            check_length(len(line))
        self._mid_line = not terminal and question != ""
        return plain_line(line.removesuffix("\n"))


def in_a_terminal(prog: str, command: Callable[[Screen], None]) -> int:
    """Run a command that writes to a Screen; return its exit status."""

    def run() -> int:
        screen = Screen()
        with on_interrupt(screen.interrupt):
            return _ended(screen, command)

    return reported(prog, run)


def _ended(screen: Screen, command: Callable[[Screen], None]) -> int:
    try:
        command(screen)
        screen.end_line()
        return 0
    except KeyboardInterrupt:
        screen.write("\n")
        return INTERRUPTED
    except (ValueError, OSError, MemoryError):
        with suppress(ValueError, OSError):  # the output itself may have failed
            screen.end_line()
        raise
